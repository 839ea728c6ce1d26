import type { JobLimits } from "../../model/job.js";

/** What a backup of a job takes up. */
export interface Place {
  readonly domain: string;
  readonly repository: string;
}

interface Waiter {
  readonly place: Place;
  readonly admit: () => void;
}

/** Keeps the backups of all jobs within their limits: first come, first served, but nobody waits for a place that is of no use to him. */
export class Places {
  #limits: JobLimits = { domains: 1, repositories: new Map() };
  readonly #taken = new Set<Place>();
  readonly #waiting = new Set<Waiter>();

  /** From now on; places that are taken stay so. */
  use(limits: JobLimits): void {
    this.#limits = limits;
    this.#admit();
  }

  /** Resolves when the backup may begin, with what gives its place back. Rejects with the signal's reason. */
  async take(place: Place, signal: AbortSignal): Promise<Disposable> {
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const giveUp = (): void => {
        this.#waiting.delete(waiter);
        reject(signal.reason as Error);
      };
      const admit = (): void => {
        this.#waiting.delete(waiter);
        signal.removeEventListener("abort", giveUp);
        resolve();
      };
      const waiter = { place, admit };
      signal.addEventListener("abort", giveUp, { once: true });
      this.#waiting.add(waiter);
      this.#admit();
    });
    return {
      [Symbol.dispose]: () => {
        this.#taken.delete(place);
        this.#admit();
      },
    };
  }

  #admit(): void {
    for (const { place, admit } of this.#waiting) {
      if (!this.#isFree(place)) continue;
      this.#taken.add(place);
      admit();
    }
  }

  #isFree({ domain, repository }: Place): boolean {
    const taken = [...this.#taken];
    const limit = this.#limits.repositories.get(repository) ?? Infinity;
    return (
      taken.length < this.#limits.domains &&
      taken.every((other) => other.domain !== domain) &&
      taken.filter((other) => other.repository === repository).length < limit
    );
  }
}
