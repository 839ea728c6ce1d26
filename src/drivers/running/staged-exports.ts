import path from "node:path";
import type { ExportAddress, PlannedDisk, PlannedExport } from "../../model/snapshot-plan.js";
import { CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import type { HostEntry } from "../../model/undo.js";
import type { CopySpeed, UndoLog } from "../../ports/block-driver.js";
import { isQmpError } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { endDaemon } from "../end-daemon.js";
import { addExport, exportId, mergedBitmapName, removeExport } from "../node-exports.js";
import { createImage } from "../qemu-tools.js";
import { detachedDirectoryPath } from "../runtime-directory.js";
import { StorageDaemon } from "../storage-daemon.js";
import { copyEntries, type DiskToCopy, type FrozenCopies } from "./frozen-copies.js";
import { nodeExists } from "./undo.js";

/** A disk to copy and offer. */
export interface DiskToStage extends DiskToCopy {
  readonly planned: PlannedExport;
}

/**
 * Exports that no NBD client of others reaches QEMU by. QEMU itself copies the frozen content into an image that a storage
 * daemon of ours holds, one for each disk (see FrozenCopies); readers connect to that. Once the copy is complete the guest's
 * disk is let go: neither slow readers nor hostile ones cost the guest anything.
 *
 * In the daemon, the node with the planned scratch name is the image, and the one with the access name is a read-only view
 * of it that exists only when the copy is complete.
 */
export class StagedExports {
  readonly #copies: FrozenCopies;
  readonly #runtimeRoot: string;

  constructor(options: { copies: FrozenCopies; runtimeRoot: string }) {
    this.#copies = options.copies;
    this.#runtimeRoot = options.runtimeRoot;
  }

  /** All disks are copied before the first is let go, so that after an error before that the snapshot is as it was. */
  async open(
    disks: readonly DiskToStage[],
    undo: UndoLog,
    signal?: AbortSignal,
    pace?: CopySpeed,
  ): Promise<readonly ExportAddress[]> {
    for (const each of disks) {
      if (!(await this.holds(each.disk, signal))) await this.#stage(each, undo, signal, pace);
    }
    for (const each of disks) await this.#copies.letGo(each, undo);
    const addresses: ExportAddress[] = [];
    for (const each of disks) addresses.push(await this.#offer(each, undo, signal));
    return addresses;
  }

  /** Whether the frozen content of the disk is safe in a daemon that lives. */
  async holds({ nodes }: PlannedDisk, signal?: AbortSignal): Promise<boolean> {
    const daemon = await StorageDaemon.attach(this.#directory(nodes), signal);
    if (daemon === undefined) return false;
    try {
      return await daemon.attempt((qmp) => nodeExists(qmp, nodes.access));
    } finally {
      await daemon.detach();
    }
  }

  async #stage(each: DiskToStage, undo: UndoLog, signal?: AbortSignal, pace?: CopySpeed): Promise<void> {
    const { disk } = each;
    const { nodes, sizeBytes } = disk;
    const entries = [...this.#hostEntries(disk), ...copyEntries(each)];
    // A command that was killed while it staged this disk of a snapshot that lives on may have left some of it.
    await this.#copies.undo(entries);
    await undo.register(...entries);
    await createImage({ path: stagedPath(disk), format: "qcow2", sizeBytes, signal });
    const directory = this.#directory(nodes);
    const daemon = await StorageDaemon.start({ directory, lifetime: "detached", signal });
    try {
      await this.#copy(each, daemon, signal, pace);
    } catch (error) {
      throw isQmpError(error, "QMP_JOB_FAILED", "QMP_COMMAND_FAILED") ? await daemon.explain(error) : error;
    } finally {
      await daemon.detach();
    }
  }

  /**
   * What is copied while the daemon's bitmap records is the changes; what is copied after it, the rest. A block that was
   * zeroed is copied as zeroes, so it is recorded too.
   */
  async #copy(
    each: DiskToStage,
    daemon: StorageDaemon,
    signal?: AbortSignal,
    pace?: CopySpeed,
  ): Promise<void> {
    const { disk, planned } = each;
    const { changes } = planned;
    const { access, scratch, push } = disk.nodes;
    const file = { driver: "file", filename: stagedPath(disk), discard: "unmap" } as const;
    // Nothing of the image outlives its daemon, so nothing of it has to reach the disk.
    const cache = { "no-flush": true };
    await daemon.execute("blockdev-add", {
      ...{ driver: "qcow2", "node-name": scratch, discard: "unmap", cache, file: { ...file, cache } },
      // The last block of a disk, if it is a short one, is copied as data whatever it is.
      "detect-zeroes": "on",
    });
    await daemon.execute("block-export-add", {
      ...{ type: "nbd", id: push, "node-name": scratch, name: push, writable: true },
    });
    const { target, sizeBytes } = disk;
    const image = { target, sizeBytes, exportName: push, socketPath: daemon.nbdSocketPath };
    await this.#copies.connect(disk.nodes, image, signal);
    const options = { signal, pace, abandonTarget: () => endDaemon(daemon.directory, { atOnce: true }) };
    if (changes !== undefined) {
      const name = mergedBitmapName(changes.since);
      const granularity = CHECKPOINT_GRANULARITY;
      await daemon.execute("block-dirty-bitmap-add", { node: scratch, name, granularity });
      await this.#copies.copyChanges(each, changes, options);
      await daemon.execute("block-dirty-bitmap-disable", { node: scratch, name });
    }
    await this.#copies.copyAll(each, options);
    await this.#copies.disconnect(disk.nodes);
    await daemon.attempt((qmp) => removeExport(qmp, push));
    await daemon.execute("blockdev-add", {
      ...{ driver: "raw", "node-name": access, "read-only": true, file: scratch },
    });
  }

  async #offer({ disk, planned }: DiskToStage, undo: UndoLog, signal?: AbortSignal): Promise<ExportAddress> {
    const { target, sizeBytes, nodes } = disk;
    const directory = this.#directory(nodes);
    const daemon = await StorageDaemon.attach(directory, signal);
    if (daemon === undefined) {
      const message = `The storage daemon that holds the frozen content of disk ${target} has ended`;
      throw new FleeceError("SNAPSHOT_BROKEN", message, { facts: { target } });
    }
    try {
      const map = await this.#stagedMap(daemon, disk, planned);
      await undo.register({ kind: "daemon-export", directory, id: exportId(nodes.access) });
      const request = { planned: map, node: nodes.access, bitmapNodes: [nodes.scratch], sizeBytes };
      const address = await daemon.attempt((qmp) => addExport(qmp, request, daemon.nbdSocketPath));
      return { ...address, staged: true };
    } finally {
      await daemon.detach();
    }
  }

  /** The same export with the bitmap of the copy in place of those of the disk. */
  async #stagedMap(
    daemon: StorageDaemon,
    { nodes, target }: PlannedDisk,
    planned: PlannedExport,
  ): Promise<PlannedExport> {
    const { changes } = planned;
    if (changes === undefined) return planned;
    const recorded = mergedBitmapName(changes.since);
    const all = await daemon.execute("query-named-block-nodes", { flat: true });
    const bitmaps = all.find((node) => node["node-name"] === nodes.scratch)?.["dirty-bitmaps"] ?? [];
    if (bitmaps.some(({ name }) => name === recorded)) {
      return { ...planned, changes: { since: changes.since, bitmaps: [recorded] } };
    }
    throw new FleeceError(
      "UNSUPPORTED",
      `Disk ${target} was staged by an export that did not ask about checkpoint ${changes.since}, so the changes since then are not known any more: take a new block snapshot`,
      { facts: { target, checkpoint: changes.since } },
    );
  }

  #hostEntries(disk: PlannedDisk): HostEntry[] {
    return [
      { kind: "file", path: stagedPath(disk) },
      { kind: "daemon", directory: this.#directory(disk.nodes) },
    ];
  }

  #directory({ access }: PlannedDisk["nodes"]): string {
    return detachedDirectoryPath(access, this.#runtimeRoot);
  }
}

/** Beside the scratch image; the names of those begin with the eight characters of a snapshot's id. */
function stagedPath({ scratchPath }: PlannedDisk): string {
  return path.join(path.dirname(scratchPath), `staged-${path.basename(scratchPath)}`);
}
