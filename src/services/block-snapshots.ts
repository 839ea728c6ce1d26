import { changesSince } from "../model/checkpoint.js";
import { checkName } from "../model/names.js";
import type { OpenExport, SnapshotJournal } from "../model/operation.js";
import type { DomainState, PlannedExport } from "../model/snapshot-plan.js";
import { planSnapshot } from "../model/snapshot-plan.js";
import type { UndoEntry, UndoKind } from "../model/undo.js";
import type { OperationRecord } from "../ports/state-store.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import { randomId, timedId } from "../shared/ids.js";
import { chooseDisks } from "./choose-disks.js";
import { findCheckpoint, gatherCheckpoints } from "./checkpoints.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, withDomain } from "./context.js";
import type { DomainSession } from "./domain-session.js";
import { Operation } from "./operation.js";
import { undoEntry, unwind } from "./unwind.js";

/** A block snapshot that is open: its consumer reads it, renews it, and says in the end how it went. */
export interface BlockSnapshot extends SnapshotJournal {
  readonly domain: string;
}

export interface SnapshotOptions {
  readonly domain: string;
  /** Left out: one is made up. */
  readonly name?: string;
  readonly disks?: readonly string[];
  /** Name of a checkpoint to create at the same moment. */
  readonly checkpoint?: string;
  readonly leaseMs: number;
  readonly signal?: AbortSignal;
}

/** Leases keep forgotten snapshots from holding scratch space for ever; a month is more than any backup takes. */
const LEASE_LIMITS_MS = { min: 1000, max: 31 * 24 * 3600 * 1000 };

/** Freezes disks until the snapshot is deleted or its lease ends. Fails with ALREADY_EXISTS if the name is taken. */
export function createBlockSnapshot(
  context: ServiceContext,
  options: SnapshotOptions,
): Promise<BlockSnapshot> {
  const domain = requireDomain(context, options.domain);
  const leaseMs = checkLease(options.leaseMs);
  const name = checkName("block snapshot", options.name ?? timedId(context.clock.now()));
  if (options.checkpoint !== undefined) checkName("checkpoint", options.checkpoint);
  return withDomain(context, domain, `block-snapshot create ${domain} ${name}`, async (session) => {
    if ((await snapshotRecords(context, domain)).some(({ subject }) => subject.name === name)) {
      throw new FleeceError("ALREADY_EXISTS", `Domain ${domain} already has a block snapshot ${name}`, {
        facts: { domain, snapshot: name },
      });
    }
    const operation = await prepare(context, session, { ...options, name, leaseMs });
    try {
      return await open(context, session, operation, options.signal);
    } catch (error) {
      await unwind(operation, session, context.host).catch((trouble: unknown) =>
        context.log.warn({ operation: operation.record.id }, errorMessage(trouble)),
      );
      throw error;
    }
  });
}

async function prepare(
  context: ServiceContext,
  session: DomainSession,
  options: SnapshotOptions & { readonly name: string },
): Promise<Operation> {
  const driver = await session.driver(options.signal);
  const state = await driver.inspect(options.signal);
  const disks = chooseDisks(state, options.disks);
  if (driver.mode === "running") await context.checkScratch();
  const { checkpoint } = options;
  if (checkpoint !== undefined) checkCheckpointIsNew(state, checkpoint);
  const id = randomId(8);
  const now = context.clock.now();
  const plan = planSnapshot(state, {
    id,
    targets: disks.map(({ target }) => target),
    scratchDir: context.scratchDir,
    ...(checkpoint === undefined ? {} : { checkpoint: { name: checkpoint, timeMs: now } }),
  });
  const { name, leaseMs } = options;
  return Operation.begin(context.store, {
    id,
    domain: session.domain,
    startedAtMs: now,
    subject: {
      kind: "block-snapshot",
      name,
      phase: "creating",
      leaseMs,
      leaseUntilMs: now + leaseMs,
      mode: driver.mode,
      plan,
      timeMs: now,
      fingerprints: [],
      exports: [],
    },
  });
}

async function open(
  context: ServiceContext,
  session: DomainSession,
  operation: Operation,
  signal?: AbortSignal,
): Promise<BlockSnapshot> {
  const subject = snapshotSubject(operation);
  const driver = await session.driver();
  const { timeMs, fingerprints } = await driver.freeze(subject.plan, operation, signal);
  const leaseUntilMs = context.clock.now() + subject.leaseMs;
  const opened: SnapshotJournal = { ...subject, phase: "open", timeMs, fingerprints, leaseUntilMs };
  await operation.setSubject(opened);
  return { ...opened, domain: session.domain };
}

