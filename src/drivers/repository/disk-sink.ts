import type { ManifestDisk } from "../../model/backup.js";
import { BLOCK_SIZE, type BlockRun } from "../../model/extents.js";
import type { BlockWriter } from "../../ports/block-io.js";
import type { DiskSink, DraftDisk, SinkResult } from "../../ports/repository.js";
import { FleeceError } from "../../shared/errors.js";
import { DIGEST_BYTES, isZero } from "./block-digest.js";
import type { BlockHasher } from "./block-hasher.js";
import type { DigestWriter } from "./digest-writer.js";
import { digestsFile, imageFile } from "./layout.js";

/**
 * Writes the content of one disk to its image, unless it is there already, and the digests of it to the file beside.
 */
export class ImageSink implements DiskSink {
  readonly #disk: DraftDisk;
  readonly #image: BlockWriter;
  readonly #digests: DigestWriter;
  readonly #hasher: BlockHasher;
  readonly #storesData: boolean;
  /** An image without a backing file is zero where nothing is written; one with must say so. */
  readonly #storesZeroes: boolean;
  #storedBytes = 0;
  #zeroBytes = 0;
  #result: ManifestDisk | undefined;

  constructor(parts: {
    disk: DraftDisk;
    image: BlockWriter;
    digests: DigestWriter;
    hasher: BlockHasher;
    storesData: boolean;
    storesZeroes: boolean;
  }) {
    this.#disk = parts.disk;
    this.#image = parts.image;
    this.#digests = parts.digests;
    this.#hasher = parts.hasher;
    this.#storesData = parts.storesData;
    this.#storesZeroes = parts.storesZeroes;
  }

  get storedBytes(): number {
    return this.#storedBytes;
  }

  /** What the manifest says of the disk, once it is finished. */
  get result(): ManifestDisk | undefined {
    return this.#result;
  }

  expect(run: BlockRun): void {
    this.#digests.expect(run);
  }

  async write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    this.#digests.check(offset, data.length, "data");
    const digests = await this.#hasher.digests(data);
    await allSettled([
      ...stretches(digests, data.length).map(async ({ start, length, zero }) => {
        if (zero) await this.#storeZeroes(offset + start, length, signal);
        else await this.#storeData(offset + start, data.subarray(start, start + length), signal);
      }),
      this.#digests.write(offset, data.length, digests),
    ]);
  }

  async writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    this.#digests.zeroes(offset, length);
    await this.#storeZeroes(offset, length, signal);
  }

  async finish(result: { readonly readBytes: number; readonly durationMs: number }): Promise<SinkResult> {
    if (this.#result !== undefined) {
      throw new FleeceError("INTERNAL", `Expected disk ${this.#disk.target} to be finished once`);
    }
    const digestsSha256 = await this.#digests.finish();
    const sizes = { storedBytes: this.#storedBytes, zeroBytes: this.#zeroBytes };
    this.#result = manifestDisk(this.#disk, { ...result, ...sizes, digestsSha256 });
    return sizes;
  }

  async close(): Promise<void> {
    await this.#digests.close();
  }

  async #storeData(offset: number, data: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    if (this.#storesData) await this.#image.write(offset, data, signal);
    this.#storedBytes += data.length;
  }

  async #storeZeroes(offset: number, length: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.#storesZeroes) await this.#image.writeZeroes(offset, length, signal);
    this.#zeroBytes += length;
  }
}

export interface DiskFigures extends SinkResult {
  readonly digestsSha256: string;
  readonly readBytes: number;
  readonly durationMs: number;
}

export function manifestDisk(disk: DraftDisk, figures: DiskFigures): ManifestDisk {
  const { target, sourceFormat, sourceFile, sizeBytes, mode, reason } = disk;
  const { digestsSha256, readBytes, storedBytes, zeroBytes, durationMs } = figures;
  return {
    ...{ target, sourceFormat, sourceFile, sizeBytes, mode, reason },
    ...{ image: imageFile(target), digests: digestsFile(target), digestsSha256 },
    digestBlockBytes: BLOCK_SIZE,
    ...{ readBytes, storedBytes, zeroBytes },
    durationMs: Math.max(0, durationMs),
  };
}

export interface Stretch {
  readonly start: number;
  readonly length: number;
  readonly zero: boolean;
}

/** Neighbouring blocks that are stored alike; a digest of zeroes stands for a block of zeroes. */
export function stretches(digests: Uint8Array, lengthBytes: number): Stretch[] {
  const found: Stretch[] = [];
  for (let start = 0, slot = 0; start < lengthBytes; start += BLOCK_SIZE, slot += DIGEST_BYTES) {
    const length = Math.min(BLOCK_SIZE, lengthBytes - start);
    const zero = isZero(digests.subarray(slot, slot + DIGEST_BYTES));
    const last = found.at(-1);
    if (last?.zero === zero) found[found.length - 1] = { ...last, length: last.length + length };
    else found.push({ start, length, zero });
  }
  return found;
}

/** Waits for all, so that nobody touches the caller's buffer any more when the first error is thrown. */
export async function allSettled(actions: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(actions);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
