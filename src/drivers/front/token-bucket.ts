import type { Clock } from "../../ports/clock.js";

/** So much of a second's bytes may come at once after a silence. */
const BURST_SECONDS = 0.25;

/** Shares a rate among all who spend from it. Whoever spends more than there is waits for all debts before its own, too. */
export class TokenBucket {
  readonly #bytesPerMs: number;
  readonly #burstBytes: number;
  readonly #clock: Clock;
  #tokens: number;
  #atMs: number;

  constructor(bytesPerSecond: number, clock: Clock) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#burstBytes = bytesPerSecond * BURST_SECONDS;
    this.#clock = clock;
    this.#tokens = this.#burstBytes;
    this.#atMs = clock.monotonicMs();
  }

  /** Takes bytes that have come, and tells for how many milliseconds no more should be taken from their source. */
  spend(bytes: number): number {
    const now = this.#clock.monotonicMs();
    const grown = this.#tokens + (now - this.#atMs) * this.#bytesPerMs;
    this.#atMs = now;
    this.#tokens = Math.min(this.#burstBytes, grown) - bytes;
    return this.#tokens >= 0 ? 0 : Math.ceil(-this.#tokens / this.#bytesPerMs);
  }
}
