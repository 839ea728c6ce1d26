import type { ExportAddress, PlannedDisk, PlannedExport, SnapshotNodes } from "../../model/snapshot-plan.js";
import { CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import { BLOCK_SIZE } from "../../model/extents.js";
import { type HostEntry, isQemuEntry, type QemuEntry } from "../../model/undo.js";
import type { CopySpeed, UndoLog } from "../../ports/block-driver.js";
import type { BlockdevBackup, FollowJobOptions, JobInfo, QmpSession } from "../../qmp/index.js";
import { isQmpError } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { QemuHostCleaner } from "../host-cleaner.js";
import { NbdReaderFactory } from "../nbd-io.js";
import { bitmapsOn, mergedBitmapName } from "../node-exports.js";
import { PacedJob } from "./paced-job.js";
import { frozenEntries, yank } from "./undo.js";

/** A frozen disk to copy, with the nodes of its images, which have its checkpoints' bitmaps. */
export interface DiskToCopy {
  readonly disk: PlannedDisk;
  readonly bitmapNodes: readonly string[];
  readonly planned: Pick<PlannedExport, "changes">;
}

export interface CopyOptions extends FollowJobOptions {
  /** See `PushOptions`. */
  readonly abandonTarget?: (() => Promise<void>) | undefined;
  readonly pace?: CopySpeed | undefined;
}

/**
 * QEMU itself, as an NBD client, copies frozen disks into images that storage daemons of ours hold. No NBD client comes near
 * that QEMU, and the daemon's end is a failed job there: the guest does not notice.
 */
export class FrozenCopies {
  readonly #qmp: QmpSession;
  readonly #undoInQemu: (entry: QemuEntry) => Promise<void>;
  readonly #host = new QemuHostCleaner();

  constructor(qmp: QmpSession, undo: (entry: QemuEntry) => Promise<void>) {
    this.#qmp = qmp;
    this.#undoInQemu = undo;
  }

  /**
   * Needs `copyEntries` to be registered. The export is writable and of the disk's size. QEMU, and the guest's requests with
   * it, stand still while it connects: so whether somebody answers is tried first, and QEMU's patience is short.
   */
  async connect(
    { push }: SnapshotNodes,
    address: Pick<ExportAddress, "target" | "socketPath" | "exportName" | "sizeBytes">,
    signal?: AbortSignal,
  ): Promise<void> {
    const { socketPath, exportName } = address;
    await (await new NbdReaderFactory().open(address, signal)).close();
    const server = { type: "unix", path: socketPath } as const;
    await this.#qmp.execute("blockdev-add", {
      ...{ driver: "nbd", "node-name": push, server, export: exportName },
      "open-timeout": OPEN_TIMEOUT_SECONDS,
    });
  }

  async disconnect({ push }: SnapshotNodes): Promise<void> {
    await this.#undoInQemu({ kind: "vm-node", node: push });
  }

  /** Copies what any of the bitmaps has marked. The bitmap is on the filter's view: the job may read nothing else. */
  async copyChanges(
    { disk, bitmapNodes }: DiskToCopy,
    { since, bitmaps }: NonNullable<PlannedExport["changes"]>,
    options: CopyOptions,
  ): Promise<void> {
    const node = disk.nodes.access;
    const name = mergedBitmapName(since);
    const granularity = CHECKPOINT_GRANULARITY;
    await this.#qmp.execute("block-dirty-bitmap-add", { node, name, granularity, disabled: true });
    const sources = await bitmapsOn(this.#qmp, bitmapNodes, bitmaps);
    await this.#qmp.execute("block-dirty-bitmap-merge", { node, target: name, bitmaps: sources });
    await this.#runJob(disk, { sync: "bitmap", bitmap: name, "bitmap-mode": "never" }, options);
  }

  async copyAll({ disk }: DiskToCopy, options: CopyOptions): Promise<void> {
    await this.#runJob(disk, { sync: "full" }, options);
  }

  /** Gives the guest its disk back, and the host the scratch space. */
  async letGo(each: DiskToCopy, undo: UndoLog): Promise<void> {
    const { scratch, filter, access } = frozenEntries(each.disk);
    const entries = [...scratch, ...filter, ...access, ...copyEntries(each)];
    await this.undo(entries);
    await undo.settle(...entries);
  }

  async undo(entries: readonly (QemuEntry | HostEntry)[]): Promise<void> {
    for (const entry of entries.toReversed()) {
      if (isQemuEntry(entry)) await this.#undoInQemu(entry);
      else await this.#host.undo(entry);
    }
  }

  /**
   * The source is the filter's own view: its reads fail once content is lost, so a job that has succeeded has copied the
   * frozen moment. Before QEMU 8.0 that view takes what it has preserved from the live disk if a request reaches from it into
   * what it has not (see RunningDriver.startExports). It preserves whole blocks of this size, so no request may be longer.
   */
  async #runJob(
    { nodes, target }: PlannedDisk,
    sync: Pick<BlockdevBackup, "sync" | "bitmap" | "bitmap-mode">,
    { abandonTarget, pace, ...options }: CopyOptions,
  ): Promise<void> {
    const { signal } = options;
    const job = new PacedJob(this.#qmp, nodes.push, pace);
    const onAbort = (): void => void this.#endWrites(nodes, abandonTarget);
    signal?.addEventListener("abort", onAbort);
    const copy = { "job-id": nodes.push, device: nodes.access, target: nodes.push, ...sync };
    const onProgress = (info: JobInfo): void => {
      job.look(info);
      options.onProgress?.(info);
    };
    try {
      await this.#qmp.runJob(
        "blockdev-backup",
        { ...copy, speed: job.speed, "x-perf": { "max-chunk": BLOCK_SIZE } },
        { ...options, onProgress },
      );
    } catch (error) {
      throw contentLost(error, target) ?? error;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /**
   * A job that is cancelled waits for its writes. What it has written is worth nothing any more, so those that hang are made to
   * fail: by ending the connection, where the daemon has taken them and its storage hangs (it cannot be killed then); by ending
   * the daemon, where it has not, for QEMU 7.2 waits for room in a full socket also when that is shut down.
   */
  async #endWrites(nodes: SnapshotNodes, abandonTarget: CopyOptions["abandonTarget"]): Promise<void> {
    // Whether they have failed shows in the job, which is waited for.
    await Promise.allSettled([yank(this.#qmp, nodes.push), abandonTarget?.()]);
  }
}

/** As long as a guest's write may wait for scratch space. */
const OPEN_TIMEOUT_SECONDS = 4;

/** What only the copying needs, inside QEMU. */
export function copyEntries({ disk, planned: { changes } }: DiskToCopy): readonly QemuEntry[] {
  const { access, push } = disk.nodes;
  return [
    { kind: "vm-node", node: push },
    ...(changes === undefined
      ? []
      : [{ kind: "vm-bitmap", node: access, bitmap: mergedBitmapName(changes.since) } as const]),
    { kind: "vm-job", id: push },
  ];
}

/** QEMU's block layer says EACCES for content that a copy-before-write filter has lost. */
function contentLost(error: unknown, target: string): FleeceError | undefined {
  if (!isQmpError(error, "QMP_JOB_FAILED", "QMP_COMMAND_FAILED")) return undefined;
  if (error.qemuText !== "Permission denied") return undefined;
  const message = `The frozen content of disk ${target} is gone, likely because scratch space ran out: ${error.message}`;
  return new FleeceError("SNAPSHOT_BROKEN", message, { cause: error, facts: { target } });
}
