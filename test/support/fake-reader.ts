import type { Extent } from "../../src/model/extents.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { BlockReader } from "../../src/ports/block-io.js";
import { FleeceError } from "../../src/shared/errors.js";

/** What an export offers. `content` may be live (an inactive image); whoever owns the export ends it. */
export interface FakeExport {
  readonly exportName: string;
  readonly socketPath: string;
  readonly content: Buffer;
  readonly changes?: ReadonlySet<number>;
  ended: boolean;
}

/** An image that is being written: what was written of one that is based on a parent has changed. */
export interface FakeImage extends FakeExport {
  readonly written: Set<number>;
}

/** Zeroes are told in finer steps than blocks, so that callers meet blocks that are zero in part. */
const ZERO_GRANULARITY = 16384;
const ZEROES = Buffer.alloc(ZERO_GRANULARITY);

export class FakeReader implements BlockReader {
  readonly sizeBytes: number;
  readonly #source: FakeExport;
  readonly #released: { readonly offset: number; readonly end: number }[] = [];
  #closed = false;

  constructor(source: FakeExport) {
    this.#source = source;
    this.sizeBytes = source.content.length;
  }

  async *extents(signal?: AbortSignal): AsyncGenerator<Extent> {
    let pending: Extent | undefined;
    for (let offset = 0; offset < this.sizeBytes; offset += ZERO_GRANULARITY) {
      this.#check(signal);
      const length = Math.min(ZERO_GRANULARITY, this.sizeBytes - offset);
      const changed = this.#source.changes?.has(Math.floor(offset / BLOCK_SIZE)) ?? true;
      const part = this.#source.content.subarray(offset, offset + length);
      const zero = part.equals(ZEROES.subarray(0, length));
      if (pending?.changed === changed && pending.zero === zero) {
        pending = { ...pending, length: pending.length + length };
        continue;
      }
      if (pending !== undefined) yield await Promise.resolve(pending);
      pending = { offset, length, changed, zero };
    }
    if (pending !== undefined) yield pending;
  }

  async read(offset: number, length: number, signal?: AbortSignal, into?: Uint8Array): Promise<Uint8Array> {
    await Promise.resolve();
    this.#check(signal);
    if (offset < 0 || offset + length > this.sizeBytes) {
      throw new FleeceError("NBD_FAILED", `Expected a read within ${this.sizeBytes} bytes`);
    }
    if (this.#released.some((gone) => offset < gone.end && gone.offset < offset + length)) {
      throw new FleeceError("NBD_FAILED", `What was given up is read again at ${offset}`);
    }
    const content = this.#source.content.subarray(offset, offset + length);
    into?.set(content);
    return into ?? Uint8Array.from(content);
  }

  release(offset: number, length: number): Promise<void> {
    this.#released.push({ offset, end: offset + length });
    return Promise.resolve();
  }

  close(): Promise<void> {
    this.#closed = true;
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #check(signal?: AbortSignal): void {
    signal?.throwIfAborted();
    if (this.#closed) throw new FleeceError("NBD_FAILED", "The reader is closed");
    if (this.#source.ended) throw new FleeceError("NBD_FAILED", "The server closed the connection");
  }
}
