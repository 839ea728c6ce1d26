import { isIntact, momentMs } from "../../model/backup.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import { requireRepository } from "../context.js";
import { lastVerification, verifyAndRemember } from "../verifications.js";
import type { DoneBackup, RunStep } from "./run-step.js";

/** Records of runs are bounded. */
const MOST_RECHECKS = 100;

/** Reads the new backup as a restore would. Fails with DAMAGED. */
export const verifyStep: RunStep = {
  name: "verify",
  async perform(context, done) {
    if (done.job.verify?.after === true) await verify(context, done, done.entry.id);
    return [];
  },
};

/** Does the same with the domain's other backups in the repository, as many as the budget allows. Fails with DAMAGED. */
export const recheckStep: RunStep = {
  name: "verify older backups",
  async perform(context, done) {
    const { clock } = context;
    const budgetMs = done.job.verify?.budgetMs ?? 0;
    if (budgetMs === 0) return [];
    const endMs = clock.monotonicMs() + budgetMs;
    const notes: string[] = [];
    const damages: string[] = [];
    for (const id of await leastRecentlyVerified(context, done)) {
      if (clock.monotonicMs() >= endMs) break;
      try {
        await verify(context, done, id);
      } catch (error) {
        done.signal.throwIfAborted();
        if (isFleeceError(error, "DAMAGED")) damages.push(errorMessage(error));
        else if (!isFleeceError(error, "BACKUP_NOT_FOUND")) {
          notes.push(`backup ${id} could not be verified: ${errorMessage(error)}`);
        }
      }
    }
    if (damages.length > 0) throw new FleeceError("DAMAGED", damages.join("; "));
    return notes;
  },
};

async function verify(context: ServiceContext, done: DoneBackup, id: string): Promise<void> {
  const { clock } = context;
  const { signal, onVerified } = done;
  const startMs = clock.monotonicMs();
  const durationMs = (): number => Math.round(clock.monotonicMs() - startMs);
  try {
    await verifyAndRemember(context, id, { repository: done.entry.repository, signal });
    onVerified({ backup: id, durationMs: durationMs() });
  } catch (error) {
    if (!isFleeceError(error, "DAMAGED")) throw error;
    const damage = errorMessage(error);
    onVerified({ backup: id, durationMs: durationMs(), damage });
    throw new FleeceError("DAMAGED", `Backup ${id} is damaged: ${damage}`, { cause: error });
  }
}

/** But the new one. Those never verified come first. */
async function leastRecentlyVerified(
  context: ServiceContext,
  { entry }: DoneBackup,
): Promise<readonly string[]> {
  const listed = await requireRepository(context, entry.repository).list(entry.domain);
  const others = [];
  for (const other of listed.filter(isIntact).filter(({ id }) => id !== entry.id)) {
    const verifiedMs = (await lastVerification(context.store, other))?.timeMs ?? 0;
    others.push({ id: other.id, verifiedMs, momentMs: momentMs(other) });
  }
  return others
    .toSorted((a, b) => a.verifiedMs - b.verifiedMs || a.momentMs - b.momentMs)
    .slice(0, MOST_RECHECKS)
    .map(({ id }) => id);
}
