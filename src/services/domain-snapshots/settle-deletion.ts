import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import { afterMerge, isNamed } from "../../model/layer-plan.js";
import type { DeletionJournal } from "../../model/operation.js";
import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import type { LayerMerger, LayerMergers } from "../../ports/layer-merger.js";
import type { Logger } from "../../ports/logger.js";
import type { SnapshotFiles } from "../../ports/snapshot-files.js";
import type { HostCleaner } from "../../ports/state-store.js";
import type { Volumes } from "../../ports/volumes.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { undoEntry } from "../unwind.js";

export interface SettleParts {
  readonly domainSnapshots: DomainSnapshotStore;
  readonly layers: LayerMergers;
  readonly snapshotFiles: SnapshotFiles;
  readonly volumes: Volumes;
  readonly host: HostCleaner;
  readonly log: Logger;
}

/**
 * Puts in order what a deletion left that failed, was cancelled or killed. A merge that was done is taken into the document; one
 * that was not is stopped, and all files above it show what they did. The rest of the deletion is left to whoever asks for it
 * again: merging may take hours, and who comes next may want something else.
 */
export async function settleDeletion(
  parts: SettleParts,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  const { subject, undo, domain } = operation.record;
  if (subject.kind !== "domain-snapshot-delete") return;
  for (const entry of undo.toReversed()) {
    await undoEntry(entry, session, parts.host);
    await operation.settle(entry);
  }
  // A monitor serves one client at a time.
  await session.close();
  let all = await parts.domainSnapshots.read(domain);
  if (subject.merge !== undefined) {
    await using merger = await parts.layers.open(domain);
    if (await isDone(parts, merger, subject)) {
      all = afterMerge(all, subject.merge);
      await parts.domainSnapshots.write(all);
      await merger.release(subject.merge);
    }
  }
  await removeUnnamed(parts, all, subject);
  await operation.end();
}

/**
 * The moment at which the domain goes over to `lower` is in QEMU alone. It is asked. If it has ended since, the domain had
 * gone over, most likely: the order to do so was about to be sent, and content was the same in both files.
 */
async function isDone(
  { log }: SettleParts,
  merger: LayerMerger,
  { merge, phase, snapshot }: DeletionJournal,
): Promise<boolean> {
  if (merge === undefined) return false;
  if (phase === "merged") return true;
  if (phase !== "brink") return false;
  if (merger.mode === "running") return await merger.isWritten(merge.lower);
  log.warn(
    { snapshot, file: merge.lower },
    `The domain ended while ${merge.upper} was about to be replaced by ${merge.lower}, which is taken for the newer one`,
  );
  return true;
}

/** Idempotent: what the document names stays. */
export async function removeUnnamed(
  { snapshotFiles, volumes }: Pick<SettleParts, "snapshotFiles" | "volumes">,
  all: DomainSnapshots,
  candidates: Pick<DeletionJournal, "files" | "volumes" | "directory">,
): Promise<void> {
  for (const { file, volume } of candidates.volumes ?? []) {
    if (!isNamed(all, file)) await volumes.remove(volume);
  }
  for (const file of candidates.files) if (!isNamed(all, file)) await snapshotFiles.remove(file);
  if (candidates.directory !== undefined) await snapshotFiles.removeDirectory(candidates.directory);
}
