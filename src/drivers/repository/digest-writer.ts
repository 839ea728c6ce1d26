import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { BLOCK_SIZE, type BlockRun } from "../../model/extents.js";
import { FleeceError, fileError } from "../../shared/errors.js";
import { blocksOf, DIGEST_BYTES } from "./block-digest.js";
import { encodeFooter, encodeHeader, encodeRuns, runsOffset } from "./digest-format.js";
import { createPrivate, writeAt } from "../durable-files.js";
import { newSalt, type RepositoryKey, atPlace } from "./repository-key.js";
import { RunTable } from "./run-table.js";

const HASH_CHUNK_BYTES = 1024 * 1024;
/** Digests of 128 MiB of content are written at once: 32 bytes alone cost more to write than their block to digest. */
const PAGE_SLOTS = 2048;

interface Page {
  readonly digests: Buffer;
  /** Slots whose digests have come. */
  filled: number;
}

/** Writes a digest file: digests go to their slots as content arrives, in any order; the runs follow at the end. */
export class DigestWriter {
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #diskBytes: number;
  readonly #salt: Uint8Array | undefined;
  readonly #fileKey: Uint8Array | undefined;
  readonly #table = new RunTable();
  readonly #arrived = new SlotSet();
  /** Of which something has come, and something is missing; by number. */
  readonly #pages = new Map<number, Page>();
  #zeroBlocks = 0;
  #open = true;

  private constructor(path: string, file: FileHandle, diskBytes: number, key: RepositoryKey | undefined) {
    this.#path = path;
    this.#file = file;
    this.#diskBytes = diskBytes;
    this.#salt = key && newSalt();
    this.#fileKey = this.#salt && key?.fileKey(this.#salt, "digests");
  }

  /** The file must not exist. With a key it is encrypted. */
  static async create(path: string, diskBytes: number, key?: RepositoryKey): Promise<DigestWriter> {
    return new DigestWriter(path, await createPrivate(path), diskBytes, key);
  }

