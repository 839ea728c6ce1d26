import { hash } from "node:crypto";
import { BLOCK_SIZE } from "../../model/extents.js";

export const DIGEST_BYTES = 32;

const ZEROES = Buffer.alloc(BLOCK_SIZE);

/** `bytes` is at most a block. */
export function isZero(bytes: Uint8Array): boolean {
  // Buffer.equals is memcmp: an order of magnitude faster than looking at words from JavaScript.
  return ZEROES.subarray(0, bytes.length).equals(bytes);
}

/** The digest of a block, or all zeroes for a block of zeroes: no SHA-256 is known or expected to be that. */
export function digestBlock(block: Uint8Array): Uint8Array {
  return isZero(block) ? ZEROES.subarray(0, DIGEST_BYTES) : hash("sha256", block, "buffer");
}

export function blocksOf(lengthBytes: number): number {
  return Math.ceil(lengthBytes / BLOCK_SIZE);
}

/** The blocks of `data`, which begins at a block boundary; the last may be shorter. */
export function* blocksIn(data: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < data.length; at += BLOCK_SIZE) yield data.subarray(at, at + BLOCK_SIZE);
}

/** In bytes; the disk's end may cut the last block. */
export function rangeOf(
  firstBlock: number,
  blockCount: number,
  diskBytes: number,
): { readonly offset: number; readonly length: number } {
  const offset = firstBlock * BLOCK_SIZE;
  return { offset, length: Math.min(blockCount * BLOCK_SIZE, diskBytes - offset) };
}
