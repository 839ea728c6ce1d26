import {
  type BackupEntry,
  type BackupLevel,
  byTime,
  chainOfDisk,
  type IntactEntry,
  isIntact,
  type ManifestDisk,
  momentMs,
} from "./backup.js";
import { type Doubts, flawOf, NO_DOUBTS } from "./doubts.js";

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
  /** Why the copy is not based on the one that would be next; undefined: it is, or there is none. */
  readonly flaw: string | undefined;
}

/** Its mode and reason are those of the copy. */
export interface CopiedDisk extends Pick<
  ManifestDisk,
  "target" | "sourceFormat" | "sourceFile" | "sizeBytes" | "mode" | "reason" | "readBytes" | "durationMs"
> {
  /** What differs from the parent is not known: all of it is read, and compared by digests. */
  readonly isCompared?: boolean;
}

/**
 * The copy is based on the nearest of the backups that the original is based on which the second repository has, sound with its
 * whole chain; it stores what the original and those in between store. What a backup shows is the same in both, however
 * chains were merged, so that every such base is right. Where there is none, a full stays one; others, also those that a merge
 * has made a full of, are compared with the newest sound backup of the second repository that is not younger. Without that
 * the copy is a full. `chain` ends with the original.
 */
export function planCopy(
  chain: readonly IntactEntry[],
  there: readonly BackupEntry[],
  doubts: Doubts = NO_DOUBTS,
): CopyPlan {
  const original = chain.at(-1);
  if (original === undefined) throw new RangeError("Expected a chain of at least one backup, got none");
  const { manifest } = original;
  const sound = there.filter(isIntact).filter(({ id }) => flawOf(there, id, doubts) === undefined);
  const older = chain.slice(0, -1);
  const base = older.findLast(({ id }) => sound.some((entry) => entry.id === id));
  const nearest = older.findLast(({ id }) => there.some((entry) => entry.id === id));
  const flaw = nearest === base || nearest === undefined ? undefined : flawOf(there, nearest.id, doubts);
  if (base === undefined) return planComparison(original, { there, sound, doubts, flaw });
  const parent = sound.find(({ id }) => id === base.id);
  if (base === older.at(-1))
    return { level: manifest.level, reason: manifest.reason, parent, disks: manifest.disks, flaw };
  const why = flaw ?? "those that it was based on in between are not in this repository";
  const disks = manifest.disks.map((disk): CopiedDisk => {
    if (disk.mode === "whole") return disk;
    const isBased = chainOfDisk(chain, disk.target).slice(0, -1).includes(base);
    return { ...disk, mode: isBased ? disk.mode : "whole", reason: why };
  });
  return asPlan(parent, disks, why, flaw);
}

interface Comparable {
  readonly there: readonly BackupEntry[];
  readonly sound: readonly IntactEntry[];
  readonly doubts: Doubts;
  /** Of what the original is based on. */
  readonly flaw: string | undefined;
}

/** Of one that has no base in the second repository, where what it was based on is gone. */
function planComparison(original: IntactEntry, { there, sound, doubts, ...found }: Comparable): CopyPlan {
  const { manifest } = original;
  // Whoever took a full wanted a new chain, unlike a merge that has made one of an incremental.
  if (manifest.level === "full" && !manifest.disks.some(isMerged)) {
    const { reason, disks } = manifest;
    return { level: "full", reason, parent: undefined, disks, flaw: undefined };
  }
  const newest = newestUpTo(original, there);
  const parent = newestUpTo(original, sound);
  const passedOver = newest === undefined || newest === parent ? undefined : flawOf(there, newest.id, doubts);
  const flaw = found.flaw ?? passedOver;
  const why = flaw ?? "none that it was based on is in this repository";
  const disks = manifest.disks.map((disk): CopiedDisk => {
    const before = parent?.manifest.disks.find(({ target }) => target === disk.target);
    if (before?.sizeBytes !== disk.sizeBytes) return { ...disk, mode: "whole", reason: why };
    return { ...disk, mode: "compare", isCompared: true, reason: why };
  });
  return asPlan(parent, disks, why, flaw);
}

function newestUpTo<Entry extends BackupEntry>(
  original: IntactEntry,
  entries: readonly Entry[],
): Entry | undefined {
  const limitMs = momentMs(original);
  return entries
    .filter((entry) => momentMs(entry) <= limitMs)
    .toSorted(byTime)
    .at(-1);
}

/** A merge gives digests a name of their own. */
function isMerged({ target, digests }: ManifestDisk): boolean {
  return digests !== `${target}.digests`;
}

/** A backup of which every disk is whole depends on nothing. */
function asPlan(
  parent: IntactEntry | undefined,
  disks: readonly CopiedDisk[],
  why: string,
  flaw: string | undefined,
): CopyPlan {
  if (parent === undefined || disks.every(({ mode }) => mode === "whole")) {
    return { level: "full", reason: why, parent: undefined, disks, flaw };
  }
  return { level: "incremental", reason: `based on backup ${parent.id}: ${why}`, parent, disks, flaw };
}

/** Since which backup a disk's content is copied; undefined: all of it. */
export function copiedSince({ parent }: CopyPlan, { mode, isCompared }: CopiedDisk): string | undefined {
  return mode === "whole" || isCompared === true ? undefined : parent?.id;
}
