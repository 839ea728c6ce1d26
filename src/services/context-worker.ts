import type { ServiceContext } from "./context.js";

/** Work that goes on for one context at a time, the newest, until it is disposed of. */
export class ContextWorker implements AsyncDisposable {
  readonly #work: (context: ServiceContext, signal: AbortSignal) => Promise<void>;
  #stop = new AbortController();
  #done: Promise<void> | undefined;

  /** `work` goes on until the signal fires, and then ends what it has begun. */
  constructor(work: (context: ServiceContext, signal: AbortSignal) => Promise<void>) {
    this.#work = work;
  }

  /** Resolves when what was begun for another context has ended. */
  async use(context: ServiceContext): Promise<void> {
    await this[Symbol.asyncDispose]();
    this.#stop = new AbortController();
    this.#done = this.#work(context, this.#stop.signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }
}
