import type { ManifestDisk } from "../../model/backup.js";
import { BLOCK_SIZE, type BlockRun } from "../../model/extents.js";
import type { BlockWriter } from "../../ports/block-io.js";
import type { DiskSink, DraftDisk, SinkResult } from "../../ports/repository.js";
import { FleeceError } from "../../shared/errors.js";
import { blocksOf, DIGEST_BYTES } from "./block-digest.js";
import type { BlockHasher } from "./block-hasher.js";
import { type ByteRange, ChainExpectations } from "./chain-expectations.js";
import type { ChainLink } from "./chain-images.js";
import type { DigestWriter } from "./digest-writer.js";
import { allSettled, manifestDisk, stretches } from "./disk-sink.js";

export interface CompareParts {
  readonly disk: DraftDisk;
  readonly image: BlockWriter;
  readonly digests: DigestWriter;
  readonly hasher: BlockHasher;
}

/** Neighbouring blocks that differ from the parent's and are stored alike. */
interface Difference extends BlockRun {
  /** One a block, of data. */
  readonly digests: Uint8Array;
}

/** What came for a range, whether or not anything of it has to be stored. */
interface Arrival {
  readonly length: number;
  readonly differences: readonly Difference[];
}

/**
 * Takes all content of a disk and stores what differs from the parent: the image and the digest file become those of an
 * incremental whose changes were known.
 */
export class CompareSink implements DiskSink {
  readonly #parts: CompareParts;
  readonly #parent: ChainExpectations;
  /** Announced and not yet in the digest file, ascending. */
  readonly #awaited: BlockRun[] = [];
  /** By offset; content comes in any order, while runs of the digest file must ascend. */
  readonly #arrived = new Map<number, Arrival>();
  #storedBytes = 0;
  #zeroBytes = 0;
  #result: ManifestDisk | undefined;

  private constructor(parts: CompareParts, parent: ChainExpectations) {
    this.#parts = parts;
    this.#parent = parent;
  }

  /** `parent` is the chain to compare with. Fails with DAMAGED if its digests are not what was stored. */
  static async open(parts: CompareParts, parent: readonly ChainLink[]): Promise<CompareSink> {
    try {
      return new CompareSink(parts, await ChainExpectations.open(parent));
    } catch (error) {
      await parts.digests.close();
      throw error;
    }
  }

  get storedBytes(): number {
    return this.#storedBytes;
  }

  /** What the manifest says of the disk, once it is finished. */
  get result(): ManifestDisk | undefined {
    return this.#result;
  }

  expect(run: BlockRun): void {
    const last = this.#awaited.at(-1);
    if (last !== undefined && run.offset < last.offset + last.length) {
      throw this.#defect(`a run behind the last, got ${run.length} bytes at ${run.offset}`);
    }
    this.#awaited.push(run);
  }

  async write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    this.#checkAwaited(offset, data.length, "data");
    const digests = await this.#parts.hasher.digests(data);
    const ranges = await this.#parent.differences(offset, data.length, digests);
    const differences = ranges.flatMap((range) => differencesIn(range, offset, digests));
    await allSettled([
      ...differences.map(async ({ kind, ...range }) => {
        const start = range.offset - offset;
        if (kind === "zero") await this.#storeZeroes(range, signal);
        else await this.#storeData(range.offset, data.subarray(start, start + range.length), signal);
      }),
      this.#record(offset, { length: data.length, differences }),
    ]);
  }

  async writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    this.#checkAwaited(offset, length, "zero");
    const ranges = await this.#parent.differences(offset, length);
    const differences = ranges.map(
      (range) => ({ ...range, kind: "zero", digests: new Uint8Array() }) satisfies Difference,
    );
    await allSettled([
      ...differences.map((range) => this.#storeZeroes(range, signal)),
      this.#record(offset, { length, differences }),
    ]);
  }

  async finish(result: { readonly readBytes: number; readonly durationMs: number }): Promise<SinkResult> {
    if (this.#result !== undefined) throw this.#defect("to be finished once");
    if (this.#awaited.length > 0 || this.#arrived.size > 0)
      throw this.#defect("all content that was announced");
    const digestsSha256 = await this.#parts.digests.finish();
    const sizes = { storedBytes: this.#storedBytes, zeroBytes: this.#zeroBytes };
    this.#result = manifestDisk(this.#parts.disk, { ...result, ...sizes, digestsSha256 });
    return sizes;
  }

  async close(): Promise<void> {
    await this.#parts.digests.close();
    await this.#parent.close();
  }

  #checkAwaited(offset: number, length: number, kind: BlockRun["kind"]): void {
    const end = offset + length;
    const run = this.#awaited.find((awaited) => end <= awaited.offset + awaited.length);
    if (run !== undefined && run.offset <= offset && run.kind === kind && !this.#arrived.has(offset)) return;
    throw this.#defect(`a part of an announced ${kind} run, got ${length} bytes at ${offset}`);
  }

  /** Brings what can be brought into order to the digest file. */
  async #record(offset: number, arrival: Arrival): Promise<void> {
    this.#arrived.set(offset, arrival);
    const writes: Promise<void>[] = [];
    for (let next = this.#takeNext(); next !== undefined; next = this.#takeNext()) {
      for (const difference of next.differences) {
        this.#parts.digests.expect(difference);
        if (difference.kind === "zero") this.#parts.digests.zeroes(difference.offset, difference.length);
        else writes.push(this.#parts.digests.write(difference.offset, difference.length, difference.digests));
      }
    }
    await allSettled(writes);
  }

  #takeNext(): Arrival | undefined {
    const [run] = this.#awaited;
    const arrival = run === undefined ? undefined : this.#arrived.get(run.offset);
    if (run === undefined || arrival === undefined) return undefined;
    this.#arrived.delete(run.offset);
    this.#awaited.shift();
    const { length } = arrival;
    if (length < run.length) {
      this.#awaited.unshift({ ...run, offset: run.offset + length, length: run.length - length });
    }
    return arrival;
  }

  async #storeData(offset: number, data: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    await this.#parts.image.write(offset, data, signal);
    this.#storedBytes += data.length;
  }

  async #storeZeroes({ offset, length }: ByteRange, signal: AbortSignal | undefined): Promise<void> {
    await this.#parts.image.writeZeroes(offset, length, signal);
    this.#zeroBytes += length;
  }

  #defect(expected: string): FleeceError {
    return new FleeceError("INTERNAL", `Disk ${this.#parts.disk.target}: expected ${expected}`);
  }
}

/** `digests` are those of the content from `base` on. */
function differencesIn(range: ByteRange, base: number, digests: Uint8Array): Difference[] {
  const digestsOf = ({ offset, length }: ByteRange): Uint8Array => {
    const at = ((offset - base) / BLOCK_SIZE) * DIGEST_BYTES;
    return digests.subarray(at, at + blocksOf(length) * DIGEST_BYTES);
  };
  return stretches(digestsOf(range), range.length).map(({ start, length, zero }) => {
    const part = { offset: range.offset + start, length };
    return { ...part, kind: zero ? "zero" : "data", digests: digestsOf(part) };
  });
}
