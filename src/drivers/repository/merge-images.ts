import { BLOCK_SIZE, type BlockRun } from "../../model/extents.js";
import type { BlockReader, BlockWriter } from "../../ports/block-io.js";
import { forEachLimited } from "../../shared/async.js";
import { FleeceError } from "../../shared/errors.js";
import { syncFile } from "../durable-files.js";
import { ENCRYPTED, giveKey } from "../luks.js";
import { NbdReaderFactory, openNbdWriter } from "../nbd-io.js";
import { removeExport } from "../node-exports.js";
import { processDirectoryPath } from "../runtime-directory.js";
import { StorageDaemon } from "../storage-daemon.js";
import { blocksOf, DIGEST_BYTES } from "./block-digest.js";
import { BlockHasher } from "./block-hasher.js";
import type { DigestFile } from "./digest-file.js";
import { allSettled, stretches } from "./disk-sink.js";
import { rangeOf } from "./block-digest.js";
import type { RepositoryKey } from "./repository-key.js";

/** One piece of data, and how many are under way: 8 MiB of memory. */
const PIECE_BYTES = 1024 * 1024;
const PIECES_IN_FLIGHT = 8;
/** A range of zeroes costs the same whatever its length; this is well below what one request can say. */
const ZERO_BYTES = 1024 * 1024 * 1024;

export interface MergedImage {
  readonly target: string;
  /** Of the two nodes and exports: QEMU takes no target's name for them. */
  readonly index: number;
  /** The younger backup's image; read only. */
  readonly from: string;
  /** The older backup's, which is written to. */
  readonly to: string;
  readonly sizeBytes: number;
  readonly encrypted: { readonly from: boolean; readonly to: boolean };
  /** What is written is. */
  readonly compressed: boolean;
  /** Says which blocks `from` has, and what they hold. */
  readonly digests: DigestFile;
}

/** Images of an older backup that are given the blocks of a younger one, through a storage daemon of ours. */
export class MergeImages implements AsyncDisposable {
  readonly #daemon: StorageDaemon;
  readonly #hasher = new BlockHasher();

  private constructor(daemon: StorageDaemon) {
    this.#daemon = daemon;
  }

  /** With the key of images that are encrypted. */
  static async open(
    runtimeRoot: string | undefined,
    key: RepositoryKey | undefined,
    signal: AbortSignal | undefined,
  ): Promise<MergeImages> {
    const directory = processDirectoryPath(runtimeRoot);
    const daemon = await StorageDaemon.start({ directory, lifetime: "process", signal });
    try {
      if (key !== undefined) await giveKey(daemon, key.passphrase, signal);
      return new MergeImages(daemon);
    } catch (error) {
      await daemon.stop();
      throw error;
    }
  }

