import { type ErrorCode, errorMessage, isFleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";

const INTERVAL_MS = 1000;

export interface Watch {
  /** Throws what is to end the action. */
  readonly look: (stop: AbortSignal) => Promise<void>;
  /** The only code that ends the action: other trouble is the look's own, and logged. Left out, whatever a look throws ends it. */
  readonly endedBy?: ErrorCode;
  /** What is looked at, for the log. */
  readonly facts: object;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs `action`, and looks once a second whether it may go on. If not, its signal is aborted with the error of the look; so it is by
 * the caller's. Nothing of the watch goes on after that.
 */
export async function withWatch<T>(
  { clock, log }: Pick<ServiceContext, "clock" | "log">,
  { look, endedBy, facts, signal }: Watch,
  action: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const refused = new AbortController();
  const over = new AbortController();
  const stopped = AbortSignal.any([refused.signal, ...(signal === undefined ? [] : [signal])]);
  const ended = lookUntil(AbortSignal.any([stopped, over.signal]));
  try {
    return await action(stopped);
  } finally {
    over.abort();
    await ended;
  }

  async function lookUntil(stop: AbortSignal): Promise<void> {
    const isOver = (): boolean => stop.aborted;
    while (!isOver()) {
      try {
        await clock.sleep(INTERVAL_MS, stop);
        await look(stop);
      } catch (error) {
        if (isOver()) return;
        if (endedBy === undefined || isFleeceError(error, endedBy)) refused.abort(error);
        else log.debug(facts, `Cannot look after it: ${errorMessage(error)}`);
      }
    }
  }
}
