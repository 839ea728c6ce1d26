/**
 * What a parser waits for: memory that the next bytes fill completely, or a number of bytes to drop.
 * Naming the memory lets a transport receive straight into it.
 */
export type Want = Uint8Array | number;

/**
 * A parser is a generator that yields what it wants next and returns its result. It owns no socket and sees no
 * chunks, so it cannot depend on how the input was cut.
 */
export type ByteParser<T> = Generator<Want, T, undefined>;

/** Up to a header's length a loop is cheaper than the view that `set` needs. */
const SMALL_BYTES = 32;

/** Feeds received bytes, in chunks of any size, to a parser. */
export class ByteFeeder<T> {
  readonly #parser: ByteParser<T>;
  #want: Want = 0;
  #wantedBytes = 0;
  #filledBytes = 0;
  #result: { readonly value: T } | undefined;

  constructor(parser: ByteParser<T>) {
    this.#parser = parser;
    this.#advance();
  }

  /** The parser's result, once it has returned. */
  get result(): { readonly value: T } | undefined {
    return this.#result;
  }

  /** Memory that the next bytes belong in, if they are to be kept. */
  get target(): Uint8Array | undefined {
    if (this.#result !== undefined || typeof this.#want === "number") return undefined;
    const filled = this.#filledBytes;
    // Not `subarray`: on a Buffer it makes another Buffer, which takes several times as long.
    const { buffer, byteOffset } = this.#want;
    return filled === 0
      ? this.#want
      : new Uint8Array(buffer, byteOffset + filled, this.#wantedBytes - filled);
  }

  /**
   * Consumes the first `length` bytes of a chunk, by default all; returns how many of them were used, fewer only when
   * the parser has returned.
   */
  push(chunk: Uint8Array, length = chunk.length): number {
    let used = 0;
    while (used < length && this.#result === undefined) {
      const missing = this.#wantedBytes - this.#filledBytes;
      const take = Math.min(length - used, missing);
      if (typeof this.#want !== "number") this.#place(this.#want, chunk, used, take);
      used += take;
      this.#filledBytes += take;
      if (take === missing) this.#advance();
    }
    return used;
  }

  /**
   * Bytes that the transport received into their final place stay there. Which buffer a chunk came in is looked
   * at, never assumed: a transport fixes the buffer of its next receive before it knows what will arrive.
   */
  #place(want: Uint8Array, chunk: Uint8Array, from: number, count: number): void {
    const inPlace =
      chunk.buffer === want.buffer && chunk.byteOffset + from === want.byteOffset + this.#filledBytes;
    if (inPlace) return;
    if (count <= SMALL_BYTES) {
      for (let at = 0; at < count; at += 1) want[this.#filledBytes + at] = chunk[from + at] ?? 0;
    } else {
      want.set(chunk.subarray(from, from + count), this.#filledBytes);
    }
  }

  #advance(): void {
    do {
      const step = this.#parser.next();
      this.#filledBytes = 0;
      if (step.done === true) {
        this.#result = { value: step.value };
        return;
      }
      this.#want = step.value;
      this.#wantedBytes = typeof step.value === "number" ? step.value : step.value.length;
    } while (this.#wantedBytes === 0);
  }
}

/** Reads exactly `lengthBytes`. The caller has checked the length against a bound. */
export function* takeBytes(lengthBytes: number): ByteParser<Buffer> {
  const bytes = Buffer.allocUnsafe(lengthBytes);
  yield bytes;
  return bytes;
}
