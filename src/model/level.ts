import type { BackupEntry, BackupLevel, IntactEntry } from "./backup.js";
import { byTime, isIntact } from "./backup.js";
import { changesSince } from "./checkpoint.js";
import { type Doubts, flawOf, NO_DOUBTS } from "./doubts.js";
import type { DiskState } from "./snapshot-plan.js";

export type LevelDecision =
  | { readonly level: "full"; readonly reason: string; readonly disks: DiskDecisions }
  | {
      readonly level: "incremental";
      readonly reason: string;
      readonly parent: IntactEntry;
      readonly disks: DiskDecisions;
    };

/** By target. */
export type DiskDecisions = ReadonlyMap<string, DiskDecision>;

export type DiskDecision =
  /** The union of these bitmaps is what changed since the parent. */
  | { readonly mode: "changes"; readonly reason: string; readonly bitmaps: readonly string[] }
  | { readonly mode: "compare" | "whole"; readonly reason: string };

/**
 * Which backup in the repository the next one is based on, and how each disk is read, by facts, per disk. A lost
 * checkpoint costs reading that disk, and no more: what is stored is what differs.
 *
 * Of several possible parents the one wins that has the fewest bytes to read beyond what bitmaps tell, for that is what
 * the guest feels; then the one with the fewest to store whole; then the newest. So if disk A is sound since backup 5 and
 * disk B since backup 3 only, it is backup 3 if A's bitmaps reach so far (A stores again what 4 and 5 have, B is not
 * read), else backup 5. A parent from which no disk takes anything is none: a full depends on nothing.
 */
export function decideLevel(
  disks: readonly DiskState[],
  entries: readonly BackupEntry[],
  requested?: BackupLevel,
  doubts: Doubts = NO_DOUBTS,
): LevelDecision {
  if (requested === "full") return full(disks, "a full was asked for");
  let reason: string | undefined;
  let best: Candidate | undefined;
  for (const parent of entries.filter(isIntact).toSorted(byTime).toReversed()) {
    const candidate = asParent(disks, entries, parent, doubts);
    if (typeof candidate === "string") reason ??= candidate;
    else if (best === undefined || isCheaper(candidate, best)) best = candidate;
  }
  if (best === undefined) return full(disks, reason ?? nothingIntact(entries));
  const { parent, decisions } = best;
  const reasons = `${explain(parent, decisions)}${passedOver(disks, entries, parent, doubts)}`;
  return { level: "incremental", reason: cut(reasons), parent, disks: decisions };
}

/** After a revert the newest backups are of a state that is no more. */
function passedOver(
  disks: readonly DiskState[],
  entries: readonly BackupEntry[],
  parent: IntactEntry,
  doubts: Doubts,
): string {
  const newest = entries.filter(isIntact).toSorted(byTime).at(-1);
  if (newest === undefined || newest.id === parent.id) return "";
  const candidate = asParent(disks, entries, newest, doubts);
  if (typeof candidate === "string") return "";
  const compared = [...candidate.decisions].find(([, { mode }]) => mode === "compare");
  if (compared === undefined) return "";
  const [target, { reason }] = compared;
  return `; backup ${newest.id} is newer, but on it disk ${target} would be compared: ${reason}`;
}

function full(disks: readonly DiskState[], reason: string): LevelDecision {
  const decisions = disks.map(({ target }) => [target, { mode: "whole", reason }] as const);
  return { level: "full", reason, disks: new Map(decisions) };
}

function nothingIntact(entries: readonly BackupEntry[]): string {
  return entries.length === 0
    ? "the repository has no backup of the domain yet"
    : "no backup of the domain in the repository is intact";
}

interface Candidate {
  readonly parent: IntactEntry;
  readonly decisions: DiskDecisions;
  /** Of the disks that must be read from end to end. */
  readonly readBytes: number;
  /** Of those among them that are stored whole. */
  readonly wholeBytes: number;
}

function isCheaper(a: Candidate, b: Candidate): boolean {
  return a.readBytes < b.readBytes || (a.readBytes === b.readBytes && a.wholeBytes < b.wholeBytes);
}

/** What a backup on this parent would be, or why it cannot be one. */
function asParent(
  disks: readonly DiskState[],
  entries: readonly BackupEntry[],
  parent: IntactEntry,
  doubts: Doubts,
): Candidate | string {
  const flaw = flawOf(entries, parent.id, doubts);
  if (flaw !== undefined) return flaw;
  const decisions = new Map<string, DiskDecision>();
  let readBytes = 0;
  let wholeBytes = 0;
  for (const disk of disks) {
    const decision = decideDisk(disk, parent, doubts);
    decisions.set(disk.target, decision);
    if (decision.mode !== "changes") readBytes += disk.sizeBytes;
    if (decision.mode === "whole") wholeBytes += disk.sizeBytes;
  }
  const based = [...decisions.values()].some(({ mode }) => mode !== "whole");
  if (!based)
    return cut([...decisions].map(([target, { reason }]) => `disk ${target}: ${reason}`).join("; "));
  return { parent, decisions, readBytes, wholeBytes };
}

/**
 * Bitmaps tell what changed in an image, so they count only for the image that was backed up: disks that have changed
 * places carry each other's. Comparing is right whatever became of the disk, and reads no more than storing it whole.
 */
function decideDisk(disk: DiskState, { id, manifest }: IntactEntry, doubts: Doubts): DiskDecision {
  const before = manifest.disks.find(({ target }) => target === disk.target);
  if (before === undefined) return { mode: "whole", reason: `backup ${id} does not hold it` };
  if (before.sizeBytes !== disk.sizeBytes) {
    const reason = `it has ${disk.sizeBytes} bytes and had ${before.sizeBytes} in backup ${id}`;
    return { mode: "whole", reason };
  }
  if (before.sourceFile !== undefined && before.sourceFile !== disk.file) {
    return {
      mode: "compare",
      reason: `its image is ${disk.file} and was ${before.sourceFile} in backup ${id}`,
    };
  }
  const { otherLayer } = disk;
  if (otherLayer !== undefined) {
    const { found, expected } = otherLayer;
    const reason = `its image is ${found}, but by its domain snapshots it should be ${expected}`;
    return { mode: "compare", reason };
  }
  const missed = doubts.disks.get(disk.target);
  if (missed !== undefined && Date.parse(manifest.time) <= missed.timeMs) {
    return { mode: "compare", reason: missed.reason };
  }
  const since = changesSince(disk.checkpoints, manifest.checkpoint);
  if (!since.valid) return { mode: "compare", reason: since.reason };
  return {
    mode: "changes",
    reason: `its changes since backup ${id} are known without a gap`,
    bitmaps: since.bitmaps,
  };
}

function explain(parent: IntactEntry, decisions: DiskDecisions): string {
  const exceptions = [...decisions].flatMap(([target, { mode, reason }]) => {
    if (mode === "changes") return [];
    const how = mode === "compare" ? "is read whole and compared with it" : "is stored whole";
    return [`; disk ${target} ${how}: ${reason}`];
  });
  return `based on backup ${parent.id}${exceptions.join("")}`;
}

/** Each disk has its own reason in the manifest; all of them together are to be read by people, however many there are. */
const MAX_REASON_LENGTH = 2000;

function cut(reason: string): string {
  return reason.length <= MAX_REASON_LENGTH ? reason : `${reason.slice(0, MAX_REASON_LENGTH)}…`;
}
