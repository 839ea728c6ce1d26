import { BLOCK_SIZE } from "../../model/extents.js";
import { FleeceError } from "../../shared/errors.js";
import type { BlockExpectations } from "../../ports/repository.js";
import { blocksOf, DIGEST_BYTES, isZero } from "./block-digest.js";
import { BlockHasher } from "./block-hasher.js";
import type { DigestFile } from "./digest-file.js";

/** At most so many digests are in memory at once: 64 KiB of them cover 128 MiB of a disk. */
const MAX_SLOTS = 2048;

/** Consecutive blocks whose digests stand together in one file, or that must be zero. */
interface Segment {
  readonly firstBlock: number;
  readonly blockCount: number;
  readonly stored: { readonly file: DigestFile; readonly firstSlot: number } | undefined;
}

/** What the blocks of a disk must hold according to the digest files of a chain. */
export class ChainExpectations implements BlockExpectations {
  readonly #files: readonly DigestFile[];
  readonly #diskBytes: number;
  readonly #hasher = new BlockHasher();

  /** Newest first. Takes over the files. */
  constructor(files: readonly DigestFile[], diskBytes: number) {
    this.#files = files;
    this.#diskBytes = diskBytes;
  }

  async firstMismatch(offset: number, data: Uint8Array): Promise<number | undefined> {
    this.#checkRange(offset, data.length);
    const found = await this.#hasher.digests(data);
    const foundAt = (block: number): Uint8Array => {
      const at = (block - offset / BLOCK_SIZE) * DIGEST_BYTES;
      return found.subarray(at, at + DIGEST_BYTES);
    };
    return await this.#firstBlock(offset, data.length, {
      whereStored: (block, digest) => Buffer.compare(foundAt(block), digest) !== 0,
      whereZero: (block) => !isZero(foundAt(block)),
    });
  }

  async firstNonZero(offset: number, length: number): Promise<number | undefined> {
    this.#checkRange(offset, length);
    return await this.#firstBlock(offset, length, { whereStored: (_block, digest) => !isZero(digest) });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#hasher.close();
    for (const file of this.#files) await file.close();
  }

  #checkRange(offset: number, length: number): void {
    const end = offset + length;
    const whole = offset % BLOCK_SIZE === 0 && (end % BLOCK_SIZE === 0 || end === this.#diskBytes);
    if (whole && end <= this.#diskBytes) return;
    throw new FleeceError("INTERNAL", `Expected whole blocks of the disk, got ${length} bytes at ${offset}`);
  }

  /** Offset of the first block of a range that differs. */
  async #firstBlock(offset: number, length: number, difference: Difference): Promise<number | undefined> {
    const firstBlock = offset / BLOCK_SIZE;
    for (const segment of segments(this.#files, firstBlock, firstBlock + blocksOf(length), 0)) {
      const block =
        segment.stored === undefined
          ? firstNotZero(segment, difference)
          : await firstNotStored(segment, segment.stored, difference);
      if (block !== undefined) return block * BLOCK_SIZE;
    }
    return undefined;
  }
}

/** Whether a block differs from what it must be. */
interface Difference {
  whereStored(block: number, digest: Uint8Array): boolean;
  /** Left out where no block can differ that must be zero: a hole of terabytes then costs nothing. */
  whereZero?(block: number): boolean;
}

function firstNotZero({ firstBlock, blockCount }: Segment, difference: Difference): number | undefined {
  if (difference.whereZero === undefined) return undefined;
  for (let block = firstBlock; block < firstBlock + blockCount; block++) {
    if (difference.whereZero(block)) return block;
  }
  return undefined;
}

async function firstNotStored(
  { firstBlock, blockCount }: Segment,
  { file, firstSlot }: NonNullable<Segment["stored"]>,
  difference: Difference,
): Promise<number | undefined> {
  for (let done = 0; done < blockCount; done += MAX_SLOTS) {
    const count = Math.min(MAX_SLOTS, blockCount - done);
    const digests = await file.digests(firstSlot + done, count);
    for (let index = 0; index < count; index++) {
      const digest = digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
      if (difference.whereStored(firstBlock + done + index, digest)) return firstBlock + done + index;
    }
  }
  return undefined;
}

/** The newest file that has a block decides; what it has not is looked for in the next; what none has is zero. */
function* segments(
  files: readonly DigestFile[],
  firstBlock: number,
  endBlock: number,
  depth: number,
): Generator<Segment> {
  if (firstBlock >= endBlock) return;
  const file = files[depth];
  if (file === undefined) {
    yield { firstBlock, blockCount: endBlock - firstBlock, stored: undefined };
    return;
  }
  let block = firstBlock;
  for (let index = file.runs.indexAt(firstBlock); index < file.runs.runCount && block < endBlock; index++) {
    const run = file.runs.run(index);
    if (run.firstBlock >= endBlock) break;
    const start = Math.max(block, run.firstBlock);
    yield* segments(files, block, start, depth + 1);
    block = Math.min(endBlock, run.firstBlock + run.blockCount);
    const firstSlot = run.firstSlot === undefined ? undefined : run.firstSlot + start - run.firstBlock;
    yield {
      firstBlock: start,
      blockCount: block - start,
      stored: firstSlot === undefined ? undefined : { file, firstSlot },
    };
  }
  yield* segments(files, block, endBlock, depth + 1);
}
