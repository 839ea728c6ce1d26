import type { Clock } from "../../ports/clock.js";
import { isQmpError, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";

export const MIGRATION_ENDED: ReadonlySet<string> = new Set(["none", "completed", "failed", "cancelled"]);

/** QEMU ends a migration that is cancelled, or that nobody reads, in milliseconds. */
const SETTLE_WITHIN_MS = 30_000;
const POLL_MS = 5;
const NEVER = new AbortController().signal;

/**
 * Brings a guest back to what it was before its memory was saved, however far that has come: ends what is under way, then
 * continues the guest, or pauses it again. Idempotent; fine when the guest is as it was. Of a state that comes from something
 * else (the guest has shut down, for example) nothing is changed.
 */
export async function settleGuest(qmp: QmpSession, clock: Clock, wasRunning: boolean): Promise<void> {
  const status = await settledState(qmp, clock);
  if (wasRunning) {
    if (status === "paused" || status === "postmigrate") await qmp.execute("cont");
    return;
  }
  if (status !== "postmigrate") return;
  // QEMU 7.2 has no other way from `postmigrate` to `paused`, and saves no memory again in the former. Sent together, so that the
  // guest runs for some milliseconds at most.
  await Promise.all([qmp.execute("cont"), qmp.execute("stop")]);
}

/**
 * The run state once no migration is under way; one that is gets cancelled, but only of a guest that does not run. A guest that QEMU
 * itself stops for the end of a migration is continued by it after a cancellation, and QEMU 7.2 may have given up its images
 * without taking them back: the next write aborts it. So once QEMU has begun with the end, that is waited for. The images of a
 * guest that was stopped before are taken back by `cont`.
 */
export async function settledState(qmp: QmpSession, clock: Clock): Promise<string> {
  const start = clock.monotonicMs();
  while (clock.monotonicMs() - start < SETTLE_WITHIN_MS) {
    const { status: migration = "none" } = await qmp.execute("query-migrate");
    if (MIGRATION_ENDED.has(migration)) {
      const { status } = await qmp.execute("query-status");
      if (status !== "finish-migrate") return status;
    } else if (migration !== "cancelling") {
      await qmp.execute("stop");
      const { status } = await qmp.execute("query-status");
      if (status !== "running" && status !== "finish-migrate") await cancel(qmp);
    }
    await clock.sleep(POLL_MS, NEVER);
  }
  throw new FleeceError(
    "QEMU_FAILED",
    `QEMU did not end the saving of the guest's memory within ${SETTLE_WITHIN_MS / 1000} s`,
  );
}

/** It may have ended by itself meanwhile. */
async function cancel(qmp: QmpSession): Promise<void> {
  try {
    await qmp.execute("migrate_cancel");
  } catch (error) {
    if (!isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
  }
}
