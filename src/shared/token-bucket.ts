/** So much of a second's bytes may come at once after a silence. */
export const BURST_SECONDS = 0.25;

/** Shares a rate among all who spend from it. Whoever spends more than there is waits for all debts before its own, too. */
export class TokenBucket {
  readonly #clock: { monotonicMs(): number };
  #bytesPerSecond: number;
  #tokens: number;
  #atMs: number;

  constructor(bytesPerSecond: number, clock: { monotonicMs(): number }) {
    this.#clock = clock;
    this.#bytesPerSecond = bytesPerSecond;
    this.#tokens = bytesPerSecond * BURST_SECONDS;
    this.#atMs = clock.monotonicMs();
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /**
   * From now on; `Infinity` is no limit. Debts stay, and are paid at the new rate; without a limit there are none, and nothing
   * is saved for one that follows.
   */
  set bytesPerSecond(rate: number) {
    if (rate === this.#bytesPerSecond) return;
    this.#settle();
    this.#atMs = this.#clock.monotonicMs();
    this.#bytesPerSecond = rate;
    this.#tokens = this.#tokens === Infinity ? 0 : Math.min(this.#tokens, rate * BURST_SECONDS);
  }

  /** Takes bytes that have come, and tells for how many milliseconds no more should be taken from their source. */
  spend(bytes: number): number {
    this.#settle();
    this.#tokens -= bytes;
    return this.#debt();
  }

  /** For how many milliseconds nothing should be taken. */
  debtMs(): number {
    this.#settle();
    return this.#debt();
  }

  #settle(): void {
    if (this.#bytesPerSecond === Infinity) {
      this.#tokens = Infinity;
      return;
    }
    const now = this.#clock.monotonicMs();
    const grown = this.#tokens + ((now - this.#atMs) * this.#bytesPerSecond) / 1000;
    this.#atMs = now;
    this.#tokens = Math.min(this.#bytesPerSecond * BURST_SECONDS, grown);
  }

  #debt(): number {
    return this.#tokens >= 0 ? 0 : Math.ceil((-this.#tokens / this.#bytesPerSecond) * 1000);
  }
}