function checkCheckpointIsNew(state: DomainState, name: string): void {
  if (gatherCheckpoints(state).every((checkpoint) => checkpoint.name !== name)) return;
  throw new FleeceError("ALREADY_EXISTS", `Domain ${state.domain} already has a checkpoint ${name}`, {
    facts: { domain: state.domain, checkpoint: name },
  });
}

function checkLease(leaseMs: number): number {
  if (leaseMs >= LEASE_LIMITS_MS.min && leaseMs <= LEASE_LIMITS_MS.max) return leaseMs;
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected a lease of 1 second to 31 days, got ${leaseMs / 1000} seconds`,
  );
}

/** Open snapshots of a domain, oldest first. */
export async function listBlockSnapshots(
  context: ServiceContext,
  domain: string,
): Promise<readonly BlockSnapshot[]> {
  const records = await snapshotRecords(context, requireDomain(context, domain));
  return records
    .filter(({ subject }) => subject.phase === "open")
    .map(({ subject, record }) => ({ ...subject, domain: record.domain }));
}

/** Fails with SNAPSHOT_NOT_FOUND. */
export async function getBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
): Promise<BlockSnapshot> {
  checkName("block snapshot", name);
  const all = await listBlockSnapshots(context, domain);
  const found = all.find((snapshot) => snapshot.name === name);
  if (found !== undefined) return found;
  const known = all.map((snapshot) => snapshot.name).join(", ") || "none";
  throw new FleeceError(
    "SNAPSHOT_NOT_FOUND",
    `Domain ${domain} has no block snapshot ${name}; it has ${known}`,
    {
      facts: { domain, snapshot: name },
    },
  );
}

/** Starts the lease anew, with the length it had or another. */
export function renewBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
  leaseMs?: number,
): Promise<BlockSnapshot> {
  return withSnapshot(context, domain, name, "renew", async (operation) => {
    const subject = snapshotSubject(operation);
    const length = leaseMs === undefined ? subject.leaseMs : checkLease(leaseMs);
    const renewed = { ...subject, leaseMs: length, leaseUntilMs: context.clock.now() + length };
    await operation.setSubject(renewed);
    return { ...renewed, domain };
  });
}

/**
 * The end of a snapshot, as its consumer tells it. After success the checkpoint created with it stays; after failure it is
 * merged into its parent, as if it had never been. Fails with SNAPSHOT_BROKEN or DISK_CHANGED, and ends it as failed, when
 * success is claimed for a snapshot that was not intact.
 */
export function deleteBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
  outcome: "success" | "failure",
): Promise<void> {
  return withSnapshot(context, domain, name, "delete", async (operation, session) => {
    const broken = outcome === "success" ? await brokenBy(operation, session) : undefined;
    if (outcome === "success" && broken === undefined) await operation.keepCheckpoint();
    await unwind(operation, session, context.host);
    if (broken !== undefined) throw broken.error;
  });
}

async function brokenBy(
  operation: Operation,
  session: DomainSession,
): Promise<{ error: unknown } | undefined> {
  const { plan, fingerprints, mode } = snapshotSubject(operation);
  try {
    const driver = await session.driver();
    if (driver.mode !== mode) {
      const now = driver.mode === "running" ? "was started" : "was stopped";
      throw new FleeceError(
        "SNAPSHOT_BROKEN",
        `Domain ${session.domain} ${now} after the block snapshot was taken`,
      );
    }
    await driver.checkIntact(plan, fingerprints);
    return undefined;
  } catch (error) {
    return { error };
  }
}

export interface ExportRequest {
  readonly domain: string;
  readonly snapshot: string;
  /** Offer what changed since this checkpoint as a metadata context. */
  readonly since?: string;
  readonly disks?: readonly string[];
  readonly signal?: AbortSignal;
}

/** Offers disks of a snapshot over NBD on a private Unix socket; their names are `<target>-<snapshot>`. */
export function startExport(context: ServiceContext, request: ExportRequest): Promise<readonly OpenExport[]> {
  const { domain, since } = request;
  return withSnapshot(context, domain, request.snapshot, "export", async (operation, session) => {
    const subject = snapshotSubject(operation);
    const driver = await session.driver(request.signal);
    const state = await driver.inspect(request.signal);
    if (since !== undefined) findCheckpoint(state, since);
    const planned = plannedExports(subject, state, request);
    const before = new Set(operation.record.undo);
    try {
      const addresses = await driver.startExports(subject.plan, planned, operation, request.signal);
      const opened = addresses.map((address) => ({ ...address, ...(since === undefined ? {} : { since }) }));
      await operation.setSubject({ ...subject, exports: [...subject.exports, ...opened] });
      return opened;
    } catch (error) {
      await undoEntries(context, session, operation, (entry) => !before.has(entry));
      throw error;
    }
  });
}

/** Ends all exports of a snapshot, whether or not clients use them. Idempotent. */
export function stopExports(context: ServiceContext, domain: string, snapshot: string): Promise<void> {
  return withSnapshot(context, domain, snapshot, "export stop", async (operation, session) => {
    await undoEntries(context, session, operation, ({ kind }) => EXPORT_KINDS.has(kind));
    await operation.setSubject({ ...snapshotSubject(operation), exports: [] });
  });
}

const EXPORT_KINDS: ReadonlySet<UndoKind> = new Set([
  "vm-nbd-server",
  "vm-bitmap",
  "vm-export",
  "daemon-export",
]);

function plannedExports(
  { plan, name }: SnapshotJournal,
  state: DomainState,
  { domain, since, disks }: ExportRequest,
): readonly PlannedExport[] {
  const missing = disks?.find((target) => plan.disks.every((disk) => disk.target !== target));
  if (missing !== undefined) {
    throw new FleeceError("DISK_NOT_FOUND", `Block snapshot ${name} has no disk ${missing}`, {
      facts: { domain, snapshot: name, target: missing },
    });
  }
  const chosen = plan.disks.filter(({ target }) => disks?.includes(target) ?? true);
  return chosen.map(({ target, nodes }) => {
    const base = { target, exportName: `${target}-${name}`, accessNode: nodes.access };
    if (since === undefined) return base;
    const checkpoints = state.disks.find((disk) => disk.target === target)?.checkpoints ?? [];
    const changes = changesSince(checkpoints, since);
    if (changes.valid) return { ...base, changes: { since, bitmaps: changes.bitmaps } };
    throw new FleeceError("CHECKPOINT_INVALID", `Disk ${target} of domain ${domain}: ${changes.reason}`, {
      facts: { domain, target, checkpoint: since },
    });
  });
}

async function snapshotRecords(
  context: ServiceContext,
  domain: string,
): Promise<readonly { readonly subject: SnapshotJournal; readonly record: OperationRecord }[]> {
  const records = await context.store.operations(domain);
  return records.flatMap((record) =>
    record.subject.kind === "block-snapshot" ? [{ subject: record.subject, record }] : [],
  );
}

function snapshotSubject({ record }: Operation): SnapshotJournal {
  if (record.subject.kind === "block-snapshot") return record.subject;
  throw new FleeceError("INTERNAL", `Operation ${record.id} is not a block snapshot`);
}

async function withSnapshot<T>(
  context: ServiceContext,
  domain: string,
  name: string,
  verb: string,
  action: (operation: Operation, session: DomainSession) => Promise<T>,
): Promise<T> {
  requireDomain(context, domain);
  return withDomain(context, domain, `${verb} of block snapshot ${name} of ${domain}`, async (session) => {
    await getBlockSnapshot(context, domain, name);
    const records = await snapshotRecords(context, domain);
    const found = records.find(({ subject }) => subject.name === name);
    if (found === undefined)
      throw new FleeceError("INTERNAL", `The record of block snapshot ${name} is gone`);
    return action(new Operation(context.store, found.record), session);
  });
}

/** Undoes a part of what an operation holds, newest first; the first failure stops it, and the rest stays journalled. */
async function undoEntries(
  context: ServiceContext,
  session: DomainSession,
  operation: Operation,
  chosen: (entry: UndoEntry) => boolean,
): Promise<void> {
  for (const entry of operation.record.undo.filter(chosen).toReversed()) {
    await undoEntry(entry, session, context.host);
    await operation.settle(entry);
  }
}
