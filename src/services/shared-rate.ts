import type { Clock } from "../ports/clock.js";
import { TokenBucket } from "../shared/token-bucket.js";

/**
 * A rate for all who move data under it. Those who read piece by piece spend from a bucket; a copy that QEMU makes is told its
 * speed, and gets as much as each of the others.
 */
export class SharedRate {
  readonly #bucket: TokenBucket;
  readonly #members = { reader: 0, copy: 0 };
  #bytesPerSecond = Infinity;

  constructor(clock: Clock) {
    this.#bucket = new TokenBucket(Infinity, clock);
  }

  set bytesPerSecond(rate: number) {
    this.#bytesPerSecond = rate;
    this.#share();
  }

  /** What the readers have together now. */
  get readersBytesPerSecond(): number {
    return this.#bucket.bytesPerSecond;
  }

  /** What each copy has now. */
  get copyBytesPerSecond(): number {
    const { reader, copy } = this.#members;
    return this.#bytesPerSecond / Math.max(1, reader + copy);
  }

  join(kind: "reader" | "copy"): Disposable {
    this.#members[kind]++;
    this.#share();
    return {
      [Symbol.dispose]: () => {
        this.#members[kind]--;
        this.#share();
      },
    };
  }

  /** As of a `TokenBucket`. */
  spend(bytes: number): number {
    return this.#bucket.spend(bytes);
  }

  debtMs(): number {
    return this.#bucket.debtMs();
  }

  #share(): void {
    const { reader, copy } = this.#members;
    this.#bucket.bytesPerSecond =
      reader === 0 ? this.#bytesPerSecond : (this.#bytesPerSecond * reader) / (reader + copy);
  }
}
