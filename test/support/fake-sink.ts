import type { BlockRun } from "../../src/model/extents.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { DiskSink, SinkResult } from "../../src/ports/repository.js";

/** Holds the blocks of one disk of a backup, and insists on what the port demands of its callers. */
export class FakeSink implements DiskSink {
  readonly #target: string;
  readonly #sizeBytes: number;
  readonly #parent: Buffer | undefined;
  readonly #blocks = new Map<number, Uint8Array>();
  readonly #awaited = new Set<number>();
  #announcedTo = 0;
  #finished = false;
  readBytes = 0;
  storedBytes = 0;
  zeroBytes = 0;

  /** With a parent's content, blocks that do not differ from it are not stored. */
  constructor(target: string, sizeBytes: number, parent?: Buffer) {
    this.#target = target;
    this.#sizeBytes = sizeBytes;
    this.#parent = parent;
  }

  expect({ offset, length }: BlockRun): void {
    if (offset < this.#announcedTo || offset % BLOCK_SIZE !== 0 || offset + length > this.#sizeBytes) {
      throw this.#defect(`announced ${length} bytes at ${offset}`);
    }
    this.#announcedTo = offset + length;
    for (let at = offset; at < offset + length; at += BLOCK_SIZE) this.#awaited.add(at);
  }

  write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    for (let at = 0; at < data.length; at += BLOCK_SIZE) {
      this.#take(offset + at, Uint8Array.from(data.subarray(at, at + BLOCK_SIZE)));
    }
    return Promise.resolve();
  }

  writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    for (let at = offset; at < offset + length; at += BLOCK_SIZE) {
      this.#take(at, new Uint8Array(Math.min(BLOCK_SIZE, offset + length - at)));
    }
    return Promise.resolve();
  }

  finish({ readBytes }: { readonly readBytes: number }): Promise<SinkResult> {
    if (this.#awaited.size > 0) throw this.#defect(`finished with ${this.#awaited.size} blocks missing`);
    this.#finished = true;
    this.readBytes = readBytes;
    return Promise.resolve({ storedBytes: this.storedBytes, zeroBytes: this.zeroBytes });
  }

  requireFinished(): void {
    if (!this.#finished) throw this.#defect("published before it was finished");
  }

  applyTo(content: Buffer): void {
    for (const [offset, block] of this.#blocks) content.set(block, offset);
  }

  /** What is stored, with what `newer` ones store of the same disk. */
  runs(newer: readonly FakeSink[] = []): readonly BlockRun[] {
    const blocks = new Map([this, ...newer].flatMap((sink) => [...sink.#blocks]));
    return [...blocks]
      .toSorted(([a], [b]) => a - b)
      .map(([offset, block]) => {
        const kind = block.some((byte) => byte !== 0) ? "data" : "zero";
        return { offset, length: block.length, kind };
      });
  }

  /** What a merge makes of this one and that of the parent. */
  over(older: FakeSink | undefined): FakeSink {
    const merged = new FakeSink(this.#target, this.#sizeBytes);
    for (const sink of older === undefined ? [this] : [older, this]) {
      for (const [offset, block] of sink.#blocks) merged.#blocks.set(offset, block);
    }
    return merged;
  }

  #take(offset: number, block: Uint8Array): void {
    const whole = Math.min(BLOCK_SIZE, this.#sizeBytes - offset);
    if (!this.#awaited.delete(offset) || block.length !== whole) {
      throw this.#defect(`got ${block.length} bytes at ${offset} that were not announced`);
    }
    if (this.#parent?.subarray(offset, offset + whole).equals(block) === true) return;
    this.#blocks.set(offset, block);
    if (block.some((byte) => byte !== 0)) this.storedBytes += block.length;
    else this.zeroBytes += block.length;
  }

  #defect(what: string): Error {
    return new Error(`Disk ${this.#target} of the draft: ${what}`);
  }
}
