import type { BackupEntry, BackupLevel, IntactEntry } from "./backup.js";
import { byTime, chainOf, isIntact } from "./backup.js";
import { changesSince } from "./checkpoint.js";
import type { DiskState } from "./snapshot-plan.js";

export type LevelDecision =
  | { readonly level: "full"; readonly reason: string }
  | {
      readonly level: "incremental";
      readonly reason: string;
      readonly parent: IntactEntry;
      /** For each target, the bitmaps whose union is what changed since the parent. */
      readonly changes: ReadonlyMap<string, readonly string[]>;
    };

/**
 * Whether the next backup can be based on the newest one in the repository: its chain must be complete, and for every
 * disk the changes since its checkpoint must be known without a gap. Decided by facts, per disk; the first obstacle is
 * the reason for a full.
 */
export function decideLevel(
  disks: readonly DiskState[],
  entries: readonly BackupEntry[],
  requested?: BackupLevel,
): LevelDecision {
  if (requested === "full") return { level: "full", reason: "a full was asked for" };
  const parent = entries.filter(isIntact).toSorted(byTime).at(-1);
  if (parent === undefined)
    return { level: "full", reason: "the repository has no backup of the domain yet" };
  const chain = chainOf(entries, parent.id);
  if (!chain.complete) return { level: "full", reason: `the chain is broken: ${chain.reason}` };
  const changes = new Map<string, readonly string[]>();
  for (const disk of disks) {
    const before = parent.manifest.disks.find(({ target }) => target === disk.target);
    if (before === undefined) {
      return { level: "full", reason: `backup ${parent.id} does not hold disk ${disk.target}` };
    }
    if (before.sizeBytes !== disk.sizeBytes) {
      const reason = `disk ${disk.target} has ${disk.sizeBytes} bytes and had ${before.sizeBytes} in backup ${parent.id}`;
      return { level: "full", reason };
    }
    const since = changesSince(disk.checkpoints, parent.manifest.checkpoint);
    if (!since.valid) return { level: "full", reason: `disk ${disk.target}: ${since.reason}` };
    changes.set(disk.target, since.bitmaps);
  }
  return { level: "incremental", reason: `based on backup ${parent.id}`, parent, changes };
}