  /** Announces a run. Runs ascend, begin at a block boundary, and end at one or at the disk's end. */
  expect({ offset, length, kind }: BlockRun): void {
    const end = offset + length;
    const aligned = offset % BLOCK_SIZE === 0 && (end % BLOCK_SIZE === 0 || end === this.#diskBytes);
    const ascending = offset >= this.#table.endBlock * BLOCK_SIZE && length > 0 && end <= this.#diskBytes;
    if (!aligned || !ascending) {
      throw new FleeceError(
        "INTERNAL",
        `Expected a run of whole blocks behind the last, got ${length} at ${offset}`,
      );
    }
    this.#table.append(offset / BLOCK_SIZE, blocksOf(length), kind);
  }

  /** Throws unless the range lies within one announced run of this kind. */
  check(offset: number, length: number, kind: BlockRun["kind"]): void {
    this.#firstSlot(offset, length, kind);
  }

  /** Digests of consecutive blocks of a data run. */
  async write(offset: number, length: number, digests: Uint8Array): Promise<void> {
    const firstSlot = this.#firstSlot(offset, length, "data");
    const endSlot = firstSlot + blocksOf(length);
    for (let slot = firstSlot; slot < endSlot;) {
      const count = Math.min(endSlot - slot, PAGE_SLOTS - (slot % PAGE_SLOTS));
      const from = (slot - firstSlot) * DIGEST_BYTES;
      await this.#place(slot, digests.subarray(from, from + count * DIGEST_BYTES));
      slot += count;
    }
  }

  /** Blocks of a zero run, which need no digest. */
  zeroes(offset: number, length: number): void {
    this.#firstSlot(offset, length, "zero");
    this.#zeroBlocks += blocksOf(length);
  }

  /** Fails with INTERNAL unless content came for each block that was announced. Returns the file's SHA-256 in hex. */
  async finish(): Promise<string> {
    this.#checkComplete();
    const header = encodeHeader(this.#diskBytes, this.#salt);
    const runs = encodeRuns(this.#table);
    const footer = encodeFooter(header, runs, this.#table.slotCount);
    await this.#writeAll(header, 0);
    for (const [number, { digests }] of this.#pages) {
      const count = Math.min(this.#table.slotCount - number * PAGE_SLOTS, PAGE_SLOTS);
      await this.#writeDigests(digests.subarray(0, count * DIGEST_BYTES), number * PAGE_SLOTS);
    }
    await this.#writeAll(Buffer.concat([runs, footer]), runsOffset(this.#table.slotCount));
    await this.#sync();
    const digest = await hashFile(this.#file, this.#path);
    await this.close();
    return digest;
  }

  /** Idempotent. */
  async close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#file.close();
  }

  /** Digests of one page. What comes again for a page that is written already is written at once. */
  async #place(slot: number, digests: Uint8Array): Promise<void> {
    const number = Math.floor(slot / PAGE_SLOTS);
    let page = this.#pages.get(number);
    if (page === undefined && this.#arrived.has(slot)) return this.#writeDigests(digests, slot);
    page ??= { digests: Buffer.alloc(PAGE_SLOTS * DIGEST_BYTES), filled: 0 };
    this.#pages.set(number, page);
    page.digests.set(digests, (slot % PAGE_SLOTS) * DIGEST_BYTES);
    page.filled += this.#arrived.add(slot, digests.length / DIGEST_BYTES);
    if (page.filled < PAGE_SLOTS) return;
    this.#pages.delete(number);
    await this.#writeDigests(page.digests, number * PAGE_SLOTS);
  }

  /** A slot that nobody wrote would say that the block is zero. */
  #checkComplete(): void {
    const { blockCount, slotCount } = this.#table;
    if (this.#arrived.size === slotCount && this.#zeroBlocks === blockCount - slotCount) return;
    throw new FleeceError(
      "INTERNAL",
      `Expected the content of ${slotCount} data and ${blockCount - slotCount} zero blocks, got ${this.#arrived.size} and ${this.#zeroBlocks}`,
    );
  }

  #firstSlot(offset: number, length: number, kind: BlockRun["kind"]): number {
    const firstBlock = offset / BLOCK_SIZE;
    const end = offset + length;
    const run = this.#table.covering(firstBlock, blocksOf(length));
    const whole =
      Number.isInteger(firstBlock) && length > 0 && (end % BLOCK_SIZE === 0 || end === this.#diskBytes);
    if (!whole || run === undefined || (run.firstSlot === undefined) !== (kind === "zero")) {
      throw new FleeceError(
        "INTERNAL",
        `Expected whole blocks of an announced ${kind} run, got ${length} bytes at ${offset}`,
      );
    }
    return run.firstSlot === undefined ? 0 : run.firstSlot + firstBlock - run.firstBlock;
  }

  /** What comes again for a slot is of the same moment, and so the same. */
  async #writeDigests(digests: Uint8Array, firstSlot: number): Promise<void> {
    const offset = runsOffset(firstSlot);
    const stored = this.#fileKey === undefined ? digests : atPlace(this.#fileKey, offset, digests);
    await this.#writeAll(stored, offset);
  }

  async #writeAll(bytes: Uint8Array, position: number): Promise<void> {
    try {
      await writeAt(this.#file, bytes, position);
    } catch (error) {
      throw fileError(error, "write", this.#path);
    }
  }

  async #sync(): Promise<void> {
    try {
      await this.#file.sync();
    } catch (error) {
      throw fileError(error, "make durable", this.#path);
    }
  }
}

/** Which digests have come, in one bit each: a byte for half a mebibyte of stored data. */
class SlotSet {
  #bits = new Uint8Array(64);
  #size = 0;

  get size(): number {
    return this.#size;
  }

  has(slot: number): boolean {
    return ((this.#bits[Math.floor(slot / 8)] ?? 0) & (1 << (slot & 7))) !== 0;
  }

  /** Returns how many are new. */
  add(firstSlot: number, count: number): number {
    const before = this.#size;
    const bytes = Math.ceil((firstSlot + count) / 8);
    if (bytes > this.#bits.length) {
      const larger = new Uint8Array(Math.max(bytes, this.#bits.length * 2));
      larger.set(this.#bits);
      this.#bits = larger;
    }
    for (let slot = firstSlot; slot < firstSlot + count; slot++) {
      const bit = 1 << (slot & 7);
      const byte = this.#bits[Math.floor(slot / 8)] ?? 0;
      if ((byte & bit) === 0) this.#size += 1;
      this.#bits[Math.floor(slot / 8)] = byte | bit;
    }
    return this.#size - before;
  }
}

/** SHA-256 of a whole file, in hex. */
export async function hashFile(file: FileHandle, path: string): Promise<string> {
  const hash = createHash("sha256");
  const chunk = Buffer.allocUnsafe(HASH_CHUNK_BYTES);
  try {
    for (let position = 0; ;) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length, position);
      if (bytesRead === 0) return hash.digest("hex");
      hash.update(chunk.subarray(0, bytesRead));
      position += bytesRead;
    }
  } catch (error) {
    throw fileError(error, "read", path);
  }
}
