import type { StateStore } from "../ports/state-store.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import type { BackupEntry } from "../model/backup.js";
import { type BackupNote, backupNoteName, readBackupNote, writeBackupNote } from "./backup-notes.js";
import { findBackup } from "./backup-catalog.js";
import { type ReadOptions, type VerifiedDisk, verifyBackup } from "./backup-read.js";
import type { ServiceContext } from "./context.js";

/** What is remembered of the last verification of a backup. */
export interface Verification extends BackupNote {
  /** What was wrong; undefined: it was sound. */
  readonly damage?: string;
}

export type Verified = Pick<BackupEntry, "repository" | "id" | "copiedFrom">;

/** Those that there may be of a backup; earlier versions, which knew no copies, named them by id alone. */
export function verificationNotes(backup: Verified): readonly string[] {
  return backup.copiedFrom === undefined ? [backupNoteName(backup), backup.id] : [backupNoteName(backup)];
}

/** Undefined if none is remembered. */
export async function lastVerification(
  store: StateStore,
  backup: Verified,
): Promise<Verification | undefined> {
  return readBackupNote<Verification>(store, "verifications", verificationNotes(backup));
}

/**
 * As `verifyBackup`, and remembers what came of it as long as there is the backup. That some disks alone are sound says
 * nothing of the backup.
 */
export async function verifyAndRemember(
  context: ServiceContext,
  id: string,
  options: ReadOptions = {},
): Promise<readonly VerifiedDisk[]> {
  // Not the first that can be read: what is to be found out is whether this one can.
  const { entry } = await findBackup(context, id, options.repository);
  try {
    const disks = await verifyBackup(context, id, { ...options, repository: entry.repository });
    if (options.disks === undefined) await rememberVerification(context, entry, undefined);
    return disks;
  } catch (error) {
    if (isFleeceError(error, "DAMAGED")) await rememberVerification(context, entry, errorMessage(error));
    throw error;
  }
}

/** What was found counts also if it cannot be remembered. */
export async function rememberVerification(
  context: ServiceContext,
  backup: BackupEntry,
  damage: string | undefined,
): Promise<void> {
  const { clock, log, meter } = context;
  const { domain, id } = backup;
  const note: Verification = {
    schemaVersion: 1,
    timeMs: clock.now(),
    ...(damage === undefined ? {} : { damage }),
  };
  try {
    meter.backupVerified(domain, damage === undefined ? "sound" : "damaged");
    if (damage !== undefined) log.warn({ domain, backup: id }, `The backup is damaged: ${damage}`);
    await writeBackupNote(context, "verifications", backup, note, verificationNotes);
  } catch (error) {
    log.warn({ backup: id }, `Cannot remember that the backup was verified: ${errorMessage(error)}`);
  }
}
