import type { SnapshotJournal } from "../model/operation.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { FleeceError, isFleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import type { DomainSession } from "./domain-session.js";

/** A frozen moment of some disks, and how the domain was when they were frozen. */
export type Moment = Pick<SnapshotJournal, "plan" | "fingerprints" | "mode">;

/** Codes that say that the moment is lost; any other error says nothing about that. */
const LOST = ["SNAPSHOT_BROKEN", "DISK_CHANGED", "DISK_IN_USE", "PATH_NOT_FOUND"] as const;

export function saysLost(error: unknown): error is FleeceError {
  return isFleeceError(error, ...LOST);
}

/** Fails with the reason (see `saysLost`) when what is read may not be the moment. */
export async function checkMoment(
  { plan, fingerprints, mode }: Moment,
  driver: BlockDriver,
  options: { readonly signal?: AbortSignal | undefined; readonly afterWords?: string } = {},
): Promise<void> {
  if (driver.mode === mode) return driver.checkIntact(plan, fingerprints, options.signal);
  const now = driver.mode === "running" ? "was started" : "was stopped";
  throw new FleeceError(
    "SNAPSHOT_BROKEN",
    `Domain ${plan.domain} ${now} after the block snapshot was taken${options.afterWords ?? ""}`,
    { facts: { domain: plan.domain } },
  );
}

/**
 * The same for a domain that may have changed since it was opened: if it cannot be reached any more it is looked for once
 * more. A monitor that was lost may be back, and the moment intact behind it.
 */
export async function checkMomentAnew(
  session: DomainSession,
  moment: Moment,
  signal?: AbortSignal,
): Promise<void> {
  try {
    await checkMoment(moment, await session.driver(signal), { signal });
  } catch (error) {
    if (!isFleeceError(error, "DOMAIN_UNREACHABLE", "DISK_IN_USE")) throw error;
    await session.close();
    const wasLost = error.code === "DOMAIN_UNREACHABLE";
    const afterWords = wasLost ? ", and its QEMU did not say why: it was killed, or crashed" : "";
    await checkMoment(moment, await session.driver(signal), { signal, afterWords });
  }
}

/** An ending QEMU still accepts connections for a moment, and hangs up on them. */
const ENDING_MS = 2000;
const PAUSE_MS = 100;

/**
 * A reader knows only that its connection ended. What the domain, or whatever serves its disks, says now is the cause; if
 * all of that is as it should be, the error is as good as any.
 */
export async function explainFailedRead(
  { clock }: ServiceContext,
  session: DomainSession,
  moment: Moment,
  failure: unknown,
): Promise<unknown> {
  if (!isFleeceError(failure, "NBD_FAILED")) return failure;
  const deadlineMs = clock.monotonicMs() + ENDING_MS;
  for (;;) {
    try {
      await (await session.driver()).checkServing(moment.plan);
      await checkMomentAnew(session, moment);
      return failure;
    } catch (error) {
      if (!(error instanceof FleeceError) || error.code === "NBD_FAILED") return failure;
      if (error.code !== "DOMAIN_UNREACHABLE" || clock.monotonicMs() > deadlineMs) {
        return new FleeceError(error.code, error.message, { cause: failure, facts: error.facts });
      }
      await session.close();
      await clock.sleep(PAUSE_MS, new AbortController().signal);
    }
  }
}
