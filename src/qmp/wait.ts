import { QmpError, type QmpErrorFacts } from "./errors.js";

/** What may end a wait early. */
export interface WaitLimits {
  /** Milliseconds until QMP_TIMEOUT. */
  readonly timeoutMs?: number | undefined;
  /** Ends the wait with QMP_ABORTED. */
  readonly signal?: AbortSignal | undefined;
}

/** Node fires timers beyond 2^31 - 1 ms at once. */
const maxTimerMs = 2 ** 31 - 1;

export function abortedError(signal: AbortSignal, what: string, facts: QmpErrorFacts = {}): QmpError {
  return new QmpError("QMP_ABORTED", `${what} was aborted`, { ...facts, cause: signal.reason });
}

/** Passes the promise on unless a limit is reached first; then its later outcome is ignored. `facts` go into the error. */
export function limitWait<T>(
  promise: Promise<T>,
  limits: WaitLimits,
  what: string,
  facts: QmpErrorFacts = {},
): Promise<T> {
  const { timeoutMs, signal } = limits;
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => {
      if (signal !== undefined) settle(() => reject(abortedError(signal, what, facts)));
    };
    const onTimeout = (): void =>
      settle(() =>
        reject(new QmpError("QMP_TIMEOUT", `${what} was not answered within ${timeoutMs ?? 0} ms`, facts)),
      );
    const timer =
      timeoutMs === undefined ? undefined : setTimeout(onTimeout, Math.min(timeoutMs, maxTimerMs));
    const settle = (finish: () => void): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      finish();
    };
    promise.then(
      (value) => settle(() => resolve(value)),
      (error: unknown) => settle(() => reject(error instanceof Error ? error : new Error(String(error)))),
    );
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted === true) onAbort();
  });
}
