import { rm } from "node:fs/promises";
import { fileError } from "../../shared/errors.js";
import { blocksOf, DIGEST_BYTES, rangeOf } from "./block-digest.js";
import { segments } from "./chain-expectations.js";
import type { DigestFile } from "./digest-file.js";
import { DigestWriter } from "./digest-writer.js";
import type { RepositoryKey } from "./repository-key.js";
import { stretches } from "./disk-sink.js";

/** 64 KiB of digests are in memory at once. */
const MAX_SLOTS = 2048;

export interface UnitedDigests {
  readonly digestsSha256: string;
  readonly storedBytes: number;
  readonly zeroBytes: number;
}

/**
 * Writes a digest file of all blocks that either file has, the first one's where both have one. It follows the size of
 * both: 32 bytes for a block, 1/2048 of what is stored. A file that is there already is written anew. With a key it is
 * encrypted.
 */
export async function uniteDigests(
  path: string,
  files: readonly DigestFile[],
  diskBytes: number,
  key: RepositoryKey | undefined,
): Promise<UnitedDigests> {
  try {
    await rm(path, { force: true });
  } catch (error) {
    throw fileError(error, "remove", path);
  }
  const writer = await DigestWriter.create(path, diskBytes, key);
  try {
    const known = [...segments(files, 0, blocksOf(diskBytes))].filter((segment) => segment.known);
    for (const { firstBlock, blockCount, stored } of known) {
      writer.expect({
        ...rangeOf(firstBlock, blockCount, diskBytes),
        kind: stored === undefined ? "zero" : "data",
      });
    }
    let storedBytes = 0;
    let zeroBytes = 0;
    for (const { firstBlock, blockCount, stored } of known) {
      if (stored === undefined) {
        const { offset, length } = rangeOf(firstBlock, blockCount, diskBytes);
        writer.zeroes(offset, length);
        zeroBytes += length;
        continue;
      }
      for (let done = 0; done < blockCount; done += MAX_SLOTS) {
        const count = Math.min(MAX_SLOTS, blockCount - done);
        const digests = await stored.file.digests(stored.firstSlot + done, count);
        const { offset, length } = rangeOf(firstBlock + done, digests.length / DIGEST_BYTES, diskBytes);
        await writer.write(offset, length, digests);
        for (const stretch of stretches(digests, length)) {
          if (stretch.zero) zeroBytes += stretch.length;
          else storedBytes += stretch.length;
        }
      }
    }
    return { digestsSha256: await writer.finish(), storedBytes, zeroBytes };
  } finally {
    await writer.close();
  }
}
