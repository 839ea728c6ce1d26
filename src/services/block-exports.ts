import { isDeepStrictEqual } from "node:util";
import { changesSince } from "../model/checkpoint.js";
import type { FrontAddress, FrontOffer } from "../model/front-offer.js";
import { formatFrontAddress } from "../model/front-offer.js";
import type { OpenExport, SnapshotJournal } from "../model/operation.js";
import type { DomainState, PlannedDisk, PlannedExport } from "../model/snapshot-plan.js";
import type { UndoEntry, UndoKind } from "../model/undo.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { FleeceError } from "../shared/errors.js";
import { findCheckpoint } from "./checkpoints.js";
import { logExports } from "./log-exports.js";
import type { ServiceContext } from "./context.js";
import { requireDomain } from "./context.js";
import type { DomainSession } from "./domain-session.js";
import type { BlockSnapshot } from "./open-snapshots.js";
import {
  askWhetherBroken,
  brokenBy,
  listBlockSnapshots,
  snapshotSubject,
  withSnapshot,
} from "./open-snapshots.js";
import type { Operation } from "./operation.js";
import { undoEntry } from "./unwind.js";

/** A disk of a block snapshot that is offered over NBD. */
export interface BlockExport extends OpenExport {
  readonly domain: string;
  readonly snapshot: string;
  /** As with the snapshot. */
  readonly broken?: string;
}

export interface ExportRequest {
  readonly domain: string;
  readonly snapshot: string;
  /** Offer what changed since this checkpoint as a metadata context. */
  readonly since?: string;
  /** Targets; left out: all disks of the snapshot. */
  readonly disks?: readonly string[];
  /** Offer them through the front, too, to these clients; none: see `ExportFronts.offer`. */
  readonly front?: { readonly address: FrontAddress; readonly clients: readonly string[] };
  readonly signal?: AbortSignal;
}

/** Exports of a domain (of all, without one): by domain in the order of the configuration, by snapshot, oldest first. */
export async function listExports(context: ServiceContext, domain?: string): Promise<readonly BlockExport[]> {
  const domains = domain === undefined ? context.domains : [requireDomain(context, domain)];
  const lists: BlockExport[] = [];
  for (const name of domains) {
    const snapshots = (await listBlockSnapshots(context, name)).filter(({ exports }) => exports.length > 0);
    for (const snapshot of await askWhetherBroken(context, name, snapshots)) {
      lists.push(...exportsOf(name, snapshot));
    }
  }
  return lists;
}

/**
 * Offers disks of a snapshot over NBD on a private Unix socket, and through the front if asked; their names are
 * `<target>-<snapshot>`. Idempotent: a disk that is offered in the same way already stays as it is; one that is offered
 * otherwise fails with ALREADY_EXISTS. Fails with SNAPSHOT_BROKEN or DISK_CHANGED when there is no frozen moment left to offer.
 */
export function startExports(
  context: ServiceContext,
  request: ExportRequest,
): Promise<readonly BlockExport[]> {
  const { domain, since, snapshot, signal } = request;
  const offer = wantedOffer(context, request);
  return withSnapshot(context, domain, snapshot, "export", async (operation, session) => {
    const subject = snapshotSubject(operation);
    const chosen = chooseSnapshotDisks(subject, request);
    const driver = await session.driver(signal);
    const broken = await brokenBy(subject, driver);
    if (broken !== undefined) throw broken;
    const state = await driver.inspect(signal);
    if (since !== undefined) checkSince(subject, findCheckpoint(state, since));
    const planned = newExports(subject, request, offer, chosen).map((disk) =>
      plannedExport(subject, state, disk, since),
    );
    if (planned.length > 0) {
      const before = new Set(operation.record.undo.map(entryKey));
      try {
        using _hold = offer && (await holdFront(context, operation, offer.address));
        const addresses = await driver.startExports(subject.plan, planned, operation, signal);
        logExports(context, subject.plan, addresses);
        const opened = addresses.map((address) => ({
          ...address,
          ...(since === undefined ? {} : { since }),
          ...(offer === undefined ? {} : { front: offer }),
        }));
        await operation.setSubject({ ...subject, exports: [...subject.exports, ...opened] });
        await context.fronts?.follow(domain);
      } catch (error) {
        // Compared by content: what earlier exports need too (the NBD server) is registered once more each time.
        await undoEntries(context, session, operation, (entry) => !before.has(entryKey(entry)));
        throw error;
      }
    }
    const targets = new Set(chosen.map(({ target }) => target));
    return exportsOf(domain, snapshotSubject(operation)).filter(({ target }) => targets.has(target));
  });
}

/** Ends all exports of a snapshot, whether or not clients use them, and resolves with what they were. Idempotent. */
export function stopExports(
  context: ServiceContext,
  domain: string,
  snapshot: string,
): Promise<readonly BlockExport[]> {
  return withSnapshot(context, domain, snapshot, "export stop", async (operation, session) => {
    const subject = snapshotSubject(operation);
    if (subject.exports.length > 0) await rememberLoss(operation, await session.driver());
    const sockets = new Set(subject.exports.flatMap(({ front }) => frontSocket(front?.address) ?? []));
    const isExport = (entry: UndoEntry): boolean =>
      EXPORT_KINDS.has(entry.kind) || (entry.kind === "file" && sockets.has(entry.path));
    await undoEntries(context, session, operation, isExport);
    await operation.setSubject({ ...snapshotSubject(operation), exports: [] });
    return exportsOf(domain, subject);
  });
}

