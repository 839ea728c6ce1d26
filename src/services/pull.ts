import type { DiskMode } from "../model/backup.js";
import type { BlockRun } from "../model/extents.js";
import { BLOCK_SIZE, blockRuns, pieces } from "../model/extents.js";
import type { BlockReader } from "../ports/block-io.js";
import type { DiskSink } from "../ports/repository.js";
import { forEachLimited } from "../shared/async.js";
import type { ChangeSample, SampledBlock } from "./change-sample.js";
import type { ReadPace } from "./pace.js";
import { GIB, KIB, MIB } from "../shared/units.js";

/** The largest request of the NBD client: each costs the same work here, whatever its length. */
export const READ_BYTES = 2 * MIB;
/** Enough that small pieces do not wait for each other; more 2 MiB pieces would fall out of the processor's cache. */
export const READS_IN_FLIGHT = 8;
/** A range of zeroes costs the same whatever its length; the limit is that of a 32-bit request. */
const ZERO_BYTES = GIB;

/** Much memory makes V8 collect garbage, which takes longer than to read the scattered blocks of a small incremental. */
const SMALL_READ_BYTES = 128 * KIB;
/** Of small pieces: little beside the scratch space that a guest takes while so many are read. */
const KEPT_BYTES = 32 * MIB;

/** Memory to read into, used again and again: the kernel takes longer to find fresh memory than to fill it. */
export class ReadBuffers {
  readonly #free = { small: new Array<Uint8Array>(), large: new Array<Uint8Array>() };

  /** Of at least `length` bytes, which are at most `READ_BYTES`. There are as many as are taken at once. */
  take(length: number): Uint8Array {
    if (length > SMALL_READ_BYTES) return this.#free.large.pop() ?? Buffer.allocUnsafeSlow(READ_BYTES);
    return this.#free.small.pop() ?? Buffer.allocUnsafeSlow(SMALL_READ_BYTES);
  }

  /** Not after an error: a late reply may still arrive in it. */
  give(memory: Uint8Array): void {
    this.#free[memory.length > SMALL_READ_BYTES ? "large" : "small"].push(memory);
  }
}

/**
 * Gives up what has been read. That is a request more for each piece, which for small ones is much beside reading them: they
 * keep their scratch space until there are many, which a small incremental never has.
 */
class Releases {
  readonly #reader: BlockReader;
  readonly #kept: { readonly offset: number; readonly length: number }[] = [];
  #keptBytes = 0;

  constructor(reader: BlockReader) {
    this.#reader = reader;
  }

  async add(offset: number, length: number, signal: AbortSignal): Promise<void> {
    if (length > SMALL_READ_BYTES) return this.#reader.release(offset, length, signal);
    this.#kept.push({ offset, length });
    this.#keptBytes += length;
    if (this.#keptBytes <= KEPT_BYTES) return;
    const oldest = this.#kept.shift();
    if (oldest === undefined) return;
    this.#keptBytes -= oldest.length;
    await this.#reader.release(oldest.offset, oldest.length, signal);
  }
}

export interface PullOptions {
  readonly reader: BlockReader;
  readonly sink: DiskSink;
  /** `whole` starts from an image that reads as zeroes; the others from one that shows its parent. */
  readonly mode: DiskMode;
  readonly signal?: AbortSignal | undefined;
  /** How far into the disk the pull has come, and what it has read so far, in bytes. */
  readonly onProgress?: (positionBytes: number, readBytes: number) => void;
  /** In mode `changes`: what of the rest is read, too, to see whether it has changed. */
  readonly sample?: ChangeSample | undefined;
  /** Left out: as fast as it can be read and stored. */
  readonly pace?: ReadPace | undefined;
}

type PullRequest = BlockRun | SampledBlock;

/**
 * Moves what has to be moved of one disk. Resolves with the bytes read once all of it is in the sink. Content is given up
 * as soon as it has been read, all but 32 MiB of small pieces: the guest's later writes to it cost no scratch space. What
 * need not be read is not given up: that would cost QEMU time and scratch space by the size of the disk, not by what has changed.
 */
export async function pull({
  reader,
  sink,
  mode,
  signal,
  onProgress,
  sample,
  pace = UNPACED,
}: PullOptions): Promise<number> {
  let readBytes = 0;
  let storedBytes = 0;
  const buffers = new ReadBuffers();
  const releases = new Releases(reader);
  const requests = async function* (): AsyncGenerator<PullRequest> {
    let end = 0;
    for await (const run of blockRuns(reader.extents(signal), reader.sizeBytes, BLOCK_SIZE)) {
      if (sample !== undefined) yield* sample.pick(end, run.offset);
      end = run.offset + run.length;
      if (run.kind === "zero" && mode === "whole") continue;
      for (const piece of pieces(run, run.kind === "zero" ? ZERO_BYTES : () => pace.pieceBytes(READ_BYTES))) {
        sink.expect(piece);
        yield piece;
      }
    }
    if (sample !== undefined) yield* sample.pick(end, reader.sizeBytes);
  };
  await forEachLimited(
    requests(),
    READS_IN_FLIGHT,
    async ({ offset, length, kind }, stop) => {
      if (kind !== "zero") await pace.beforeRead(length, stop);
      if (kind === "unchanged") {
        const memory = buffers.take(length);
        await sample?.check(offset, await reader.read(offset, length, stop, memory.subarray(0, length)));
        buffers.give(memory);
        return;
      }
      if (kind === "zero") {
        await sink.writeZeroes(offset, length, stop);
      } else {
        const memory = buffers.take(length);
        const data = await reader.read(offset, length, stop, memory.subarray(0, length));
        await Promise.all([sink.write(offset, data, stop), releases.add(offset, length, stop)]);
        buffers.give(memory);
        readBytes += length;
        pace.wrote(sink.storedBytes - storedBytes);
        storedBytes = sink.storedBytes;
      }
      onProgress?.(offset + length, readBytes);
    },
    signal,
  );
  onProgress?.(reader.sizeBytes, readBytes);
  return readBytes;
}

const UNPACED: ReadPace = {
  pieceBytes: (most) => most,
  beforeRead: () => Promise.resolve(),
  wrote: () => undefined,
};
