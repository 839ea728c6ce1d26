import { findSnapshot } from "../../model/domain-snapshot.js";
import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import type { InternalSnapshots } from "../../ports/internal-snapshots.js";
import type { HostCleaner } from "../../ports/state-store.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { undoEntry } from "../unwind.js";

export interface SettleInternalParts {
  readonly domainSnapshots: DomainSnapshotStore;
  readonly internals: InternalSnapshots;
  readonly host: HostCleaner;
}

/**
 * Puts in order what the making, reverting or deleting of an internal snapshot left. Jobs of QEMU are waited for, a guest that
 * we have stopped runs on. A snapshot that the document does not name (not yet, or not any more) goes from all images.
 */
export async function settleInternal(
  parts: SettleInternalParts,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  const { subject, undo, domain, id } = operation.record;
  if (subject.kind !== "domain-snapshot-internal") return;
  const isHeld = undo.some(({ kind }) => kind === "vm-held");
  for (const entry of undo.toReversed()) {
    await undoEntry(entry, session, parts.host);
    await operation.settle(entry);
  }
  // A monitor serves one client at a time.
  await session.close();
  const all = await parts.domainSnapshots.read(domain);
  await using images = await parts.internals.open(all);
  if (isHeld) await images.resume();
  if (findSnapshot(all, subject.snapshot) === undefined) {
    await images.remove(subject.snapshot, { id, undo: operation });
  }
  await operation.end();
}
