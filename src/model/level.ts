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
 * Which backup in the repository the next one can be based on: the newest whose chain is complete and for which every
 * disk's changes since its checkpoint are known without a gap. Decided by facts, per disk. If there is none, what is in
 * the way of the newest is the reason for a full.
 */
export function decideLevel(
  disks: readonly DiskState[],
  entries: readonly BackupEntry[],
  requested?: BackupLevel,
): LevelDecision {
  if (requested === "full") return { level: "full", reason: "a full was asked for" };
  let reason: string | undefined;
  for (const parent of entries.filter(isIntact).toSorted(byTime).toReversed()) {
    const base = asBase(disks, entries, parent);
    if (base.fits)
      return { level: "incremental", reason: `based on backup ${parent.id}`, parent, changes: base.changes };
    reason ??= base.reason;
  }
  return { level: "full", reason: reason ?? nothingIntact(entries) };
}

function nothingIntact(entries: readonly BackupEntry[]): string {
  return entries.length === 0
    ? "the repository has no backup of the domain yet"
    : "no backup of the domain in the repository is intact";
}

type Base =
  | { readonly fits: true; readonly changes: ReadonlyMap<string, readonly string[]> }
  | { readonly fits: false; readonly reason: string };

function asBase(disks: readonly DiskState[], entries: readonly BackupEntry[], parent: IntactEntry): Base {
  const chain = chainOf(entries, parent.id);
  if (!chain.complete) return { fits: false, reason: `the chain is broken: ${chain.reason}` };
  const changes = new Map<string, readonly string[]>();
  for (const disk of disks) {
    const before = parent.manifest.disks.find(({ target }) => target === disk.target);
    if (before === undefined) {
      return { fits: false, reason: `backup ${parent.id} does not hold disk ${disk.target}` };
    }
    if (before.sizeBytes !== disk.sizeBytes) {
      const reason = `disk ${disk.target} has ${disk.sizeBytes} bytes and had ${before.sizeBytes} in backup ${parent.id}`;
      return { fits: false, reason };
    }
    const since = changesSince(disk.checkpoints, parent.manifest.checkpoint);
    if (!since.valid) return { fits: false, reason: `disk ${disk.target}: ${since.reason}` };
    changes.set(disk.target, since.bitmaps);
  }
  return { fits: true, changes };
}
