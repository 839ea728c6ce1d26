import { leaseLeftMs } from "../model/lease.js";
import type { SnapshotJournal } from "../model/operation.js";
import type { Logger } from "../ports/logger.js";
import type { DriverFactory } from "../ports/block-driver.js";
import type { DomainSnapshotStore } from "../ports/domain-snapshot-store.js";
import type { Machines } from "../ports/machines.js";
import type { InternalSnapshots } from "../ports/internal-snapshots.js";
import type { LayerMergers } from "../ports/layer-merger.js";
import type { SnapshotFiles } from "../ports/snapshot-files.js";
import type { BackupRepository } from "../ports/repository.js";
import type { SnapshotTakers } from "../ports/snapshot-taker.js";
import type { HostCleaner, OperationRecord, StateStore } from "../ports/state-store.js";
import type { Clock } from "../ports/clock.js";
import type { Volumes } from "../ports/volumes.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import { settleClone } from "./domain-snapshots/settle-clone.js";
import { settleCopy } from "./settle-copy.js";
import { settleDeletion } from "./domain-snapshots/settle-deletion.js";
import { settleInternal } from "./domain-snapshots/settle-internal.js";
import { rememberEnd } from "./ended-snapshots.js";
import { recoverCreation } from "./domain-snapshots/finish-creation.js";
import { DomainSession } from "./domain-session.js";
import { finishRevert } from "./domain-snapshots/finish-revert.js";
import { startAgain } from "./domain-snapshots/quit-first.js";
import { Operation } from "./operation.js";
import { keepCheckpointIfPublished } from "./published.js";
import { unwind } from "./unwind.js";

export interface RecoveryParts {
  readonly store: StateStore;
  readonly domainSnapshots: DomainSnapshotStore;
  readonly takers: SnapshotTakers;
  readonly host: HostCleaner;
  readonly clock: Clock;
  readonly log: Logger;
  readonly repositories: ReadonlyMap<string, BackupRepository>;
  readonly machines: Machines;
  readonly layers: LayerMergers;
  readonly snapshotFiles: SnapshotFiles;
  readonly internals: InternalSnapshots;
  readonly volumes: Volumes;
}

/**
 * Puts in order what killed processes left on a domain, and ends block snapshots whose lease has run out. The caller
 * holds the domain's lock, so whoever wrote a record of a backup is dead. All records are tried; then the first failure
 * is thrown, unless it was of a restore, a copy or a boot test: files that it could not remove are nobody's obstacle.
 */
export async function recoverDomain(parts: RecoveryParts, session: DomainSession): Promise<void> {
  const failures: unknown[] = [];
  for (const record of await parts.store.operations(session.domain)) {
    if (!isOver(parts, record)) continue;
    try {
      await recoverOperation(parts, session, record);
    } catch (error) {
      if (["restore", "copy", "boot-test"].includes(record.subject.kind))
        parts.log.warn({ operation: record.id }, errorMessage(error));
      else failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

async function recoverOperation(
  parts: RecoveryParts,
  session: DomainSession,
  record: OperationRecord,
): Promise<void> {
  const operation = new Operation(parts.store, record);
  const { subject, domain, id } = record;
  if (subject.kind === "block-snapshot" && !(await beginEnd(parts, operation, subject))) return;
  if (subject.kind === "domain-snapshot-revert" && subject.phase === "switched") {
    parts.log.info({ operation: id, domain }, "Finishing an unfinished revert");
    await parts.domainSnapshots.write(subject.document);
    await finishRevert(parts, operation, subject);
    return;
  }
  if (subject.kind === "domain-snapshot-revert" && subject.phase === "quitting") {
    await startAgain(parts, session, operation, subject);
    return;
  }
  if (subject.kind === "backup") await keepCheckpointIfPublished(parts.repositories, operation, subject);
  parts.log.info({ operation: id, kind: subject.kind, domain }, "Undoing an unfinished operation");
  if (subject.kind === "copy") return settleCopy(parts.repositories, operation, subject);
  if (subject.kind === "domain-snapshot-create") return recoverCreation(parts, session, operation);
  if (subject.kind === "domain-snapshot-delete") return settleDeletion(parts, session, operation);
  if (subject.kind === "domain-snapshot-internal") return settleInternal(parts, session, operation);
  if (subject.kind === "domain-snapshot-clone") return settleClone(parts, session, operation);
  await unwind(operation, session, parts.host);
}

/** False if it was renewed after all, at the last moment: renewing does not wait for the domain's lock. */
async function beginEnd(
  parts: RecoveryParts,
  operation: Operation,
  subject: SnapshotJournal,
): Promise<boolean> {
  if (subject.phase === "open") {
    const { domain, id } = operation.record;
    await operation.setSubject({ ...subject, phase: "ending", end: { reason: "LEASE_EXPIRED" } });
    // Whoever renews it from now on finds that it ends; whoever did it before that is found here.
    const now = (await parts.store.operations(domain)).find((record) => record.id === id)?.subject;
    if (now?.kind === "block-snapshot" && hasLease(parts, now)) {
      await operation.setSubject(subject);
      return false;
    }
    const leaseEnd = new Date(subject.leaseUntilMs).toISOString();
    parts.log.warn(
      { domain, snapshot: subject.name, code: "LEASE_EXPIRED" },
      `The lease of a block snapshot ended at ${leaseEnd} and was not renewed, so it ends as failed`,
    );
  }
  await rememberEnd(parts, operation.record);
  return true;
}

/**
 * The same for every domain with something to put in order, as far as it can be done now: a domain that is busy or out of
 * reach keeps its records, and its own next operation insists.
 */
export async function recoverAll(
  context: RecoveryParts & { readonly drivers: DriverFactory },
): Promise<void> {
  await context.store.sweep();
  const over = (await context.store.operations()).filter((record) => isOver(context, record));
  for (const domain of new Set(over.map((record) => record.domain))) {
    try {
      const lock = await context.store.lockDomain(domain, "recovery");
      try {
        await using session = new DomainSession(context.drivers, domain);
        await recoverDomain(context, session);
      } finally {
        await lock.release();
      }
    } catch (error) {
      if (isFleeceError(error, "DOMAIN_BUSY")) continue;
      context.log.warn({ domain }, errorMessage(error));
    }
  }
}

/** Whether nobody works on it any more, so that the next command undoes it (given the domain's lock, for a backup). */
export function isOver(
  parts: Pick<RecoveryParts, "store" | "clock">,
  { subject, owner }: OperationRecord,
): boolean {
  switch (subject.kind) {
    case "backup":
    case "domain-snapshot-create":
    case "domain-snapshot-revert":
    case "domain-snapshot-delete":
    case "domain-snapshot-clone":
    case "domain-snapshot-internal":
      return true;
    case "restore":
    case "boot-test":
    case "copy":
      return !parts.store.isAlive(owner);
    case "block-snapshot":
      return subject.phase !== "open" || !hasLease(parts, subject);
  }
}

function hasLease({ clock }: Pick<RecoveryParts, "clock">, subject: SnapshotJournal): boolean {
  return leaseLeftMs(subject, { nowMs: clock.now(), host: clock.hostTime() }) > 0;
}
