import type { Want } from "./byte-feeder.js";
import { Receiver, type RequestRange } from "./receiver.js";

/** Puts the chunks of a READ reply, in any order, into one buffer, and knows whether all of it came. */
export class ReadAssembler extends Receiver {
  readonly kind = "read";
  readonly #into: Uint8Array;
  readonly #unfragmented: boolean;
  #contentChunks = 0;
  /** Covered parts as disjoint [start, end) pairs, ascending, relative to the buffer, never touching. */
  readonly #covered: { start: number; end: number }[] = [];

  /** `into` has exactly the length of the range. `unfragmented`: the request had the DF flag. */
  constructor(range: RequestRange, into: Uint8Array, unfragmented = false) {
    super(range);
    this.#into = into;
    this.#unfragmented = unfragmented;
  }

  /** Where the payload of a simple reply goes. */
  whole(): Want {
    return this.data(this.range.offset, this.range.length);
  }

  /** Where a chunk's data goes. It counts as received: the parser delivers all of it or the connection fails. */
  data(offset: number, length: number): Want {
    const start = this.#cover(offset, length, "data");
    return this.abandoned ? length : this.#into.subarray(start, start + length);
  }

  hole(offset: number, length: number): void {
    const start = this.#cover(offset, length, "a hole");
    if (!this.abandoned) this.#into.fill(0, start, start + length);
  }

  override complete(): void {
    const [first] = this.#covered;
    if (this.#covered.length === 1 && first?.start === 0 && first.end === this.range.length) return;
    const bytes = this.#covered.reduce((sum, part) => sum + part.end - part.start, 0);
    throw this.violation("READ_INCOMPLETE", `${bytes} bytes only, although it reported success`);
  }

  #cover(offset: number, length: number, what: string): number {
    const start = offset - this.range.offset;
    const end = start + length;
    if (start < 0 || end > this.range.length) {
      throw this.violation("CHUNK_OUT_OF_RANGE", `${what} of ${length} bytes at ${offset}`);
    }
    this.#contentChunks += 1;
    if (this.#unfragmented && this.#contentChunks > 1) {
      throw this.violation("BAD_REPLY", `${what} in a second chunk where one was asked for`);
    }
    const at = this.#firstEndingAfter(start);
    const next = this.#covered[at];
    if (next !== undefined && next.start < end) {
      throw this.violation(
        "CHUNK_OVERLAP",
        `${what} of ${length} bytes at ${offset}, part of which it sent before`,
      );
    }
    this.#insert(at, start, end);
    return start;
  }

  #insert(at: number, start: number, end: number): void {
    const before = this.#covered[at - 1];
    const after = this.#covered[at];
    if (before?.end === start && after?.start === end) {
      before.end = after.end;
      this.#covered.splice(at, 1);
    } else if (before?.end === start) {
      before.end = end;
    } else if (after?.start === end) {
      after.start = start;
    } else {
      this.#covered.splice(at, 0, { start, end });
    }
  }

  /** Servers send chunks in order, so the search starts, and mostly ends, at the back. */
  #firstEndingAfter(start: number): number {
    const last = this.#covered.at(-1);
    if (last === undefined || last.end <= start) return this.#covered.length;
    let low = 0;
    let high = this.#covered.length - 1;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#covered[middle]?.end ?? 0) > start) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
