/** What is told while work goes on. */
export interface WorkEvents<Progress, Served> {
  readonly onProgress: (progress: Progress) => void;
  readonly onServed: (served: Served) => void;
}

/** One who waits for work, and goes when its signal fires. */
export interface Caller<Progress, Served> extends Partial<WorkEvents<Progress, Served>> {
  readonly signal: AbortSignal;
}

/** Work that several callers wait for: they are told the same, and it is cancelled when the last of them has gone. */
export class SharedWork<Progress, Served> {
  readonly key: string;
  /** Never rejects. */
  readonly ended: Promise<unknown>;
  readonly #callers = new Set<Caller<Progress, Served>>();
  readonly #controller = new AbortController();
  readonly #result: Promise<object | undefined>;
  #served: Served | undefined;

  constructor(
    key: string,
    perform: (
      options: WorkEvents<Progress, Served> & { readonly signal: AbortSignal },
    ) => Promise<object | undefined>,
  ) {
    this.key = key;
    this.#result = perform({
      signal: this.#controller.signal,
      onProgress: (progress) => {
        for (const caller of this.#callers) caller.onProgress?.(progress);
      },
      onServed: (served) => {
        this.#served = served;
        for (const caller of this.#callers) caller.onServed?.(served);
      },
    });
    this.ended = this.#result.catch(() => undefined);
  }

  get isCancelled(): boolean {
    return this.#controller.signal.aborted;
  }

  /** Resolves or rejects as the work does. Who goes while others stay is let go at once; the last one waits for the end. */
  join(caller: Caller<Progress, Served>): Promise<object | undefined> {
    const { signal } = caller;
    this.#callers.add(caller);
    if (this.#served !== undefined) caller.onServed?.(this.#served);
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#callers.delete(caller);
        const reason: unknown = signal.reason;
        if (this.#callers.size === 0) this.#controller.abort(reason);
        else reject(reason instanceof Error ? reason : new Error(String(reason)));
      };
      const finish = (): void => signal.removeEventListener("abort", leave);
      if (signal.aborted) leave();
      else signal.addEventListener("abort", leave, { once: true });
      this.#result.then(resolve, reject).finally(finish);
    });
  }
}
