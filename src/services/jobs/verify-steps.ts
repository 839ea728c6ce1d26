import { isIntact, momentMs } from "../../model/backup.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import { requireRepository } from "../context.js";
import { lastVerification, verifyAndRemember } from "../verifications.js";
import type { DoneBackup, RunStep } from "./run-step.js";

/** Whose backups are verified. */
export interface Verifying extends Pick<DoneBackup, "signal" | "onVerified"> {
  readonly domain: string;
  readonly repository: string;
  /** So long, verifications are begun, but one at least; what is begun is finished. */
  readonly budgetMs: number;
  /** Is not verified: it has just been taken. */
  readonly but?: string;
}

/** Records of runs are bounded. */
const MOST_RECHECKS = 100;

/** Reads the new backup as a restore would. Fails with DAMAGED. */
export const verifyStep: RunStep = {
  name: "verify",
  async perform(context, done) {
    if (done.job.verify?.after === true) await verify(context, { ...done, ...done.entry }, done.entry.id);
    return [];
  },
};

/** Does the same with the domain's other backups in the repository, as many as the budget allows. Fails with DAMAGED. */
export const recheckStep: RunStep = {
  name: "verify older backups",
  async perform(context, done) {
    const { job, entry, signal, onVerified } = done;
    const budgetMs = job.verify?.budgetMs ?? 0;
    if (budgetMs === 0) return [];
    const { id: but, domain, repository } = entry;
    return verifyOldest(context, { domain, repository, budgetMs, signal, onVerified, but });
  },
};

/**
 * Verifies backups of a domain, the one first whose verification is the oldest. Resolves with what somebody should read. Fails
 * with DAMAGED, also if the signal has fired since that was found; otherwise with the signal's reason.
 */
export async function verifyOldest(context: ServiceContext, work: Verifying): Promise<readonly string[]> {
  const { clock } = context;
  const endMs = clock.monotonicMs() + work.budgetMs;
  const notes: string[] = [];
  const damages: string[] = [];
  for (const id of await leastRecentlyVerified(context, work)) {
    if (clock.monotonicMs() >= endMs || work.signal.aborted) break;
    try {
      await verify(context, work, id);
    } catch (error) {
      if (isFleeceError(error, "DAMAGED")) damages.push(errorMessage(error));
      else if (!isFleeceError(error, "BACKUP_NOT_FOUND")) {
        notes.push(`backup ${id} could not be verified: ${errorMessage(error)}`);
      }
    }
  }
  if (damages.length > 0) throw new FleeceError("DAMAGED", damages.join("; "));
  work.signal.throwIfAborted();
  return notes;
}

async function verify(
  context: ServiceContext,
  { repository, signal, onVerified }: Pick<Verifying, "repository" | "signal" | "onVerified">,
  id: string,
): Promise<void> {
  const { clock } = context;
  const startMs = clock.monotonicMs();
  const durationMs = (): number => Math.round(clock.monotonicMs() - startMs);
  try {
    await verifyAndRemember(context, id, { repository, signal });
    onVerified({ backup: id, durationMs: durationMs() });
  } catch (error) {
    if (!isFleeceError(error, "DAMAGED")) throw error;
    const damage = errorMessage(error);
    onVerified({ backup: id, durationMs: durationMs(), damage });
    throw new FleeceError("DAMAGED", `Backup ${id} is damaged: ${damage}`, { cause: error });
  }
}

/** Those never verified come first. */
async function leastRecentlyVerified(
  context: ServiceContext,
  { domain, repository, but }: Verifying,
): Promise<readonly string[]> {
  const listed = await requireRepository(context, repository).list(domain);
  const others = [];
  for (const other of listed.filter(isIntact).filter(({ id }) => id !== but)) {
    const verifiedMs = (await lastVerification(context.store, other))?.timeMs ?? 0;
    others.push({ id: other.id, verifiedMs, momentMs: momentMs(other) });
  }
  return others
    .toSorted((a, b) => a.verifiedMs - b.verifiedMs || a.momentMs - b.momentMs)
    .slice(0, MOST_RECHECKS)
    .map(({ id }) => id);
}
