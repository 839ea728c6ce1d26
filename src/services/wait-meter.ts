import { type BackupWaits, WAIT_REASONS, type WaitReason } from "../model/backup-limits.js";
import type { Clock } from "../ports/clock.js";

/** Adds up how long something waited for each reason; waits for one reason at the same time count once. */
export class WaitMeter {
  readonly #clock: Clock;
  readonly #sums: Record<WaitReason, number> = { readLimit: 0, writeLimit: 0, guestLatency: 0 };
  readonly #under = new Map<WaitReason, { sinceMs: number; count: number }>();
  readonly #addedUntilMs: Record<WaitReason, number> = { readLimit: 0, writeLimit: 0, guestLatency: 0 };

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** In whole milliseconds, with what has not ended. */
  get waits(): BackupWaits {
    const waits = { ...this.#sums };
    for (const [reason, { sinceMs }] of this.#under) waits[reason] += this.#clock.monotonicMs() - sinceMs;
    for (const reason of WAIT_REASONS) waits[reason] = Math.round(waits[reason]);
    return waits;
  }

  begin(reason: WaitReason): Disposable {
    const wait = this.#under.get(reason) ?? { sinceMs: this.#clock.monotonicMs(), count: 0 };
    wait.count++;
    this.#under.set(reason, wait);
    return {
      [Symbol.dispose]: () => {
        if (--wait.count > 0) return;
        this.#under.delete(reason);
        this.#sums[reason] += this.#clock.monotonicMs() - wait.sinceMs;
      },
    };
  }

  /** A wait that has ended just now, seen from outside. */
  add(reason: WaitReason, sinceMs: number): void {
    const nowMs = this.#clock.monotonicMs();
    this.#sums[reason] += Math.max(0, nowMs - Math.max(sinceMs, this.#addedUntilMs[reason]));
    this.#addedUntilMs[reason] = nowMs;
  }
}
