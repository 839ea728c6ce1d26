import type {
  DomainSnapshot,
  DomainSnapshotOptions,
  SnapshotDisk,
  SnapshotMemory,
} from "../../model/domain-snapshot.js";
import { findSnapshot } from "../../model/domain-snapshot.js";
import { type CreationPlan, filesOf, addSnapshot } from "../../model/domain-snapshot-plan.js";
import type { DomainSnapshotJournal } from "../../model/operation.js";
import { consistencyOf } from "../../model/quiesce.js";
import type { UndoEntry } from "../../model/undo.js";
import type { Clock } from "../../ports/clock.js";
import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import type { Logger } from "../../ports/logger.js";
import type { SnapshotFiles } from "../../ports/snapshot-files.js";
import type { SnapshotTakers } from "../../ports/snapshot-taker.js";
import type { HostCleaner } from "../../ports/state-store.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { undoEntry, unwind } from "../unwind.js";

export interface CreationParts {
  readonly domainSnapshots: DomainSnapshotStore;
  readonly takers: SnapshotTakers;
  readonly snapshotFiles: SnapshotFiles;
  readonly host: HostCleaner;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Ends a creation that was broken off, wherever it stood: back before the disks have changed, forward after that, for the
 * guest writes to the overlays then. Idempotent. Returns the snapshot if it exists in the end.
 */
export async function settleCreation(
  parts: CreationParts,
  session: DomainSession,
  operation: Operation,
): Promise<DomainSnapshot | undefined> {
  const subject = creationOf(operation);
  const { plan } = subject;
  const published = findSnapshot(await parts.domainSnapshots.read(plan.domain), plan.name);
  if (published !== undefined) {
    await tidy(parts, session, operation, subject);
    return published;
  }
  // A guest that we have stopped comes before all files.
  await releaseGuest(parts, session, operation);
  const where = subject.phase === "preparing" ? "before" : await lookWhere(parts, session, subject);
  if (where === "after") return finishCreation(parts, session, operation, subject);
  if (where === "restarted" && subject.phase === "switched") {
    // What the guest wrote before that is in the overlays, and nobody but the administrator can tell whether it is of use.
    const files = plan.disks.map(({ overlay }) => overlay.path);
    parts.log.warn(
      { domain: plan.domain, files },
      `Domain ${plan.domain} was started anew without the overlays of domain snapshot ${plan.name}, which is given up; they are left: ${files.join(", ")}`,
    );
    await keepFiles(parts, operation, subject);
  }
  await unwind(operation, session, parts.host);
  return undefined;
}

/** What is left to do once the disks have changed: to digest the memory, and to write the snapshot into its document. */
export async function finishCreation(
  parts: CreationParts,
  session: DomainSession,
  operation: Operation,
  subject: DomainSnapshotJournal,
  { onProgress }: Pick<DomainSnapshotOptions, "onProgress"> = {},
): Promise<DomainSnapshot> {
  const { plan, timeMs = 0, pausedMs = 0, quiesce } = subject;
  onProgress?.({ phase: "checking" });
  const { memory, lost } = await sealMemory(parts, subject);
  onProgress?.({ phase: "finishing" });
  const mode = plan.state === "inactive" ? "inactive" : "running";
  const snapshot: DomainSnapshot = {
    name: plan.name,
    description: plan.description,
    timeMs,
    ...(plan.parent === undefined ? {} : { parent: plan.parent }),
    state: plan.state,
    kind: "external",
    live: plan.live,
    ...(memory === undefined ? { consistency: consistencyOf(mode, quiesce) } : { memory }),
    pausedMs,
    disks: disksOf(plan),
    ...(memory === undefined || plan.machine === undefined ? {} : { machine: plan.machine }),
    ...(plan.directory === undefined ? {} : { directory: plan.directory }),
    clones: [],
    ...(plan.leftOut.length === 0 ? {} : { leftOut: plan.leftOut }),
    ...(plan.request === undefined ? {} : { request: plan.request }),
  };
  const all = await parts.domainSnapshots.read(plan.domain);
  await parts.domainSnapshots.write(addSnapshot(all, plan, snapshot));
  await tidy(parts, session, operation, subject);
  if (lost === undefined) return snapshot;
  throw new FleeceError(
    "MEMORY_SAVE_FAILED",
    `The memory of domain snapshot ${plan.name} is lost, so that it is kept as a disk-only one: ${errorMessage(lost)}`,
    { cause: lost, facts: { domain: plan.domain, snapshot: plan.name } },
  );
}

function disksOf({ disks, volumes = [] }: CreationPlan): readonly SnapshotDisk[] {
  return [
    ...disks.map(({ target, file, format, sizeBytes, bitmaps }) => ({
      ...{ target, file, format, sizeBytes, bitmaps },
    })),
    ...volumes.map(({ target, file, sizeBytes, snapshot }) => ({
      ...{ target, file, format: "raw" as const, sizeBytes, bitmaps: [], volume: snapshot },
    })),
  ];
}

/** A memory file counts only if it is known to be whole: not after a restart of the host, which may have lost the end of it. */
async function sealMemory(
  { snapshotFiles, clock }: CreationParts,
  { plan, memoryBytes, host }: DomainSnapshotJournal,
): Promise<{ readonly memory?: SnapshotMemory; readonly lost?: unknown }> {
  if (plan.memory === undefined || memoryBytes === undefined) return {};
  const { path } = plan.memory;
  try {
    if (host !== clock.hostTime().start) {
      throw new FleeceError("DAMAGED", `The host was restarted before ${path} was complete`, {
        facts: { path },
      });
    }
    const sha256 = await snapshotFiles.sealMemory(path, memoryBytes);
    return { memory: { kind: "external", file: path, sizeBytes: memoryBytes, sha256 } };
  } catch (lost) {
    return { lost };
  }
}

/** The snapshot is in its document: nothing of it may be undone any more, but the guest's stop. */
async function tidy(
  parts: CreationParts,
  session: DomainSession,
  operation: Operation,
  subject: DomainSnapshotJournal,
): Promise<void> {
  const { plan } = subject;
  const all = await parts.domainSnapshots.read(plan.domain);
  const hasMemory = findSnapshot(all, plan.name)?.memory !== undefined;
  await keepFiles(parts, operation, subject, hasMemory);
  const volumes = operation.record.undo.filter(({ kind }) => kind === "volume");
  if (volumes.length > 0) await operation.settle(...volumes);
  await unwind(operation, session, parts.host);
}

/** Forgets how to remove what the snapshot consists of; memory that it does not have is removed. */
async function keepFiles(
  { snapshotFiles }: CreationParts,
  operation: Operation,
  { plan }: DomainSnapshotJournal,
  keepsMemory = true,
): Promise<void> {
  const kept = filesOf(plan).filter((file) => keepsMemory || file.path !== plan.memory?.path);
  for (const file of kept) await snapshotFiles.dropFirstName(file);
  const names = new Set(kept.map(({ firstName }) => firstName));
  await operation.settle(
    ...operation.record.undo.filter(
      (entry) =>
        entry.kind === "vm-node" ||
        entry.kind === "empty-directory" ||
        (entry.kind === "linked-file" && names.has(entry.path)),
    ),
  );
}

const OF_GUEST: ReadonlySet<UndoEntry["kind"]> = new Set(["vm-saving", "vm-frozen", "vm-held"]);

/** What fails here is tried again with all the rest. */
async function releaseGuest(
  { host, log }: CreationParts,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  for (const entry of operation.record.undo.filter(({ kind }) => OF_GUEST.has(kind)).toReversed()) {
    try {
      await undoEntry(entry, session, host);
      await operation.settle(entry);
    } catch (error) {
      log.warn({ domain: session.domain, operation: operation.record.id }, errorMessage(error));
    }
  }
}

/**
 * Whether the disks have changed, which only QEMU knows. Without a QEMU the overlays count: they hold what the guest wrote last, or
 * nothing, and then they show just what is below them.
 */
async function lookWhere(
  { takers }: CreationParts,
  session: DomainSession,
  { plan }: DomainSnapshotJournal,
): Promise<"before" | "after" | "restarted"> {
  // LVM was done before it was written that the disks change.
  if (plan.disks.length === 0) return "after";
  await session.close();
  await using taker = await takers.open(plan.domain);
  if (taker.mode === "inactive") return "after";
  const active = await taker.activeFiles(plan);
  const overlays = new Set(plan.disks.map(({ overlay }) => overlay.path));
  return [...active.values()].some((file) => overlays.has(file)) ? "after" : "restarted";
}

function creationOf({ record }: Operation): DomainSnapshotJournal {
  if (record.subject.kind === "domain-snapshot-create") return record.subject;
  throw new FleeceError(
    "INTERNAL",
    `Expected the creation of a domain snapshot, got a ${record.subject.kind}`,
  );
}

/** Of an earlier process: nobody waits for the memory any more. */
export async function recoverCreation(
  parts: CreationParts,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  try {
    await settleCreation(parts, session, operation);
  } catch (error) {
    if (!isFleeceError(error, "MEMORY_SAVE_FAILED")) throw error;
    parts.log.warn({ domain: session.domain, operation: operation.record.id }, error.message);
  }
}
