import type { ErrorCode } from "../shared/errors.js";

/** Errors that may pass by themselves, and why the same backup may succeed a few minutes later. All others need a person. */
export const PASSING_ERRORS: Readonly<Partial<Record<ErrorCode, string>>> = {
  DOMAIN_BUSY: "another command or a block snapshot's end holds the domain, and lets it go",
  REPOSITORY_BUSY: "another host writes to the domain's part of the repository, and ends",
  CHECKPOINT_BUSY: "an export or a job uses the checkpoint, and ends",
  DISK_IN_USE: "another program holds the image, as one that copies it does",
  DISK_CHANGED: "the domain was started meanwhile; the next try finds it running",
  NBD_SERVER_BUSY: "another program reads disks of the domain, and ends",
  FOREIGN_FILTER: "another tool's job, like a migration, works on a disk, and ends",
  DOMAIN_UNREACHABLE: "QEMU is being started, stopped or migrated, or its host is under load",
  SNAPSHOT_BROKEN: "the guest overwrote more than the scratch space takes; it may write less later",
  QUIESCE_FAILED: "the guest's agent was busy, or not started yet",
  NBD_FAILED: "QEMU or its connection ended while a disk was read",
  NO_SPACE: "other snapshots and old backups go, and their space is free again",
  CLEANUP_INCOMPLETE: "what could not be removed is tried again by the next backup",
};

const FIRST_PAUSE_MS = 60_000;
const LONGEST_PAUSE_MS = 30 * 60_000;

/** Before the next try, after so many that failed: 1, 2, 4 minutes and so on, up to half an hour. */
export function retryPauseMs(failures: number): number {
  return Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (failures - 1));
}
