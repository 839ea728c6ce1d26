import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshots,
  LastRevert,
  RevertCost,
  RevertDomainSnapshotRequest,
  RevertOutcome,
} from "../../model/domain-snapshot.js";
import { findSnapshot } from "../../model/domain-snapshot.js";
import { FleeceError } from "../../shared/errors.js";

/** What requests have done that are sent again after a kill; to be asked once leftovers are in order. */

/** The snapshot that the request has made. Fails with MEMORY_SAVE_FAILED if its memory is lost, as the creation did. */
export function repeatedCreation(
  { domain, snapshots }: DomainSnapshots,
  { request, diskOnly }: CreateDomainSnapshotRequest,
): DomainSnapshot | undefined {
  if (request === undefined) return undefined;
  const made = snapshots.find((snapshot) => snapshot.request === request);
  if (made === undefined || made.memory !== undefined) return made;
  if (diskOnly === true || made.state === "inactive") return made;
  throw new FleeceError(
    "MEMORY_SAVE_FAILED",
    `The memory of domain snapshot ${made.name} is lost, so that it is kept as a disk-only one`,
    { facts: { domain, snapshot: made.name } },
  );
}

/** How the revert has ended that the request asked for, if it was the last one. */
export function repeatedRevert(
  all: DomainSnapshots,
  { request, name }: RevertDomainSnapshotRequest,
): RevertOutcome | undefined {
  const { lastRevert: last } = all;
  const snapshot = findSnapshot(all, name);
  if (request === undefined || last?.request !== request || snapshot === undefined) return undefined;
  const { state, keptAs, endedCheckpoints, risks, pid } = last;
  return {
    snapshot,
    state,
    keptAs,
    endedCheckpoints,
    risks,
    downtimeMs: 0,
    ...(pid === undefined ? {} : { pid }),
  };
}

/** The document with a revert that has a key, and without an earlier one's. */
export function withLastRevert(
  { lastRevert: _, ...all }: DomainSnapshots,
  { request, name }: RevertDomainSnapshotRequest,
  { keptAs, endedCheckpoints, risks, state, pid }: RevertCost & Pick<LastRevert, "state" | "pid">,
): DomainSnapshots {
  if (request === undefined) return all;
  const lastRevert: LastRevert = {
    ...{ request, name, state, endedCheckpoints, risks },
    ...(keptAs === undefined ? {} : { keptAs }),
    ...(pid === undefined ? {} : { pid }),
  };
  return { ...all, lastRevert };
}
