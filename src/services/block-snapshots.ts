import { leaseLeftMs, newLease, type LeaseTime } from "../model/lease.js";
import { checkName } from "../model/names.js";
import { checkFilePath } from "../model/paths.js";
import type { SnapshotEnd, SnapshotJournal } from "../model/operation.js";
import type { QuiescePlan } from "../model/quiesce.js";
import type { DiskState, DomainState } from "../model/snapshot-plan.js";
import { planSnapshot } from "../model/snapshot-plan.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { randomId, timedId } from "../shared/ids.js";
import { chooseDisks } from "./choose-disks.js";
import { findEnded, rememberEnd, snapshotHasEnded } from "./ended-snapshots.js";
import { gatherCheckpoints } from "./checkpoints.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, withDomain } from "./context.js";
import type { DomainSession } from "./domain-session.js";
import type { BlockSnapshot } from "./open-snapshots.js";
import {
  brokenBy,
  checkOwner,
  findOpen,
  refuseFrozenDisks,
  snapshotRecords,
  snapshotSubject,
  withSnapshot,
} from "./open-snapshots.js";
import { Operation } from "./operation.js";
import { logMoment, planQuiesce } from "./quiesce.js";
import { unwind } from "./unwind.js";

export interface SnapshotOptions {
  readonly domain: string;
  /** Left out: one is made up. */
  readonly name?: string;
  readonly disks?: readonly string[];
  /**
   * By target: absolute paths of files that must not exist yet. Disks that are not in it have theirs in the scratch
   * directory. A domain that is inactive needs none, and gets none.
   */
  readonly scratchFiles?: ReadonlyMap<string, string>;
  /** A checkpoint to create at the same moment; without a name of its own it is called like the snapshot. */
  readonly checkpoint?: { readonly name?: string };
  readonly leaseMs: number;
  /** Freeze the guest's file systems for the moment; left out: as configured. */
  readonly quiesce?: boolean;
  /** The key of the request: what it has made already is what it gets. */
  readonly request?: string;
  readonly signal?: AbortSignal;
}

/** Leases keep forgotten snapshots from holding scratch space for ever; a month is more than any backup takes. */
const LEASE_LIMITS_MS = { min: 1000, max: 31 * 24 * 3600 * 1000 };

/**
 * Freezes disks until the snapshot is deleted or its lease ends. Fails with ALREADY_EXISTS if the name or that of the
 * checkpoint is taken, and with DOMAIN_BUSY if another snapshot holds one of the disks.
 */
export function createBlockSnapshot(
  context: ServiceContext,
  options: SnapshotOptions,
): Promise<BlockSnapshot> {
  const domain = requireDomain(context, options.domain);
  const request = {
    name: checkName("block snapshot", options.name ?? timedId(context.clock.now())),
    leaseMs: checkLease(options.leaseMs),
    quiescePlan: planQuiesce(context, domain, options.quiesce),
  };
  for (const file of options.scratchFiles?.values() ?? []) checkFilePath("a scratch file", file);
  const checkpoint =
    options.checkpoint === undefined
      ? undefined
      : checkName("checkpoint", options.checkpoint.name ?? request.name);
  return withDomain(context, domain, `block-snapshot create ${domain} ${request.name}`, async (session) => {
    const made = await madeBy(context, domain, options.request);
    if (made !== undefined) return made;
    if ((await snapshotRecords(context, domain)).some(({ subject }) => subject.name === request.name)) {
      throw new FleeceError(
        "ALREADY_EXISTS",
        `Domain ${domain} already has a block snapshot ${request.name}`,
        { facts: { domain, snapshot: request.name } },
      );
    }
    const operation = await prepare(context, session, {
      ...options,
      ...request,
      checkpointName: checkpoint,
    });
    try {
      return await open(context, session, operation, options.signal);
    } catch (error) {
      await unwindQuietly(context, session, operation);
      throw error;
    }
  });
}

