/** Runs `task` over `items`, at most `limit` at once. The first failure aborts the rest, is awaited out and rethrown. */
export async function forEachLimited<T>(
  items: Iterable<T>,
  limit: number,
  task: (item: T, signal: AbortSignal) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const failure = new AbortController();
  const combined = signal === undefined ? failure.signal : AbortSignal.any([signal, failure.signal]);
  const queue = items[Symbol.iterator]();
  let first: { error: unknown } | undefined;
  const worker = async (): Promise<void> => {
    for (let next = queue.next(); next.done !== true && !combined.aborted; next = queue.next()) {
      try {
        await task(next.value, combined);
      } catch (error) {
        first ??= { error };
        failure.abort(error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, limit) }, worker));
  if (first !== undefined) throw first.error;
  signal?.throwIfAborted();
}
