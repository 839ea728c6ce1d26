import { findSnapshot } from "../../model/domain-snapshot.js";
import type { InternalLoading } from "../../model/operation.js";
import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import type { InternalSnapshots, InternalSnapshotter } from "../../ports/internal-snapshots.js";
import type { Logger } from "../../ports/logger.js";
import type { HostCleaner } from "../../ports/state-store.js";
import { errorMessage, isFleeceError } from "../../shared/errors.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { undoEntry } from "../unwind.js";

export interface SettleInternalParts {
  readonly domainSnapshots: DomainSnapshotStore;
  readonly internals: InternalSnapshots;
  readonly host: HostCleaner;
  readonly log: Logger;
}

/**
 * Puts in order what the making, reverting or deleting of an internal snapshot left. Jobs of QEMU are waited for, a guest that
 * we have stopped runs on. A snapshot that the document does not name (not yet, or not any more) goes from all images. A revert that
 * has begun to replace content goes on to its end.
 */
export async function settleInternal(
  parts: SettleInternalParts,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  const { subject, undo, domain, id } = operation.record;
  if (subject.kind !== "domain-snapshot-internal") return;
  const isHeld = undo.some(({ kind }) => kind === "vm-held");
  // Not written down one by one: a full state directory must not keep the guest stopped, and all of it may be done twice.
  for (const entry of undo.toReversed()) {
    // The guest comes last: of what is half replaced nothing may run.
    if (entry.kind === "vm-held") continue;
    await undoEntry(entry, session, parts.host);
  }
  // A monitor serves one client at a time.
  await session.close();
  const all = await parts.domainSnapshots.read(domain);
  await using images = await parts.internals.open(all);
  if (subject.loading !== undefined) await finishLoading(parts, images, operation, subject.loading);
  else if (isHeld) await images.resume();
  if (findSnapshot(all, subject.snapshot) === undefined) {
    await images.remove(subject.snapshot, { id, undo: operation });
  }
  await operation.end();
}

/** Loads all of it once more, or else what was kept. What cannot be loaded either leaves the guest stopped. */
async function finishLoading(
  parts: SettleInternalParts,
  images: InternalSnapshotter,
  operation: Operation,
  { name, document, to, back }: InternalLoading,
): Promise<void> {
  const { domain, id } = operation.record;
  // We continue it only when all has been loaded, so that the document alone is missing.
  if (images.state === "running") return parts.domainSnapshots.write(document);
  try {
    await images.load(name, { id, undo: operation });
  } catch (error) {
    if (isFleeceError(error, "DOMAIN_UNREACHABLE")) throw error;
    parts.log.warn({ domain, snapshot: name }, errorMessage(error));
    if (back !== undefined) return finishLoading(parts, images, operation, back);
    // Images can be put back later; a QEMU that has refused will refuse again, and is left to whoever looks after it.
    if (images.state === "inactive") throw error;
    return;
  }
  await parts.domainSnapshots.write(document);
  if (to === "running") await images.resume();
}
