import type { StateStore } from "../ports/state-store.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import { findBackup, listBackups } from "./backup-catalog.js";
import { type ReadOptions, type VerifiedDisk, verifyBackup } from "./backup-read.js";
import type { ServiceContext } from "./context.js";

/** What is remembered of the last verification of a backup. */
export interface Verification {
  readonly schemaVersion: 1;
  readonly timeMs: number;
  /** What was wrong; undefined: it was sound. */
  readonly damage?: string;
}

/** Undefined if none is remembered. */
export async function lastVerification(store: StateStore, id: string): Promise<Verification | undefined> {
  const note = await store.readNote("verifications", id);
  return isVerification(note) ? note : undefined;
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
  try {
    const disks = await verifyBackup(context, id, options);
    if (options.disks === undefined) await remember(context, id, undefined);
    return disks;
  } catch (error) {
    if (isFleeceError(error, "DAMAGED")) await remember(context, id, errorMessage(error));
    throw error;
  }
}

/** The verification counts also if it cannot be remembered. */
async function remember(context: ServiceContext, id: string, damage: string | undefined): Promise<void> {
  const { store, clock, log, meter } = context;
  const note: Verification = {
    schemaVersion: 1,
    timeMs: clock.now(),
    ...(damage === undefined ? {} : { damage }),
  };
  try {
    const { domain } = (await findBackup(context, id)).entry;
    meter.backupVerified(domain, damage === undefined ? "sound" : "damaged");
    if (damage !== undefined) log.warn({ domain, backup: id }, `The backup is damaged: ${damage}`);
    await store.writeNote("verifications", id, note);
    await forgetGone(context);
  } catch (error) {
    log.warn({ backup: id }, `Cannot remember that the backup was verified: ${errorMessage(error)}`);
  }
}

async function forgetGone(context: ServiceContext): Promise<void> {
  const { store } = context;
  const listed = new Set((await listBackups(context)).map(({ id }) => id));
  for (const id of await store.notes("verifications")) {
    if (!listed.has(id)) await store.removeNote("verifications", id);
  }
}

function isVerification(note: unknown): note is Verification {
  return typeof note === "object" && note !== null && "schemaVersion" in note && note.schemaVersion === 1;
}
