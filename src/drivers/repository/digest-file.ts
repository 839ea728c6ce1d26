import type { FileHandle } from "node:fs/promises";
import { FleeceError, errnoOf, errorMessage, fileError } from "../../shared/errors.js";
import { blocksOf, DIGEST_BYTES } from "./block-digest.js";
import {
  checksum,
  decodeFooter,
  decodeHeader,
  decodeRuns,
  DigestFormatError,
  FOOTER_BYTES,
  HEADER_BYTES,
  RUN_BYTES,
  runsOffset,
} from "./digest-format.js";
import { hashFile } from "./digest-writer.js";
import { openExisting } from "../durable-files.js";
import { atPlace, type RepositoryKey } from "./repository-key.js";
import type { RunTable } from "./run-table.js";

export interface DigestFileFacts {
  readonly path: string;
  readonly diskBytes: number;
  /** Of the whole file, in hex, as the manifest has it. */
  readonly sha256: string;
  /** Of a file that is encrypted. */
  readonly key?: RepositoryKey | undefined;
}

/** A digest file that was found to be what the manifest says. Its runs are in memory, its digests on disk. */
export class DigestFile {
  readonly runs: RunTable;
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #fileKey: Uint8Array | undefined;

  private constructor(path: string, file: FileHandle, { runs, fileKey }: Content) {
    this.#path = path;
    this.#file = file;
    this.#fileKey = fileKey;
    this.runs = runs;
  }

  /** Fails with DAMAGED if the file is missing or differs from `facts`. */
  static async open(facts: DigestFileFacts): Promise<DigestFile> {
    const file = await openForReading(facts.path);
    try {
      if ((await hashFile(file, facts.path)) !== facts.sha256) {
        throw new DigestFormatError("is not the file that the manifest names: its SHA-256 differs");
      }
      return new DigestFile(facts.path, file, await readContent(file, facts));
    } catch (error) {
      await file.close();
      throw error instanceof DigestFormatError ? damaged(facts.path, error) : error;
    }
  }

  /** The digests of `blockCount` blocks, from slot `firstSlot` on. */
  async digests(firstSlot: number, blockCount: number): Promise<Uint8Array> {
    const offset = runsOffset(firstSlot);
    const stored = await readExactly(this.#file, this.#path, offset, blockCount * DIGEST_BYTES);
    return this.#fileKey === undefined ? stored : atPlace(this.#fileKey, offset, stored);
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

async function openForReading(path: string): Promise<FileHandle> {
  try {
    return await openExisting(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw fileError(error, "open", path);
    throw damaged(path, new DigestFormatError("is missing"));
  }
}

interface Content {
  readonly runs: RunTable;
  /** Undefined: the digests are not encrypted. */
  readonly fileKey: Uint8Array | undefined;
}

/** Checks every length and offset before it is used. */
async function readContent(file: FileHandle, { path, diskBytes, key }: DigestFileFacts): Promise<Content> {
  const { size } = await file.stat();
  if (size < HEADER_BYTES + FOOTER_BYTES)
    throw new DigestFormatError(`has ${size} bytes, too few for a digest file`);
  const header = await readExactly(file, path, 0, HEADER_BYTES);
  const footer = await readExactly(file, path, size - FOOTER_BYTES, FOOTER_BYTES);
  const { diskBytes: found, salt } = decodeHeader(header);
  if (found !== diskBytes)
    throw new DigestFormatError(`is of a disk of ${found} bytes, expected ${diskBytes}`);
  if ((salt === undefined) !== (key === undefined))
    throw new DigestFormatError(salt === undefined ? "is not encrypted" : "is encrypted");
  const counts = decodeFooter(footer);
  const runsBytes = counts.runCount * RUN_BYTES;
  const expected = runsOffset(counts.slotCount) + runsBytes + FOOTER_BYTES;
  if (size !== expected || counts.runsOffset !== runsOffset(counts.slotCount)) {
    throw new DigestFormatError(`has ${size} bytes, expected ${expected}`);
  }
  const runs = await readExactly(file, path, counts.runsOffset, runsBytes);
  if (!checksum(header, runs, footer).every((byte, index) => byte === counts.checksum[index])) {
    throw new DigestFormatError("has a table of runs with another checksum");
  }
  const table = decodeRuns(runs, blocksOf(diskBytes));
  if (table.slotCount !== counts.slotCount) {
    throw new DigestFormatError(`has ${counts.slotCount} digests for ${table.slotCount} blocks`);
  }
  return { runs: table, fileKey: salt && key?.fileKey(salt, "digests") };
}

async function readExactly(
  file: FileHandle,
  path: string,
  position: number,
  length: number,
): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(length);
  try {
    for (let done = 0; done < length;) {
      const { bytesRead } = await file.read(bytes, done, length - done, position + done);
      if (bytesRead === 0) throw damaged(path, new DigestFormatError("has become shorter"));
      done += bytesRead;
    }
  } catch (error) {
    throw fileError(error, "read", path);
  }
  return bytes;
}

function damaged(path: string, error: DigestFormatError): FleeceError {
  return new FleeceError("DAMAGED", `Cannot use the digest file ${path}: it ${errorMessage(error)}`, {
    cause: error,
    facts: { path },
  });
}
