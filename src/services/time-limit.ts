import type { Clock } from "../ports/clock.js";

/** Gives `action` a signal that fires with `reason` after `limitMs` by the clock. Nothing of the limit goes on after the action. */
export async function withTimeLimit<T>(
  clock: Clock,
  limitMs: number,
  action: (limit: AbortSignal) => Promise<T>,
  reason?: unknown,
): Promise<T> {
  const limit = new AbortController();
  const done = new AbortController();
  // Only the signal ends a sleep early.
  const over = clock.sleep(limitMs, done.signal).then(
    () => limit.abort(reason),
    () => undefined,
  );
  try {
    return await action(limit.signal);
  } finally {
    done.abort();
    await over;
  }
}
