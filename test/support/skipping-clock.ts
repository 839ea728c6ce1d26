import type { HostTime } from "../../src/model/lease.js";
import type { Clock } from "../../src/ports/clock.js";
import { systemClock } from "../../src/drivers/system-clock.js";

interface Sleeper {
  readonly signal: AbortSignal;
  readonly wakesAtMs: number;
  readonly wake: () => void;
}

/**
 * Time that passes as it does, so that real programs can be waited for, and skips what the test has no use for. The clock on
 * the wall may also be set.
 */
export class SkippingClock implements Clock {
  #skippedMs = 0;
  #setMs: number;
  readonly #sleepers = new Set<Sleeper>();

  constructor(now: number) {
    this.#setMs = now - systemClock.now();
  }

  /** How far this clock's time is from that of the system. */
  get aheadMs(): number {
    return this.#setMs + this.#skippedMs;
  }

  now(): number {
    return systemClock.now() + this.aheadMs;
  }

  monotonicMs(): number {
    return systemClock.monotonicMs() + this.#skippedMs;
  }

  hostTime(): HostTime {
    const { start, ms } = systemClock.hostTime();
    return { start, ms: ms + this.#skippedMs };
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#sleepers.delete(sleeper);
        signal.removeEventListener("abort", abort);
      };
      const wake = (): void => {
        end();
        resolve();
      };
      const abort = (): void => {
        end();
        reject(new DOMException("The sleep was aborted", "AbortError"));
      };
      const sleeper = { signal, wakesAtMs: this.monotonicMs() + ms, wake };
      const timer = setTimeout(wake, ms);
      this.#sleepers.add(sleeper);
      if (signal.aborted) abort();
      else signal.addEventListener("abort", abort, { once: true });
    });
  }

  /** Whether somebody with this signal sleeps, and not for a moment only. */
  isAsleep(signal: AbortSignal): boolean {
    const now = this.monotonicMs();
    return [...this.#sleepers].some((one) => one.signal === signal && one.wakesAtMs - now > 500);
  }

  /** Passes over time, and wakes whoever has slept long enough. */
  skip(ms: number): void {
    this.#skippedMs += Math.max(0, ms);
    const now = this.monotonicMs();
    for (const { wakesAtMs, wake } of [...this.#sleepers]) if (wakesAtMs <= now) wake();
  }

  /** Sets the clock on the wall; no time passes. */
  set(now: number): void {
    this.#setMs += now - this.now();
  }
}
