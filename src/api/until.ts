/** The longest that a timer can take, about 24 days. */
const LONG_MS = 2 ** 31 - 1;

/**
 * Waits for `ended` or for the signal; resolves with undefined when the signal came, also if both did: a Ctrl-C on a
 * terminal reaches child processes too. Keeps this process alive meanwhile, which neither of the two does.
 */
export async function endOrAbort(
  ended: Promise<string>,
  signal: AbortSignal = new AbortController().signal,
): Promise<string | undefined> {
  const keepAlive = setInterval(() => undefined, LONG_MS);
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<undefined>((resolve) => {
    onAbort = () => resolve(undefined);
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    if (signal.aborted) return undefined;
    const reason = await Promise.race([ended, aborted]);
    return isAborted(signal) ? undefined : reason;
  } finally {
    clearInterval(keepAlive);
    if (onAbort !== undefined) signal.removeEventListener("abort", onAbort);
  }
}

/** Asked again after a wait, which the compiler does not see. */
function isAborted(signal: AbortSignal): boolean {
  return signal.aborted;
}