/** What was read so far counts only if nothing was lost by now. */
async function rememberLoss(operation: Operation, driver: BlockDriver): Promise<void> {
  const subject = snapshotSubject(operation);
  const broken = await brokenBy(subject, driver);
  if (broken !== undefined) await operation.setSubject({ ...subject, lost: broken.message });
}

const EXPORT_KINDS: ReadonlySet<UndoKind> = new Set([
  "vm-nbd-server",
  "vm-bitmap",
  "vm-export",
  "daemon-export",
]);

/** An agent that is gone cannot keep offering. */
function wantedOffer(
  { fronts, client }: ServiceContext,
  { front }: Pick<ExportRequest, "front">,
): FrontOffer | undefined {
  if (front === undefined) return undefined;
  if (fronts !== undefined) return fronts.offer(front.address, front.clients, client);
  throw new FleeceError(
    "UNSUPPORTED",
    `Cannot offer exports at ${formatFrontAddress(front.address)}: that needs an agent, which lives on after the command; run \`fleece serve\`, and leave out --embedded`,
  );
}

/** The socket of an address goes with the exports of the snapshot, so it is of one snapshot alone. */
async function holdFront(
  { fronts, scratch }: ServiceContext,
  operation: Operation,
  address: FrontAddress,
): Promise<Disposable | undefined> {
  const path = frontSocket(address);
  const isOurs = (entry: UndoEntry): boolean => entry.kind === "file" && entry.path === path;
  if (path !== undefined && !operation.record.undo.some(isOurs)) {
    await scratch.checkFile(path);
    await operation.register({ kind: "file", path });
  }
  return fronts?.hold(address);
}

function frontSocket(address: FrontAddress | undefined): string | undefined {
  return address !== undefined && "socketPath" in address ? address.socketPath : undefined;
}

function exportsOf(
  domain: string,
  { name, exports, broken }: SnapshotJournal & Pick<BlockSnapshot, "broken">,
): BlockExport[] {
  const state = broken === undefined ? {} : { broken };
  return exports.map((open) => ({ ...open, domain, snapshot: name, ...state }));
}

function chooseSnapshotDisks(
  { plan, name }: SnapshotJournal,
  { domain, disks }: ExportRequest,
): readonly PlannedDisk[] {
  const missing = disks?.find((target) => plan.disks.every((disk) => disk.target !== target));
  if (missing === undefined) return plan.disks.filter(({ target }) => disks?.includes(target) ?? true);
  const known = plan.disks.map(({ target }) => target).join(", ");
  throw new FleeceError("DISK_NOT_FOUND", `Block snapshot ${name} has no disk ${missing}; it has ${known}`, {
    facts: { domain, snapshot: name, target: missing },
  });
}

/** A snapshot knows nothing of what came after it. */
function checkSince(
  { plan, name }: SnapshotJournal,
  checkpoint: { readonly name: string; readonly order: number },
): void {
  if (plan.checkpoint === undefined || checkpoint.order < plan.checkpoint.order) return;
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected a checkpoint from before block snapshot ${name}, got ${checkpoint.name}`,
    { facts: { domain: plan.domain, snapshot: name, checkpoint: checkpoint.name } },
  );
}

function newExports(
  { exports, name }: SnapshotJournal,
  { domain, since }: ExportRequest,
  offer: FrontOffer | undefined,
  chosen: readonly PlannedDisk[],
): readonly PlannedDisk[] {
  return chosen.filter(({ target }) => {
    const open = exports.find((listed) => listed.target === target);
    if (open === undefined) return true;
    if (open.since === since && isDeepStrictEqual(open.front, offer)) return false;
    const changes = open.since === undefined ? "without changes" : `with the changes since ${open.since}`;
    const how = `${changes}${offerWords(open.front)}`;
    throw new FleeceError(
      "ALREADY_EXISTS",
      `Disk ${target} of block snapshot ${name} is exported already, ${how}; stop the exports of the snapshot first`,
      { facts: { domain, snapshot: name, target } },
    );
  });
}

function offerWords(offer: FrontOffer | undefined): string {
  if (offer === undefined) return " on the private socket";
  const { address, clients } = offer;
  return ` at ${formatFrontAddress(address)}${clients === "any" ? "" : ` for ${clients.join(", ")}`}`;
}

function plannedExport(
  { plan, name }: SnapshotJournal,
  state: DomainState,
  { target, nodes }: PlannedDisk,
  since: string | undefined,
): PlannedExport {
  const base = { target, exportName: `${target}-${name}`, nodes };
  if (since === undefined) return base;
  const checkpoints = state.disks.find((disk) => disk.target === target)?.checkpoints ?? [];
  const changes = changesSince(checkpoints, since);
  if (!changes.valid) {
    throw new FleeceError(
      "CHECKPOINT_INVALID",
      `Disk ${target} of domain ${plan.domain}: ${changes.reason}`,
      {
        facts: { domain: plan.domain, target, checkpoint: since },
      },
    );
  }
  // The snapshot's own checkpoint records what came after it. A snapshot without one cannot tell: a block too many then.
  const end = plan.checkpoint?.order ?? Infinity;
  const later = new Set(checkpoints.filter(({ order }) => order >= end).map(({ bitmap }) => bitmap));
  return { ...base, changes: { since, bitmaps: changes.bitmaps.filter((bitmap) => !later.has(bitmap)) } };
}

function entryKey(entry: UndoEntry): string {
  return JSON.stringify(entry);
}

/** Undoes a part of what an operation holds, newest first; the first failure stops it, and the rest stays journalled. */
export async function undoEntries(
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
