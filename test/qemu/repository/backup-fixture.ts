import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { StorageDaemonImages } from "../../../src/drivers/images.js";
import { NbdReaderFactory } from "../../../src/drivers/nbd-io.js";
import { DirectoryRepository } from "../../../src/drivers/repository/index.js";
import type { KeyPlace } from "../../../src/drivers/repository/key-source.js";
import type { DiskMode, IntactEntry } from "../../../src/model/backup.js";
import { BLOCK_SIZE, type BlockRun } from "../../../src/model/extents.js";
import type { UndoEntry } from "../../../src/model/undo.js";
import type { UndoLog } from "../../../src/ports/block-driver.js";
import type { BackupDraft, DraftDisk, DraftSummary, OpenOptions } from "../../../src/ports/repository.js";
import { temporaryDirectory } from "../../support/lifetime.js";

export const DOMAIN = "web01";

/** Remembers what was registered; the tests look at it. */
export class MemoryUndoLog implements UndoLog {
  readonly entries: UndoEntry[] = [];

  register(...entries: UndoEntry[]): Promise<void> {
    this.entries.push(...entries);
    return Promise.resolve();
  }

  settle(): Promise<void> {
    return Promise.resolve();
  }
}

export interface DiskContent {
  readonly content: Buffer;
  /** What the backup is told to deal with; default: the whole disk as data. */
  readonly runs?: readonly BlockRun[];
  /** Default: `whole` in a full, else `changes`. */
  readonly mode?: DiskMode;
}

export class RepositoryFixture {
  readonly path: string;
  readonly runtimeRoot: string;
  readonly repository: DirectoryRepository;
  readonly undo = new MemoryUndoLog();
  #count = 0;

  private constructor(path: string, runtimeRoot: string, encryption?: KeyPlace) {
    this.path = path;
    this.runtimeRoot = runtimeRoot;
    this.repository = openRepository(path, runtimeRoot, encryption);
  }

  static async create(path?: string, encryption?: KeyPlace): Promise<RepositoryFixture> {
    const directory = await temporaryDirectory();
    await mkdir(directory.file("repo"));
    return new RepositoryFixture(path ?? directory.file("repo"), directory.file("run"), encryption);
  }

  file(id: string, name: string): string {
    return join(this.path, DOMAIN, id, name);
  }

  async begin(
    id: string,
    disks: ReadonlyMap<string, DiskContent>,
    parent?: IntactEntry,
  ): Promise<BackupDraft> {
    return await this.repository.begin(
      {
        id,
        domain: DOMAIN,
        disks: [...disks].map(([target, { content, mode }]) =>
          draftDisk(target, content.length, mode ?? (parent === undefined ? "whole" : "changes")),
        ),
        ...(parent === undefined ? {} : { parent }),
      },
      this.undo,
    );
  }

  /** A backup of disks whose content is known, taken the way a pull would. */
  async backUp(
    id: string,
    disks: Readonly<Record<string, DiskContent>>,
    parent?: IntactEntry,
  ): Promise<IntactEntry> {
    const lock = await this.repository.lock(DOMAIN);
    try {
      const named = new Map(Object.entries(disks));
      const draft = await this.begin(id, named, parent);
      try {
        for (const [target, disk] of named) await pull(draft, target, disk);
        this.#count += 1;
        return await draft.publish(summary(parent === undefined ? "full" : "incremental", this.#count));
      } finally {
        await draft.discard();
      }
    } finally {
      await lock.release();
    }
  }

  /** All of a disk, as a reader of the served backup gets it. */
  async read(entry: IntactEntry, target: string, options: OpenOptions = {}): Promise<Buffer> {
    await using backup = await this.repository.open(entry, options);
    const address = backup.addresses.find((candidate) => candidate.target === target);
    if (address === undefined) throw new Error(`Expected disk ${target} to be served`);
    await using reader = await new NbdReaderFactory().open(address);
    return Buffer.from(await reader.read(0, reader.sizeBytes));
  }

  /** Offset of the first block of a served disk that is not what the digests say. */
  async verify(entry: IntactEntry, target: string): Promise<number | undefined> {
    const content = await this.read(entry, target);
    await using backup = await this.repository.open(entry);
    await using expected = await backup.expectations(target);
    return await expected.firstMismatch(0, content);
  }
}

export function draftDisk(target: string, sizeBytes: number, mode: DiskMode = "whole"): DraftDisk {
  return { target, sourceFormat: "qcow2", sourceFile: `/vm/${target}`, sizeBytes, mode, reason: "a test" };
}

export function openRepository(
  path: string,
  runtimeRoot: string,
  encryption?: KeyPlace,
): DirectoryRepository {
  return new DirectoryRepository({
    name: "default",
    path,
    encryption,
    images: new StorageDaemonImages({ runtimeRoot }),
    runtimeRoot,
  });
}

/** Announces runs in order, then delivers their content backwards and side by side. */
export async function pull(draft: BackupDraft, target: string, disk: DiskContent): Promise<void> {
  const sink = draft.disk(target);
  const runs = disk.runs ?? [{ offset: 0, length: disk.content.length, kind: "data" }];
  for (const run of runs) sink.expect(run);
  const pieces = runs.flatMap((run) => (run.kind === "zero" ? [run] : blocks(run, 3 * BLOCK_SIZE))).reverse();
  await Promise.all(
    pieces.map(({ offset, length, kind }) =>
      kind === "zero"
        ? sink.writeZeroes(offset, length)
        : sink.write(offset, disk.content.subarray(offset, offset + length)),
    ),
  );
  await sink.finish({ readBytes: disk.content.length, durationMs: 5 });
}

function blocks(run: BlockRun, maxBytes: number): BlockRun[] {
  const pieces: BlockRun[] = [];
  for (let done = 0; done < run.length; done += maxBytes) {
    pieces.push({ ...run, offset: run.offset + done, length: Math.min(maxBytes, run.length - done) });
  }
  return pieces;
}

export function summary(level: "full" | "incremental", count: number): DraftSummary {
  const timeMs = Date.UTC(2030, 0, count);
  return {
    level,
    reason: "asked for",
    timeMs,
    startedAtMs: timeMs,
    finishedAtMs: timeMs + 1000,
    consistency: "crash",
    heldMs: 4,
    scratchPeakBytes: 65536,
    checkpoint: `cp-${count}`,
  };
}

export function dataRun(firstBlock: number, count = 1): BlockRun {
  return { offset: firstBlock * BLOCK_SIZE, length: count * BLOCK_SIZE, kind: "data" };
}

export function zeroRun(firstBlock: number, count = 1): BlockRun {
  return { ...dataRun(firstBlock, count), kind: "zero" };
}

/** Bytes without a pattern that repeats in a block, the same for the same seed. */
export function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  let state = seed | 1;
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1103515245) + 12345) | 0;
    bytes[at] = state >>> 16;
  }
  return bytes;
}
