import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import type { SnapshotFiles } from "../../ports/snapshot-files.js";
import type { HostCleaner } from "../../ports/state-store.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { undoEntry } from "../unwind.js";

export interface SettleCloneParts {
  readonly domainSnapshots: DomainSnapshotStore;
  readonly snapshotFiles: SnapshotFiles;
  readonly host: HostCleaner;
}

/** Removes what a clone left that did not come to its end: first its files, which may be what has no space, then its name. */
export async function settleClone(
  { domainSnapshots, snapshotFiles, host }: SettleCloneParts,
  session: DomainSession,
  operation: Operation,
): Promise<void> {
  const { subject, undo, domain } = operation.record;
  if (subject.kind !== "domain-snapshot-clone") return;
  for (const entry of undo.toReversed()) await undoEntry(entry, session, host);
  const { directory } = subject;
  const all = await domainSnapshots.read(domain);
  const isNamed = all.snapshots.some(({ clones }) => clones.some((clone) => clone.directory === directory));
  if (isNamed && !(await snapshotFiles.exists(directory))) {
    const snapshots = all.snapshots.map((snapshot) => ({
      ...snapshot,
      clones: snapshot.clones.filter((clone) => clone.directory !== directory),
    }));
    await domainSnapshots.write({ ...all, snapshots });
  }
  await operation.end();
}
