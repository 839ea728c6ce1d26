import type { ErrorCode } from "../shared/errors.js";
import { formatBytes, KIB } from "../shared/units.js";
import type { Finding } from "./finding.js";
import type { LevelDecision } from "./level.js";
import type { DiskState } from "./snapshot-plan.js";

/** What directories say about the next backup: whether they can be used, and whether there is room. */

/** Why something cannot be used, as an operation would be told. */
export interface Trouble {
  readonly code: ErrorCode;
  readonly message: string;
}

/** A directory, or why it cannot be used. */
export type Place =
  | { readonly usable: true; readonly freeBytes: number }
  | { readonly usable: false; readonly trouble: Trouble };

/** An empty qcow2 image, as we make it: three pages, and holes. */
const EMPTY_IMAGE_BYTES = 12 * KIB;
/** An empty backup of a disk: clusters that QEMU writes at once, digests and manifest. */
const EMPTY_BACKUP_BYTES = 256 * KIB;

export function stateFinding(domain: string, trouble: Trouble | undefined): Finding {
  const subject = { domain };
  if (trouble === undefined) {
    return {
      code: "STATE_READY",
      subject,
      found: "The state directory can be used",
      advice: "Nothing to do",
    };
  }
  return {
    code: "STATE_UNUSABLE",
    errorCode: trouble.code,
    subject,
    found: trouble.message,
    advice: "Without locks and a journal nothing may be started; correct stateDir or its permissions",
  };
}

/**
 * Scratch space takes the old content of what the guest overwrites: never more than the disks hold (zeroes take none), and
 * what they hold is at most their size.
 */
export function scratchFinding(domain: string, disks: readonly DiskState[], place: Place): Finding {
  const subject = { domain };
  if (!place.usable) {
    return {
      code: "SCRATCH_UNUSABLE",
      errorCode: place.trouble.code,
      subject,
      found: place.trouble.message,
      advice:
        "A running domain needs scratch space for the old content of what the guest overwrites meanwhile",
    };
  }
  const { freeBytes } = place;
  const worst = sum(disks, ({ sizeBytes }) => sizeBytes);
  const held = sum(disks, heldBytes);
  const found = `The scratch directory has ${formatBytes(freeBytes)} free; the disks hold ${formatBytes(held)} of ${formatBytes(worst)}`;
  if (freeBytes < EMPTY_IMAGE_BYTES * disks.length) {
    const advice = "Free space there, or set scratchDir to a directory on another file system";
    return { code: "SCRATCH_FULL", errorCode: "NO_SPACE", subject, found, advice };
  }
  if (freeBytes < held) {
    const advice = `If the guest overwrites more than ${formatBytes(freeBytes)} during a backup, the backup fails; the guest's writes do not`;
    return { code: "SCRATCH_SMALL", subject, found, advice };
  }
  if (freeBytes < worst) {
    const advice = "That is enough while the disks hold no more than now";
    return { code: "SCRATCH_TIGHT", subject, found, advice };
  }
  return { code: "SCRATCH_READY", subject, found, advice: "That is enough whatever the guest overwrites" };
}

export interface RepositoryFacts {
  readonly name: string;
  readonly place: Place;
}

export function repositoryFinding(
  domain: string,
  disks: readonly DiskState[],
  { name, place }: RepositoryFacts,
  decision: LevelDecision | undefined,
): Finding {
  const subject = { domain };
  if (!place.usable) {
    return {
      code: "REPOSITORY_UNUSABLE",
      errorCode: place.trouble.code,
      subject,
      found: place.trouble.message,
      advice:
        "Mount or create the directory; it is never made by a backup, which would fill the wrong file system",
    };
  }
  const { freeBytes } = place;
  const needed = decision === undefined ? undefined : neededBytes(disks, decision);
  const free = `Repository ${name} has ${formatBytes(freeBytes)} free`;
  const found = needed === undefined ? free : `${free}; the next backup takes up to ${formatBytes(needed)}`;
  if (freeBytes < EMPTY_BACKUP_BYTES * disks.length) {
    const advice = "Delete backups that are not needed any more, newest of a chain first, or add space";
    return { code: "REPOSITORY_FULL", errorCode: "NO_SPACE", subject, found, advice };
  }
  if (needed !== undefined && freeBytes < needed) {
    const advice = "A backup that runs out of space fails and leaves nothing behind; add space";
    return { code: "REPOSITORY_SMALL", subject, found, advice };
  }
  return { code: "REPOSITORY_READY", subject, found, advice: "Nothing to do" };
}

/** `trouble` is undefined if there is none. */
export function keyFinding(domain: string, repository: string, trouble: Trouble | undefined): Finding {
  const subject = { domain };
  if (trouble === undefined) {
    const found = `Backups in repository ${repository} are encrypted, and their key can be had`;
    return { code: "KEY_READY", subject, found, advice: "Keep a copy of the key: without it they are lost" };
  }
  return {
    code: "KEY_UNUSABLE",
    errorCode: trouble.code,
    subject,
    found: trouble.message,
    advice: "Correct `encryption` of the repository, or what gives the key",
  };
}

/** Undefined where it cannot be known: the header of an inactive domain's image does not say what changed. */
function neededBytes(disks: readonly DiskState[], decision: LevelDecision): number | undefined {
  let needed = 0;
  for (const disk of disks) {
    const how = decision.disks.get(disk.target);
    const bytes = how?.mode === "changes" ? changedBytes(disk, how.bitmaps) : heldBytes(disk);
    if (bytes === undefined) return undefined;
    needed += bytes;
  }
  return needed;
}

function changedBytes({ checkpoints }: DiskState, bitmaps: readonly string[]): number | undefined {
  let changed = 0;
  for (const name of bitmaps) {
    const dirtyBytes = checkpoints.find(({ bitmap }) => bitmap === name)?.dirtyBytes;
    if (dirtyBytes === undefined) return undefined;
    changed += dirtyBytes;
  }
  return changed;
}

/** What an image takes on its host may be more than its disk has: metadata, internal snapshots. */
function heldBytes({ sizeBytes, allocatedBytes = sizeBytes }: DiskState): number {
  return Math.min(sizeBytes, allocatedBytes);
}

function sum(disks: readonly DiskState[], bytes: (disk: DiskState) => number): number {
  return disks.reduce((total, disk) => total + bytes(disk), 0);
}