/** What an earlier call of the same request has made, whose answer was lost. Fails if that has ended since. */
async function madeBy(
  context: ServiceContext,
  domain: string,
  request: string | undefined,
): Promise<BlockSnapshot | undefined> {
  if (request === undefined) return undefined;
  const open = await snapshotRecords(context, domain);
  const found = open.find(({ subject }) => subject.request === request);
  if (found !== undefined) return { ...found.subject, domain };
  const ended = await findEnded(context.store, domain, ({ snapshot }) => snapshot.request === request);
  if (ended !== undefined) throw snapshotHasEnded(domain, ended);
  return undefined;
}

interface NamedRequest {
  readonly name: string;
  readonly leaseMs: number;
  readonly checkpointName: string | undefined;
  readonly quiescePlan: QuiescePlan | undefined;
  readonly disks?: readonly string[];
  readonly scratchFiles?: ReadonlyMap<string, string>;
  readonly request?: string;
  readonly signal?: AbortSignal;
}

async function prepare(
  context: ServiceContext,
  session: DomainSession,
  { name, leaseMs, checkpointName, quiescePlan, disks: targets, scratchFiles, request, signal }: NamedRequest,
): Promise<Operation> {
  const driver = await session.driver(signal);
  const state = await driver.inspect(signal);
  await refuseFrozenDisks(context, session, driver, targets);
  const disks = chooseDisks(state, targets);
  if (driver.mode === "running") await checkScratch(context, disks, scratchFiles);
  if (checkpointName !== undefined) checkCheckpointIsNew(state, checkpointName);
  const id = randomId(8);
  const now = context.clock.now();
  const plan = planSnapshot(state, {
    id,
    targets: disks.map(({ target }) => target),
    scratchDir: context.scratchDir,
    scratchFiles,
    scratchLimitBytes: context.scratchLimits.get(session.domain),
    quiesce: quiescePlan,
    ...(checkpointName === undefined ? {} : { checkpoint: { name: checkpointName, timeMs: now } }),
  });
  return Operation.begin(context.store, {
    id,
    domain: session.domain,
    startedAtMs: now,
    subject: {
      kind: "block-snapshot",
      name,
      owner: context.client.name,
      phase: "creating",
      ...newLease(leaseMs, leaseTime(context)),
      mode: driver.mode,
      plan,
      timeMs: now,
      fingerprints: [],
      exports: [],
      ...(request === undefined ? {} : { request }),
    },
  });
}

/** The scratch directory counts only if it is needed. */
async function checkScratch(
  { scratch }: ServiceContext,
  disks: readonly DiskState[],
  files: ReadonlyMap<string, string> = new Map(),
): Promise<void> {
  if (disks.some(({ target }) => !files.has(target))) await scratch.check();
  for (const file of files.values()) await scratch.checkFile(file);
}

function leaseTime({ clock }: ServiceContext): LeaseTime {
  return { nowMs: clock.now(), host: clock.hostTime() };
}

async function open(
  context: ServiceContext,
  session: DomainSession,
  operation: Operation,
  signal?: AbortSignal,
): Promise<BlockSnapshot> {
  const subject = snapshotSubject(operation);
  const driver = await session.driver();
  const frozen = await driver.freeze(subject.plan, operation, signal);
  logMoment(context, session.domain, frozen);
  const lease = newLease(subject.leaseMs, leaseTime(context));
  const opened: SnapshotJournal = { ...subject, ...frozen, phase: "open", ...lease };
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

/**
 * Starts the lease anew, with the length it had or another. Waits for nobody: whoever works on the domain meanwhile, even
 * for hours, must not cost others their snapshots.
 */
export async function renewBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
  leaseMs?: number,
): Promise<BlockSnapshot> {
  const wanted = leaseMs === undefined ? undefined : checkLease(leaseMs);
  const { record, subject } = await findOpen(context, domain, name);
  checkOwner(context, domain, subject);
  const time = leaseTime(context);
  if (leaseLeftMs(subject, time) <= 0) throw leaseIsOver(domain, subject);
  await context.store.saveLease(record, newLease(wanted ?? subject.leaseMs, time));
  // If its end began just now, that is seen here, or the new lease is seen there.
  const renewed = await findOpen(context, domain, name);
  if (renewed.record.id !== record.id) throw leaseIsOver(domain, subject);
  await context.fronts?.follow(domain);
  return { ...renewed.subject, domain };
}

