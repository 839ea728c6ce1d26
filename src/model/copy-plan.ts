import {
  type BackupEntry,
  type BackupLevel,
  byTime,
  chainOf,
  chainOfDisk,
  type IntactEntry,
  isIntact,
  type ManifestDisk,
  momentMs,
} from "./backup.js";
import { type Doubts, NO_DOUBTS } from "./doubts.js";

/** Which backups of a domain are to be in the second repository. */
export type CopyWish =
  /** All that are newer than the newest copy there. */
  | { readonly kind: "newer" }
  /** The newest alone. */
  | { readonly kind: "latest" }
  /** These, whatever is there. */
  | { readonly kind: "ids"; readonly ids: readonly string[] };

/**
 * Which of them are missing, oldest first; `there` are those of the domain in the second repository. What its retention has let go is
 * older than its newest copy, and does not come back unless it is asked for by id. Backups that were taken to the second
 * repository itself do not count.
 */
export function missingBackups(
  here: readonly BackupEntry[],
  there: readonly BackupEntry[],
  wish: CopyWish,
): readonly BackupEntry[] {
  const known = new Set(there.map(({ id }) => id));
  const missing = here.filter(({ id }) => !known.has(id)).toSorted(byTime);
  if (wish.kind === "ids") return missing.filter(({ id }) => wish.ids.includes(id));
  const copies = there.filter((entry) => entry.copiedFrom !== undefined);
  const newestMs = Math.max(-Infinity, ...copies.map(momentMs));
  const newer = missing.filter((entry) => isIntact(entry) && momentMs(entry) > newestMs);
  if (wish.kind === "newer") return newer;
  const newest = here.filter(isIntact).toSorted(byTime).at(-1);
  return newer.filter(({ id }) => id === newest?.id);
}

/** How a backup is stored in the second repository. */
export interface CopyPlan {
  readonly level: BackupLevel;
  readonly reason: string;
  /** In the second repository; undefined for a full. */
  readonly parent: IntactEntry | undefined;
  readonly disks: readonly CopiedDisk[];
}

/** Its mode and reason are those of the copy. */
export type CopiedDisk = Pick<
  ManifestDisk,
  "target" | "sourceFormat" | "sourceFile" | "sizeBytes" | "mode" | "reason" | "readBytes" | "durationMs"
>;

/**
 * The copy is based on the nearest of the backups that the original is based on which the second repository has, sound with its
 * whole chain; it stores what the original and those in between store. Where there is none, the copy is a full. What a
 * backup shows is the same in both, however chains were merged, so that every base is right. `chain` ends with the original.
 */
export function planCopy(
  chain: readonly IntactEntry[],
  there: readonly BackupEntry[],
  doubts: Doubts = NO_DOUBTS,
): CopyPlan {
  const original = chain.at(-1);
  if (original === undefined) throw new RangeError("Expected a chain of at least one backup, got none");
  const { manifest } = original;
  const older = chain.slice(0, -1);
  const base = older.findLast(({ id }) => isSound(there, id, doubts));
  const isAlike = base?.id === older.at(-1)?.id;
  if (isAlike) {
    const parent = there.filter(isIntact).find(({ id }) => id === base?.id);
    return { level: manifest.level, reason: manifest.reason, parent, disks: manifest.disks };
  }
  const why = "those that it was based on in between are not in this repository";
  const reason = base === undefined ? "none that it was based on is in this repository" : why;
  const disks = manifest.disks.map((disk): CopiedDisk => {
    const links = chainOfDisk(chain, disk.target);
    const isBased = base !== undefined && links.slice(0, -1).includes(base);
    if (disk.mode === "whole" || isBased)
      return { ...disk, reason: disk.mode === "whole" ? disk.reason : reason };
    return { ...disk, mode: "whole", reason };
  });
  const isFull = disks.every(({ mode }) => mode === "whole");
  const parent = isFull ? undefined : there.filter(isIntact).find(({ id }) => id === base?.id);
  return {
    level: isFull ? "full" : "incremental",
    reason: isFull ? reason : `based on backup ${base?.id ?? ""}: ${why}`,
    parent,
    disks,
  };
}

function isSound(entries: readonly BackupEntry[], id: string, doubts: Doubts): boolean {
  const chain = chainOf(entries, id);
  return chain.complete && chain.entries.every((member) => !doubts.backups.has(member.id));
}

/** Since which backup a disk's content is copied; undefined: all of it. */
export function copiedSince({ parent }: CopyPlan, { mode }: CopiedDisk): string | undefined {
  return mode === "whole" ? undefined : parent?.id;
}
