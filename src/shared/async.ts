/** Runs `task` over `items`, at most `limit` at once. The first failure aborts the rest, is awaited out and rethrown. */
export async function forEachLimited<T>(
  items: Iterable<T> | AsyncIterable<T>,
  limit: number,
  task: (item: T, signal: AbortSignal) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const failure = new AbortController();
  const combined = signal === undefined ? failure.signal : AbortSignal.any([signal, failure.signal]);
  const queue = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let first: { error: unknown } | undefined;
  const worker = async (): Promise<void> => {
    try {
      for (let next = await queue.next(); next.done !== true; next = await queue.next()) {
        if (combined.aborted) return;
        await task(next.value, combined);
      }
    } catch (error) {
      first ??= { error };
      failure.abort(error);
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, limit) }, worker));
  await queue.return?.();
  if (first !== undefined) throw first.error;
  signal?.throwIfAborted();
}

/** Runs actions one after the other, in the order of the calls, also after one that has failed. */
export class OneByOne {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action);
    this.#last = result.catch(() => undefined);
    return result;
  }
}
