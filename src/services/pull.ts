import type { BlockRun } from "../model/extents.js";
import { BLOCK_SIZE, blockRuns, pieces } from "../model/extents.js";
import type { BlockReader } from "../ports/block-io.js";
import type { DiskSink } from "../ports/repository.js";
import { forEachLimited } from "../shared/async.js";
import { GIB, MIB } from "../shared/units.js";

/** Measured best against QEMU's server: 256 KiB to 1 MiB; from 2 MiB on its allocator slows everything down. */
export const READ_BYTES = MIB;
/** More than 8 MiB in flight fall out of the processor's cache, and QEMU serves at most 16 requests per connection. */
export const READS_IN_FLIGHT = 8;
/** A range of zeroes costs the same whatever its length; the limit is that of a 32-bit request. */
const ZERO_BYTES = GIB;

export interface PullOptions {
  readonly reader: BlockReader;
  readonly sink: DiskSink;
  /** A full starts from an image that reads as zeroes, an incremental from one that shows its parent. */
  readonly level: "full" | "incremental";
  readonly signal?: AbortSignal | undefined;
  /** How far into the disk the pull has come, and what it has read so far, in bytes. */
  readonly onProgress?: (positionBytes: number, readBytes: number) => void;
}

/** Moves what has to be moved of one disk. Resolves with the bytes read once all of it is in the sink. */
export async function pull({ reader, sink, level, signal, onProgress }: PullOptions): Promise<number> {
  let readBytes = 0;
  const requests = async function* (): AsyncGenerator<BlockRun> {
    for await (const run of blockRuns(reader.extents(signal), reader.sizeBytes, BLOCK_SIZE)) {
      if (run.kind === "zero" && level === "full") continue;
      for (const piece of pieces(run, run.kind === "zero" ? ZERO_BYTES : READ_BYTES)) {
        sink.expect(piece);
        yield piece;
      }
    }
  };
  await forEachLimited(
    requests(),
    READS_IN_FLIGHT,
    async ({ offset, length, kind }, stop) => {
      if (kind === "zero") {
        await sink.writeZeroes(offset, length, stop);
      } else {
        await sink.write(offset, await reader.read(offset, length, stop), stop);
        readBytes += length;
      }
      onProgress?.(offset + length, readBytes);
    },
    signal,
  );
  onProgress?.(reader.sizeBytes, readBytes);
  return readBytes;
}
