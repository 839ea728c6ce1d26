import { createHash } from "node:crypto";
import { BLOCK_SIZE } from "../../model/extents.js";
import { DIGEST_BYTES } from "./block-digest.js";
import { SALT_BYTES } from "./repository-key.js";
import { RunTable } from "./run-table.js";

/**
 * A digest file says what the blocks of one disk hold that one backup stores. All numbers are little-endian.
 *
 *     header   64 bytes   magic "FLEECEDG", u32 version, u32 block size, u64 disk size in bytes, 32 bytes salt, zeroes
 *     slots    32 bytes each: SHA-256 of a block; all zero for a block of zeroes
 *     runs     24 bytes each: u64 first block, u64 number of blocks, u32 kind (0 data, 1 zero), u32 zero
 *     footer   64 bytes   magic "FLEECEDE", u64 number of slots, u64 number of runs, u64 where the runs begin,
 *                         SHA-256 of header, runs and the footer so far
 *
 * Runs ascend and do not touch others of their kind. Each block of a data run has a slot, in the order of the runs; a
 * zero run has none. A block in no run is not stored by this backup: its parent knows it, and where there is no parent it
 * is zero. So size and time follow the stored data and never the size of the disk.
 *
 * In version 2 the slots are encrypted, since the digest of a block would tell whoever knows the block that it is there: with
 * AES-256 in counter mode, by a key of the file's own that is derived from the repository's and the salt (repository-key.ts).
 * Their digests are the same, so that a chain may have files of both versions. In version 1 the salt is zero.
 *
 * A disk of which the last block is cut by its end has the digest of the shorter block. The file as a whole is covered by
 * a SHA-256 in the manifest; the one in the footer tells a torn file by itself.
 */
const PLAIN_VERSION = 1;
const ENCRYPTED_VERSION = 2;
const SALT_OFFSET = 24;
export const HEADER_BYTES = 64;
export const FOOTER_BYTES = 64;
export const RUN_BYTES = 24;

const HEADER_MAGIC = "FLEECEDG";
const FOOTER_MAGIC = "FLEECEDE";
const ZERO_KIND = 1;
const FOOTER_HASHED_BYTES = FOOTER_BYTES - DIGEST_BYTES;

/** What is wrong with a digest file, in words that follow "it". */
export class DigestFormatError extends Error {
  override readonly name = "DigestFormatError";
}

/** Without a salt the digests are not encrypted. */
export function encodeHeader(diskBytes: number, salt?: Uint8Array): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write(HEADER_MAGIC, 0, "latin1");
  header.writeUInt32LE(salt === undefined ? PLAIN_VERSION : ENCRYPTED_VERSION, 8);
  header.set(salt ?? [], SALT_OFFSET);
  header.writeUInt32LE(BLOCK_SIZE, 12);
  header.writeBigUInt64LE(BigInt(diskBytes), 16);
  return header;
}

export interface DigestHeader {
  readonly diskBytes: number;
  /** Undefined: the digests are not encrypted. */
  readonly salt: Uint8Array | undefined;
}

export function decodeHeader(header: Buffer): DigestHeader {
  if (header.toString("latin1", 0, 8) !== HEADER_MAGIC) throw new DigestFormatError("is not a digest file");
  const version = header.readUInt32LE(8);
  if (version !== PLAIN_VERSION && version !== ENCRYPTED_VERSION)
    throw new DigestFormatError(`has version ${version}, expected ${PLAIN_VERSION} or ${ENCRYPTED_VERSION}`);
  const blockSize = header.readUInt32LE(12);
  if (blockSize !== BLOCK_SIZE)
    throw new DigestFormatError(`has blocks of ${blockSize} bytes, expected ${BLOCK_SIZE}`);
  const salt = header.subarray(SALT_OFFSET, SALT_OFFSET + SALT_BYTES);
  return { diskBytes: readSafe(header, 16), salt: version === PLAIN_VERSION ? undefined : salt };
}

export interface Footer {
  readonly slotCount: number;
  readonly runCount: number;
  readonly runsOffset: number;
  readonly checksum: Uint8Array;
}

export function decodeFooter(footer: Buffer): Footer {
  if (footer.toString("latin1", 0, 8) !== FOOTER_MAGIC)
    throw new DigestFormatError("has no end: it was cut off");
  return {
    slotCount: readSafe(footer, 8),
    runCount: readSafe(footer, 16),
    runsOffset: readSafe(footer, 24),
    checksum: footer.subarray(FOOTER_HASHED_BYTES),
  };
}

export function runsOffset(slotCount: number): number {
  return HEADER_BYTES + slotCount * DIGEST_BYTES;
}

export function encodeRuns(table: RunTable): Buffer {
  const bytes = Buffer.alloc(table.runCount * RUN_BYTES);
  for (let index = 0; index < table.runCount; index++) {
    const { firstBlock, blockCount, firstSlot } = table.run(index);
    const at = index * RUN_BYTES;
    bytes.writeBigUInt64LE(BigInt(firstBlock), at);
    bytes.writeBigUInt64LE(BigInt(blockCount), at + 8);
    bytes.writeUInt32LE(firstSlot === undefined ? ZERO_KIND : 0, at + 16);
  }
  return bytes;
}

/** Checks that runs ascend and stay below `diskBlocks`. */
export function decodeRuns(bytes: Buffer, diskBlocks: number): RunTable {
  const table = new RunTable();
  for (let at = 0; at < bytes.length; at += RUN_BYTES) {
    const firstBlock = readSafe(bytes, at);
    const blockCount = readSafe(bytes, at + 8);
    const kind = bytes.readUInt32LE(at + 16);
    const inOrder = firstBlock >= table.endBlock && blockCount > 0 && firstBlock + blockCount <= diskBlocks;
    if (!inOrder || kind > ZERO_KIND)
      throw new DigestFormatError("has a run out of order or beyond the disk");
    table.append(firstBlock, blockCount, kind === ZERO_KIND ? "zero" : "data");
  }
  return table;
}

export function encodeFooter(header: Buffer, runs: Buffer, slotCount: number): Buffer {
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer.write(FOOTER_MAGIC, 0, "latin1");
  footer.writeBigUInt64LE(BigInt(slotCount), 8);
  footer.writeBigUInt64LE(BigInt(runs.length / RUN_BYTES), 16);
  footer.writeBigUInt64LE(BigInt(runsOffset(slotCount)), 24);
  footer.set(checksum(header, runs, footer), FOOTER_HASHED_BYTES);
  return footer;
}

export function checksum(header: Buffer, runs: Buffer, footer: Buffer): Uint8Array {
  const hash = createHash("sha256").update(header).update(runs);
  return hash.update(footer.subarray(0, FOOTER_HASHED_BYTES)).digest();
}

function readSafe(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new DigestFormatError("has a number beyond all bounds");
  return Number(value);
}