  /** Opens both images, so that a program which uses one is met before anything is changed. */
  async add(
    { index, from, to, encrypted, compressed }: MergedImage,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const [source, target] = [encrypted.from, encrypted.to];
    const plain = { compressed: false };
    await this.#serve(
      sourceId(index),
      { filename: from, writable: false, encrypted: source, ...plain },
      signal,
    );
    await this.#serve(
      targetId(index),
      { filename: to, writable: true, encrypted: target, compressed },
      signal,
    );
  }

  /**
   * Writes what `from` stores to `to`, and makes it durable. Each block is compared with its digest on the way: DAMAGED,
   * rather than damage that has lost its place. Safe to repeat. Resolves with the bytes written as data.
   */
  async copy(
    image: MergedImage,
    signal: AbortSignal | undefined,
    onDone: (bytes: number) => void,
  ): Promise<number> {
    const { target, index, sizeBytes, digests, to } = image;
    const socketPath = this.#daemon.nbdSocketPath;
    const source = { target, exportName: sourceId(index), socketPath, sizeBytes };
    const reader = await new NbdReaderFactory().open(source, signal);
    let written = 0;
    try {
      const sink = { target, exportName: targetId(index), socketPath };
      const writer = await openNbdWriter(sink, (error) => this.#daemon.explain(error), signal);
      try {
        if (image.compressed) await freeBlocks(image, writer, signal);
        await forEachLimited(
          piecesOf(digests, sizeBytes),
          PIECES_IN_FLIGHT,
          async (piece, stop) => {
            const bytes = await this.#copyPiece({ image, reader, writer }, piece, stop);
            written += bytes;
            onDone(piece.length);
          },
          signal,
        );
        await writer.flush(signal);
      } finally {
        await writer.close();
      }
    } finally {
      await reader.close();
    }
    // Closing the node is what makes the image's own tables complete.
    for (const id of [sourceId(index), targetId(index)]) {
      await this.#daemon.attempt((qmp) => removeExport(qmp, id));
      await this.#daemon.execute("blockdev-del", { "node-name": id });
    }
    if (image.compressed) {
      await this.#daemon.execute("blockdev-del", { "node-name": plainNode(targetId(index)) });
    }
    await syncFile(to);
    return written;
  }

  async close(): Promise<void> {
    await this.#daemon.stop();
    await this.#hasher.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /**
   * `backing: null`: whole clusters are read that are known to be there, and whole clusters are written. Flushes are real
   * ones, unlike those of a draft: at any instant, a power cut included, the image must give its other blocks to the younger.
   */
  async #serve(
    id: string,
    {
      filename,
      writable,
      encrypted,
      compressed,
    }: {
      readonly filename: string;
      readonly writable: boolean;
      readonly encrypted: boolean;
      readonly compressed: boolean;
    },
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const common = { "read-only": !writable, ...(writable ? ({ discard: "unmap" } as const) : {}) };
    await this.#daemon.execute(
      "blockdev-add",
      {
        ...{ driver: "qcow2", "node-name": compressed ? plainNode(id) : id, backing: null },
        ...common,
        ...(encrypted ? { encrypt: ENCRYPTED } : {}),
        file: { driver: "file", filename, ...common },
      },
      { signal },
    );
    if (compressed) {
      const filter = { driver: "compress", "node-name": id, file: plainNode(id) } as const;
      await this.#daemon.execute("blockdev-add", filter, { signal });
    }
    await this.#daemon.execute(
      "block-export-add",
      { type: "nbd", id, "node-name": id, name: id, writable },
      { signal },
    );
  }

  async #copyPiece(
    { image, reader, writer }: { image: MergedImage; reader: BlockReader; writer: BlockWriter },
    { offset, length, slots }: Piece,
    signal: AbortSignal,
  ): Promise<number> {
    if (slots === undefined) {
      await writer.writeZeroes(offset, length, signal);
      return 0;
    }
    const data = await reader.read(offset, length, signal);
    const [found, expected] = await Promise.all([
      this.#hasher.digests(data),
      image.digests.digests(slots, blocksOf(length)),
    ]);
    const differing = firstDifference(found, expected);
    if (differing !== undefined) throw damagedBlock(image, offset + differing * BLOCK_SIZE);
    const parts = stretches(found, length);
    await allSettled(
      parts.map((part) =>
        part.zero
          ? writer.writeZeroes(offset + part.start, part.length, signal)
          : writer.write(offset + part.start, data.subarray(part.start, part.start + part.length), signal),
      ),
    );
    return parts.reduce((sum, part) => sum + (part.zero ? 0 : part.length), 0);
  }
}

/**
 * QEMU writes no compressed cluster over another one, so all that are to be written become zero first. The younger image lies over
 * them. All at once: freeing and taking by turns would have QEMU wait for the disk each time.
 */
async function freeBlocks(
  { digests, sizeBytes }: MergedImage,
  writer: BlockWriter,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const { offset, length, slots } of piecesOf(digests, sizeBytes, ZERO_BYTES)) {
    if (slots !== undefined) await writer.writeZeroes(offset, length, signal);
  }
}

function plainNode(id: string): string {
  return `${id}-plain`;
}

function sourceId(index: number): string {
  return `from-${index}`;
}

function targetId(index: number): string {
  return `to-${index}`;
}

interface Piece extends Pick<BlockRun, "offset" | "length"> {
  /** The slot of the first block's digest; undefined if all is zero. */
  readonly slots: number | undefined;
}

function* piecesOf({ runs }: DigestFile, sizeBytes: number, dataBytes = PIECE_BYTES): Generator<Piece> {
  for (let index = 0; index < runs.runCount; index++) {
    const { firstBlock, blockCount, firstSlot } = runs.run(index);
    const step = (firstSlot === undefined ? ZERO_BYTES : dataBytes) / BLOCK_SIZE;
    for (let done = 0; done < blockCount; done += step) {
      const range = rangeOf(firstBlock + done, Math.min(step, blockCount - done), sizeBytes);
      yield { ...range, slots: firstSlot === undefined ? undefined : firstSlot + done };
    }
  }
}

/** Index of a block. */
function firstDifference(found: Uint8Array, expected: Uint8Array): number | undefined {
  for (let at = 0; at < found.length; at += DIGEST_BYTES) {
    const same = Buffer.compare(
      found.subarray(at, at + DIGEST_BYTES),
      expected.subarray(at, at + DIGEST_BYTES),
    );
    if (same !== 0) return at / DIGEST_BYTES;
  }
  return undefined;
}

function damagedBlock({ target, from }: MergedImage, offset: number): FleeceError {
  return new FleeceError(
    "DAMAGED",
    `Disk ${target} of the backup does not hold what was stored: the block at byte ${offset} of ${from} differs from its digest`,
    { facts: { target, offset, path: from } },
  );
}
