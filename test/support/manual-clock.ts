import type { HostTime } from "../../src/model/lease.js";
import type { Clock } from "../../src/ports/clock.js";

interface Sleeper {
  readonly atMs: number;
  readonly wake: () => void;
}

/** Time that passes when the test says so. */
export class ManualClock implements Clock {
  #nowMs: number;
  readonly #sleepers = new Set<Sleeper>();

  constructor(nowMs = 1_700_000_000_000) {
    this.#nowMs = nowMs;
  }

  now(): number {
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  hostTime(): HostTime {
    return { start: "host", ms: this.#nowMs };
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const wake = () => {
        signal.removeEventListener("abort", abort);
        resolve();
      };
      const sleeper = { atMs: this.#nowMs + ms, wake };
      const abort = () => {
        this.#sleepers.delete(sleeper);
        reject(new DOMException("The sleep was aborted", "AbortError"));
      };
      if (signal.aborted) {
        abort();
        return;
      }
      this.#sleepers.add(sleeper);
      signal.addEventListener("abort", abort, { once: true });
    });
  }

  get sleepers(): number {
    return this.#sleepers.size;
  }

  /** Wakes whoever slept long enough, in order; those who go to sleep again count from their waking. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    for (;;) {
      const [next] = [...this.#sleepers].sort((a, b) => a.atMs - b.atMs);
      if (next === undefined || next.atMs > endMs) break;
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      this.#sleepers.delete(next);
      next.wake();
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#nowMs = endMs;
  }
}
