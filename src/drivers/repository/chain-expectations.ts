import { BLOCK_SIZE, type BlockRun } from "../../model/extents.js";
import { FleeceError } from "../../shared/errors.js";
import type { BlockExpectations } from "../../ports/repository.js";
import { blocksOf, DIGEST_BYTES, rangeOf } from "./block-digest.js";
import { BlockHasher } from "./block-hasher.js";
import type { ChainLink } from "./chain-images.js";
import { DigestFile } from "./digest-file.js";

/** At most so many digests are in memory at once: 64 KiB of them cover 128 MiB of a disk. */
const MAX_SLOTS = 2048;
const ZERO_DIGEST = new Uint8Array(DIGEST_BYTES);

/** Consecutive blocks whose digests stand together in one file, or that must be zero. */
export interface Segment {
  readonly firstBlock: number;
  readonly blockCount: number;
  /** One of the files has them. */
  readonly known: boolean;
  readonly stored: { readonly file: DigestFile; readonly firstSlot: number } | undefined;
}

/** In bytes, of whole blocks; the disk's end may cut the last. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** What the blocks of a disk must hold according to the digest files of a chain. */
export class ChainExpectations implements BlockExpectations {
  readonly #files: readonly DigestFile[];
  /** Of the backups that have them, in their order. */
  readonly #ids: readonly string[];
  readonly #diskBytes: number;
  readonly #hasher = new BlockHasher();

  /** Newest first. Takes over the files. */
  constructor(files: readonly DigestFile[], diskBytes: number, ids: readonly string[] = []) {
    this.#files = files;
    this.#ids = ids;
    this.#diskBytes = diskBytes;
  }

  /** Of a disk with these links, the oldest first. Fails with DAMAGED unless each file is what its manifest says. */
  static async open(links: readonly ChainLink[]): Promise<ChainExpectations> {
    const files: DigestFile[] = [];
    try {
      for (const { digestsPath, disk, key } of links.toReversed()) {
        const facts = { path: digestsPath, diskBytes: disk.sizeBytes, sha256: disk.digestsSha256, key };
        files.push(await DigestFile.open(facts));
      }
    } catch (error) {
      for (const file of files) await file.close();
      throw error;
    }
    const ids = links.map(({ id }) => id).toReversed();
    return new ChainExpectations(files, links.at(-1)?.disk.sizeBytes ?? 0, ids);
  }

  async firstMismatch(offset: number, data: Uint8Array): Promise<number | undefined> {
    return await firstOffset(this.#differing(offset, data.length, await this.#hasher.digests(data)));
  }

  async firstNonZero(offset: number, length: number): Promise<number | undefined> {
    return await firstOffset(this.#differing(offset, length));
  }

  /** Where a range does not hold what has these digests, one a block; without any, where it is not zero. */
  async differences(offset: number, length: number, found?: Uint8Array): Promise<readonly ByteRange[]> {
    const ranges: ByteRange[] = [];
    for await (const block of this.#differing(offset, length, found)) {
      const last = ranges.at(-1);
      if (last !== undefined && last.offset + last.length === block.offset) {
        ranges[ranges.length - 1] = { offset: last.offset, length: last.length + block.length };
      } else {
        ranges.push(block);
      }
    }
    return ranges;
  }

  *runs(since: string | undefined): Generator<BlockRun> {
    const older = since === undefined ? -1 : this.#ids.indexOf(since);
    const files = older === -1 ? this.#files : this.#files.slice(0, older);
    for (const segment of segments(files, 0, blocksOf(this.#diskBytes))) {
      if (!segment.known) continue;
      const { firstBlock, blockCount, stored } = segment;
      const kind = stored === undefined ? "zero" : "data";
      yield { ...rangeOf(firstBlock, blockCount, this.#diskBytes), kind };
    }
  }

  async close(): Promise<void> {
    await this.#hasher.close();
    for (const file of this.#files) await file.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Block by block. */
  async *#differing(offset: number, length: number, found?: Uint8Array): AsyncGenerator<ByteRange> {
    this.#checkRange(offset, length);
    const start = offset / BLOCK_SIZE;
    const wanted = segments(this.#files, start, start + blocksOf(length));
    for (const { firstBlock, blockCount, stored } of wanted) {
      // A hole of terabytes that must be zero, and is, costs nothing.
      if (stored === undefined && found === undefined) continue;
      for (let done = 0; done < blockCount; done += MAX_SLOTS) {
        const count = Math.min(MAX_SLOTS, blockCount - done);
        const expected = await stored?.file.digests(stored.firstSlot + done, count);
        for (let index = 0; index < count; index++) {
          const block = firstBlock + done + index;
          if (Buffer.compare(digestAt(found, block - start), digestAt(expected, index)) === 0) continue;
          const at = block * BLOCK_SIZE;
          yield { offset: at, length: Math.min(BLOCK_SIZE, this.#diskBytes - at) };
        }
      }
    }
  }

  #checkRange(offset: number, length: number): void {
    const end = offset + length;
    const whole = offset % BLOCK_SIZE === 0 && (end % BLOCK_SIZE === 0 || end === this.#diskBytes);
    if (whole && end <= this.#diskBytes) return;
    throw new FleeceError("INTERNAL", `Expected whole blocks of the disk, got ${length} bytes at ${offset}`);
  }
}

/** Of one block; where there are no digests, of a block of zeroes. */
function digestAt(digests: Uint8Array | undefined, index: number): Uint8Array {
  return digests?.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES) ?? ZERO_DIGEST;
}

async function firstOffset(blocks: AsyncGenerator<ByteRange>): Promise<number | undefined> {
  const next = await blocks.next();
  return next.done === true ? undefined : next.value.offset;
}

/** The newest file that has a block decides; what it has not is looked for in the next; what none has is zero. */
export function* segments(
  files: readonly DigestFile[],
  firstBlock: number,
  endBlock: number,
  depth = 0,
): Generator<Segment> {
  if (firstBlock >= endBlock) return;
  const file = files[depth];
  if (file === undefined) {
    yield { firstBlock, blockCount: endBlock - firstBlock, known: false, stored: undefined };
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
      known: true,
      stored: firstSlot === undefined ? undefined : { file, firstSlot },
    };
  }
  yield* segments(files, block, endBlock, depth + 1);
}
