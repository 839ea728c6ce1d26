import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import { formatDuration } from "../../shared/units.js";
import { bootTest } from "../boot-test.js";
import { withTimeLimit } from "../time-limit.js";
import type { RunStep } from "./run-step.js";

/** Boots a throw-away machine on the new backup. Fails with BOOT_FAILED; what its budget cuts off proves nothing, and is a note. */
export const bootStep: RunStep = {
  name: "boot test",
  async perform(context, { job, entry, signal, onBooted }) {
    if (job.bootTest === undefined) return [];
    const { clock } = context;
    const { budgetMs } = job.bootTest;
    const startMs = clock.monotonicMs();
    const durationMs = (): number => Math.round(clock.monotonicMs() - startMs);
    const boot = async (budget: AbortSignal): Promise<readonly string[]> => {
      try {
        await bootTest(context, entry, { signal: AbortSignal.any([signal, budget]) });
        onBooted({ durationMs: durationMs() });
        return [];
      } catch (error) {
        signal.throwIfAborted();
        if (budget.aborted) {
          return [
            `the backup had not booted when the budget of ${formatDuration(budgetMs)} was spent, which proves nothing`,
          ];
        }
        if (isFleeceError(error, "BOOT_FAILED"))
          onBooted({ durationMs: durationMs(), failure: errorMessage(error) });
        throw error;
      }
    };
    const spent = new FleeceError("WINDOW_ENDED", "The budget of the boot test is spent");
    return withTimeLimit(clock, budgetMs, boot, spent);
  },
};