function leaseIsOver(domain: string, snapshot: SnapshotJournal): FleeceError {
  const end = { reason: "LEASE_EXPIRED" } as const;
  return snapshotHasEnded(domain, { id: "", endedAtMs: snapshot.leaseUntilMs, end, snapshot });
}

/**
 * The end of a snapshot, as its consumer tells it; resolves with what it was. After success the checkpoint created with it
 * stays; after failure it is merged into its parent, as if it had never been. When success is claimed for a snapshot that
 * was not intact, it is ended as failed, with the code that says why: SNAPSHOT_BROKEN, DISK_CHANGED, DISK_IN_USE or
 * PATH_NOT_FOUND. After any other error the snapshot is open as before, or the next command goes on with its end. A repeat of
 * the same `request` resolves or fails as the one that ended it.
 */
export async function deleteBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
  outcome: "success" | "failure",
  request?: string,
): Promise<BlockSnapshot> {
  try {
    return await endBlockSnapshot(context, domain, name, outcome, request);
  } catch (error) {
    if (request === undefined || !isFleeceError(error, "SNAPSHOT_NOT_FOUND")) throw error;
    // The end that this request was for may have come already, and only its answer was lost.
    const ended = await findEnded(context.store, domain, ({ end }) => end.request === request);
    if (ended === undefined) throw error;
    const { end, snapshot } = ended;
    if (end.error === undefined) return { ...snapshot, domain };
    throw new FleeceError(end.error.code, end.error.message, { facts: { domain, snapshot: name } });
  }
}

function endBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
  outcome: "success" | "failure",
  request: string | undefined,
): Promise<BlockSnapshot> {
  return withSnapshot(context, domain, name, "delete", async (operation, session) => {
    const subject = snapshotSubject(operation);
    const broken = outcome === "success" ? await brokenBy(subject, await session.driver()) : undefined;
    // In this order: whoever is killed in between has lost nothing, and may say it again.
    if (outcome === "success" && broken === undefined) await operation.keepCheckpoint();
    const failure = broken === undefined ? undefined : endedAsFailed(subject, broken);
    await operation.setSubject({ ...subject, phase: "ending", end: endOf(outcome, failure, request) });
    await rememberEnd(context, operation.record);
    if (failure !== undefined) {
      await unwindQuietly(context, session, operation);
      throw failure;
    }
    await unwind(operation, session, context.host);
    return { ...subject, domain };
  });
}

function endOf(
  outcome: "success" | "failure",
  failure: FleeceError | undefined,
  request: string | undefined,
): SnapshotEnd {
  const asked = request === undefined ? {} : { request };
  if (failure === undefined) return { reason: outcome === "success" ? "DELETED" : "FAILED", ...asked };
  const { code, message } = failure;
  return { reason: "LOST", error: { code, message }, ...asked };
}

function endedAsFailed({ name, plan }: SnapshotJournal, broken: FleeceError): FleeceError {
  const loss = plan.checkpoint === undefined ? "" : `, and checkpoint ${plan.checkpoint.name} does not count`;
  return new FleeceError(
    broken.code,
    `Block snapshot ${name} did not keep its moment, so it has ended as failed${loss}: ${broken.message}`,
    { cause: broken, facts: { domain: plan.domain, snapshot: name } },
  );
}

/** For an end that has its error already, which people need to read; the next command goes on with what is left. */
async function unwindQuietly(
  context: ServiceContext,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  try {
    await unwind(operation, session, context.host);
  } catch (trouble) {
    context.log.warn({ operation: operation.record.id }, errorMessage(trouble));
  }
}
