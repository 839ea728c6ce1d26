import type { ErrorCode, ErrorFacts } from "../shared/errors.js";
import { FleeceError } from "../shared/errors.js";

/** `ok`: as it should be. `note`: good to know. `warning`: costs something. `blocker`: the next backup would be refused. */
export type Severity = "ok" | "note" | "warning" | "blocker";

/**
 * Everything that a look at a domain before a backup may find. The code decides the severity; the sentence is the
 * documentation, and a test keeps src/README.md equal to it.
 */
export const FINDING_CODES = {
  DOMAIN_READY: ["ok", "The domain can be looked at"],
  DISK_READY: ["ok", "The disk can be frozen"],
  STATE_READY: ["ok", "The state directory can be used"],
  SCRATCH_READY: ["ok", "The scratch directory has room for all that the guest can overwrite"],
  REPOSITORY_READY: ["ok", "The repository has room for the next backup"],
  KEY_READY: ["ok", "The key of the encrypted repository can be had, and fits the backups"],
  NEXT_INCREMENTAL: ["ok", "The next backup is incremental"],
  DOMAIN_PAUSED: ["note", "The guest is stopped"],
  DOMAIN_INACTIVE: ["note", "The domain does not run; its image files are read"],
  QEMU_BLOCK_STATUS: ["note", "This QEMU version reports wrong block status for frozen disks"],
  QEMU_CBW_TIMEOUT: ["note", "This QEMU version miscounts the time that a guest's write may wait"],
  DISK_IOTHREAD: ["note", "The disk runs in an iothread"],
  CHECKPOINT_TRANSIENT: ["note", "The disk is not qcow2, so its checkpoints end with the QEMU process"],
  FOREIGN_BITMAP: ["note", "Other programs have dirty bitmaps on the disk"],
  SCRATCH_TIGHT: ["note", "Scratch space is enough for what the disks hold, not for their full size"],
  FIRST_BACKUP: ["note", "The repository has no backup of the domain, so the next one is a full"],
  DISK_GONE: ["note", "The last backup holds a disk that the domain does not have any more"],
  DISK_FORMAT_CHANGED: ["note", "The disk had another format when the last backup was taken"],
  UNFINISHED_OPERATION: ["warning", "An operation was interrupted, and what it left waits to be undone"],
  SNAPSHOT_EXPIRED: ["warning", "A block snapshot is open although its lease has ended"],
  SNAPSHOT_BROKEN: ["warning", "An open block snapshot has lost its moment"],
  FOREIGN_AGENT: ["warning", "QEMU has nodes of a fleece that uses another state directory"],
  NBD_SERVER_BUSY: ["warning", "Another program exports disks over NBD from the domain's QEMU"],
  CHECKPOINT_INCONSISTENT: ["warning", "Checkpoints were not saved when QEMU ended, and cannot be used"],
  CHECKPOINT_GAP: ["warning", "What checkpoints recorded does not reach to the present without a gap"],
  DISK_OTHER_LAYER: ["warning", "The disk is in another image than its domain snapshots say"],
  DISK_COMPARED: ["warning", "What changed on the disk is not known, so all of it is read and compared"],
  NEXT_FULL: ["warning", "The chain is broken, so the next backup is a full"],
  DISK_NEW: ["warning", "The last backup does not hold the disk"],
  DISK_RESIZED: ["warning", "The disk had another size when the last backup was taken"],
  BACKUP_DAMAGED: ["warning", "A backup in the repository cannot be used"],
  SCRATCH_SMALL: ["warning", "The guest can overwrite more during a backup than scratch space takes"],
  REPOSITORY_SMALL: ["warning", "The next backup may be larger than the repository's free space"],
  DOMAIN_BUSY: ["blocker", "Another operation holds the domain"],
  DOMAIN_UNREACHABLE: ["blocker", "The domain cannot be reached"],
  MONITOR_IN_USE: ["blocker", "QEMU's monitor does not answer: another program probably holds it"],
  DOMAIN_UNREADABLE: ["blocker", "The domain answers, but cannot be looked at"],
  QEMU_TOO_OLD: ["blocker", "The QEMU version lacks what a backup needs"],
  NO_DISKS: ["blocker", "The domain has no disk that can be backed up"],
  FOREIGN_FILTER: ["blocker", "A filter, a block job or a migration works on the disk"],
  DISK_MISSING: ["blocker", "The configuration lists a disk that the running domain does not have"],
  DISK_UNSUPPORTED: ["blocker", "The disk is of a kind that cannot be frozen"],
  SNAPSHOT_OPEN: ["blocker", "A block snapshot holds the disk"],
  SCRATCH_UNUSABLE: ["blocker", "No scratch image can be made"],
  SCRATCH_FULL: ["blocker", "Not even an empty scratch image fits"],
  REPOSITORY_UNUSABLE: ["blocker", "The repository cannot be read or written"],
  KEY_UNUSABLE: [
    "blocker",
    "The key of the encrypted repository cannot be had, or is not that of its backups",
  ],
  REPOSITORY_FULL: ["blocker", "Not even an empty backup fits into the repository"],
  STATE_UNUSABLE: ["blocker", "The state directory or the journal in it cannot be used"],
} as const satisfies Record<string, readonly [Severity, string]>;

export type FindingCode = keyof typeof FINDING_CODES;
type CodeOf<S extends Severity> = {
  [Code in FindingCode]: (typeof FINDING_CODES)[Code][0] extends S ? Code : never;
}[FindingCode];

export interface Subject {
  readonly domain: string;
  /** The target, where the finding is about one disk. */
  readonly disk?: string;
}

interface Sentences {
  readonly subject: Subject;
  /** What was found. A sentence without a period, as in errors. */
  readonly found: string;
  /** What it means, or what to do. */
  readonly advice: string;
}

export interface Remark extends Sentences {
  readonly code: CodeOf<"ok" | "note" | "warning">;
}

export interface Blocker extends Sentences {
  readonly code: CodeOf<"blocker">;
  /** The code of the error that refuses a backup. */
  readonly errorCode: ErrorCode;
}

export type Finding = Remark | Blocker;

export function severityOf({ code }: Finding): Severity {
  return FINDING_CODES[code][0];
}

/** The error with which an operation that meets the blocker is refused. */
export function refusal({ errorCode, found, subject }: Blocker, facts: ErrorFacts = {}): FleeceError {
  const { domain, disk } = subject;
  return new FleeceError(errorCode, found, {
    facts: { domain, ...(disk === undefined ? {} : { target: disk }), ...facts },
  });
}
