import { readFile, rm, stat } from "node:fs/promises";
import path from "node:path";
import type { BitmapStep } from "../../model/checkpoint.js";
import { bitmapName, CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import type { DiskConfig, DomainConfig } from "../../model/config.js";
import type {
  DiskFormat,
  DomainState,
  ExportAddress,
  FileFingerprint,
  FreezeResult,
  PlannedDisk,
  PlannedExport,
  SnapshotPlan,
} from "../../model/snapshot-plan.js";
import type { WriteFigures } from "../../model/guest-pace.js";
import type { QemuEntry } from "../../model/undo.js";
import type { BlockDriver, UndoLog } from "../../ports/block-driver.js";
import type { Clock } from "../../ports/clock.js";
import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import { fileError, FleeceError } from "../../shared/errors.js";
import type { BlockdevOptions } from "../../qmp/index.js";
import { addExport, exportId } from "../node-exports.js";
import { changeImageBitmap, imageInfo } from "../qemu-tools.js";
import { describeDisk, locateDisk, type InactiveDisk } from "./layers.js";
import { detachedDirectoryPath } from "../runtime-directory.js";
import { StorageDaemon } from "../storage-daemon.js";

/**
 * The disks of a domain that does not run. Bitmaps are changed with `qemu-img bitmap`, each call a few milliseconds; then
 * a storage daemon opens the images read-only for the pull. A daemon with the images open for writing would mark every
 * bitmap in use, and its death would cost every checkpoint.
 *
 * The daemon takes no lock on the images, so that the domain can start at any time: the guest wins, `checkIntact` notices,
 * and the attempt is thrown away.
 */
export class InactiveDriver implements BlockDriver {
  readonly mode = "inactive";
  readonly #config: DomainConfig;
  readonly #disks: readonly DiskConfig[];
  readonly #domainSnapshots: Pick<DomainSnapshotStore, "read">;
  readonly #clock: Clock;
  readonly #runtimeRoot: string;
  /** Of the daemon that this object has started. */
  #daemonGone: Promise<string> | undefined;

  constructor(options: {
    config: DomainConfig;
    disks: readonly DiskConfig[];
    domainSnapshots: Pick<DomainSnapshotStore, "read">;
    clock: Clock;
    runtimeRoot: string;
  }) {
    this.#config = options.config;
    this.#disks = options.disks;
    this.#clock = options.clock;
    this.#domainSnapshots = options.domainSnapshots;
    this.#runtimeRoot = options.runtimeRoot;
  }

  async inspect(signal?: AbortSignal): Promise<DomainState> {
    const snapshots = await this.#domainSnapshots.read(this.#config.name);
    const disks = await Promise.all(this.#disks.map((disk) => describeDisk(snapshots, disk, signal)));
    return { domain: this.#config.name, mode: "inactive", disks };
  }

  async changeBitmaps(
    changes: ReadonlyMap<string, readonly BitmapStep[]>,
    signal?: AbortSignal,
  ): Promise<void> {
    for (const [target, steps] of changes) {
      const { file } = await this.#disk(target);
      for (const step of steps) await changeImageBitmap(file, step, { signal });
    }
  }

  /** Nothing writes to the disks, so the order of steps decides only what a killed process leaves: too much, never too little. */
  async freeze(plan: SnapshotPlan, undo: UndoLog, signal?: AbortSignal): Promise<FreezeResult> {
    const { checkpoint } = plan;
    const tracked = plan.disks.filter(({ format }) => format === "qcow2");
    const timeMs = checkpoint?.timeMs ?? this.#clock.now();
    if (checkpoint !== undefined) {
      await undo.register({
        kind: "checkpoint",
        checkpoint,
        targets: plan.disks.map(({ target }) => target),
      });
      const bitmap = bitmapName(checkpoint);
      const granularityBytes = CHECKPOINT_GRANULARITY;
      const add: BitmapStep = { action: "add", bitmap, persistent: true, granularityBytes };
      await this.changeBitmaps(new Map(tracked.map(({ target }) => [target, [add]])), signal);
      await this.changeBitmaps(
        new Map(
          tracked.map(({ target, previousBitmaps }) => [
            target,
            previousBitmaps.map((previous) => ({ action: "disable", bitmap: previous })),
          ]),
        ),
        signal,
      );
    }
    const fingerprints = await Promise.all(
      plan.disks.map(async ({ target }) => fingerprint(await this.#disk(target))),
    );
    await this.#serve(plan, undo, signal);
    return { timeMs, heldMs: 0, fingerprints };
  }

  async startExports(
    plan: SnapshotPlan,
    exports: readonly PlannedExport[],
    undo: UndoLog,
    signal?: AbortSignal,
  ): Promise<readonly ExportAddress[]> {
    const directory = this.#directory(plan.id);
    const daemon = await StorageDaemon.attach(directory, signal);
    if (daemon === undefined) {
      throw new FleeceError("SNAPSHOT_BROKEN", "The storage daemon that serves the block snapshot has ended");
    }
    try {
      return await daemon.attempt(async (qmp) => {
        const addresses: ExportAddress[] = [];
        for (const planned of exports) {
          const disk = plan.disks.find(({ target }) => target === planned.target);
          if (disk === undefined) {
            throw new FleeceError("DISK_NOT_FOUND", `The snapshot has no disk ${planned.target}`);
          }
          const node = planned.nodes.access;
          const id = exportId(node);
          await undo.register({ kind: "daemon-export", directory, id });
          const { frozen } = await this.#disk(disk.target);
          const bitmapNodes = [node, ...frozen.map((_, index) => layerNode(node, index))];
          const request = { planned, node, bitmapNodes, sizeBytes: disk.sizeBytes };
          addresses.push(await addExport(qmp, request, daemon.nbdSocketPath));
        }
        return addresses;
      });
    } finally {
      await daemon.detach();
    }
  }

  /** Readers of an inactive disk cost no guest anything, so none of them has to be staged. */
  push(): Promise<never> {
    return Promise.reject(
      new FleeceError(
        "INTERNAL",
        `Expected domain ${this.#config.name} to run, so that it can push its disks`,
      ),
    );
  }

  /**
   * A guest that started in between opened the images for writing, which changes them at once when they have bitmaps;
   * and as long as it runs, it holds their locks.
   */
  async checkIntact(
    _plan: SnapshotPlan,
    fingerprints: readonly FileFingerprint[],
    signal?: AbortSignal,
  ): Promise<void> {
    for (const before of fingerprints) {
      const disk = await this.#disk(before.target);
      const now = await fingerprint(disk);
      const changed = (["path", "device", "inode", "sizeBytes", "mtimeNs"] as const).find(
        (key) => before[key] !== now[key],
      );
      if (changed === undefined) {
        await imageInfo(disk.file, disk.format, { signal });
        continue;
      }
      throw new FleeceError(
        "DISK_CHANGED",
        `Disk ${disk.target} (${disk.file}) was changed while it was read: the domain was probably started`,
        { facts: { target: disk.target, changed } },
      );
    }
  }

  async checkServing({ id }: SnapshotPlan, signal?: AbortSignal): Promise<void> {
    const failure = await StorageDaemon.obituary(this.#directory(id), this.#daemonGone, signal);
    if (failure !== undefined) throw failure;
  }

  guestWrites(): Promise<ReadonlyMap<string, WriteFigures>> {
    return Promise.resolve(new Map());
  }

  /** What an earlier QEMU process of the domain held is gone with it, but for the directory of its socket. */
  async undo(entry: QemuEntry): Promise<void> {
    if (entry.kind !== "vm-nbd-server") return;
    await rm(path.dirname(entry.socketPath), { recursive: true, force: true });
  }

  /** Between calls nothing is held: the daemon's monitor serves one client at a time, whoever undoes its exports. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #directory(snapshotId: string): string {
    return detachedDirectoryPath(snapshotId, this.#runtimeRoot);
  }

  /** As domain snapshots have left it. */
  async #disk(target: string): Promise<InactiveDisk> {
    const disk = this.#disks.find((listed) => listed.target === target);
    if (disk !== undefined) return locateDisk(await this.#domainSnapshots.read(this.#config.name), disk);
    throw new FleeceError("DISK_NOT_FOUND", `Domain ${this.#config.name} has no disk ${target}`, {
      facts: { domain: this.#config.name, target },
    });
  }

  async #serve(plan: SnapshotPlan, undo: UndoLog, signal?: AbortSignal): Promise<void> {
    const directory = this.#directory(plan.id);
    await undo.register({ kind: "daemon", directory });
    const daemon = await StorageDaemon.start({ directory, lifetime: "detached", signal });
    this.#daemonGone = daemon.gone;
    try {
      for (const disk of plan.disks) await this.#addNode(daemon, disk);
    } finally {
      await daemon.detach();
    }
  }

  /** Images that domain snapshots have frozen get nodes with names, for the bitmaps in them; QEMU opens what is below those. */
  async #addNode(daemon: StorageDaemon, { target, format, nodes }: PlannedDisk): Promise<void> {
    const { file, frozen } = await this.#disk(target);
    let backing: string | undefined;
    for (const [index, layer] of [...frozen.entries()].toReversed()) {
      const node = layerNode(nodes.access, index);
      await daemon.execute("blockdev-add", await readOnlyNode({ ...layer, node, backing }));
      backing = node;
    }
    await daemon.execute("blockdev-add", await readOnlyNode({ file, format, node: nodes.access, backing }));
  }
}

/** `fleece-k3j9abcd-0-access` becomes `fleece-k3j9abcd-0-layer-1`. */
function layerNode(accessNode: string, index: number): string {
  return accessNode.replace(/-access$/, `-layer-${index + 1}`);
}

async function readOnlyNode(layer: {
  readonly file: string;
  readonly format: DiskFormat;
  readonly node: string;
  readonly backing: string | undefined;
}): Promise<BlockdevOptions> {
  // Volumes of LVM, for example.
  const driver = (await stat(layer.file)).isBlockDevice() ? "host_device" : "file";
  const file = { driver, filename: layer.file, "read-only": true, locking: "off" } as const;
  const common = { "node-name": layer.node, "read-only": true, file } as const;
  if (layer.format !== "qcow2") return { ...common, driver: layer.format };
  return { ...common, driver: "qcow2", ...(layer.backing === undefined ? {} : { backing: layer.backing }) };
}

export async function fingerprint(disk: Pick<InactiveDisk, "target" | "file">): Promise<FileFingerprint> {
  try {
    const found = await stat(disk.file, { bigint: true });
    const { dev, ino, size, mtimeNs } = found;
    const place = { target: disk.target, path: disk.file, device: dev.toString(), inode: ino.toString() };
    return found.isBlockDevice()
      ? { ...place, ...(await deviceState(found.rdev)) }
      : { ...place, sizeBytes: size.toString(), mtimeNs: mtimeNs.toString() };
  } catch (error) {
    throw fileError(error, "look at", disk.file);
  }
}

/** A device has no time of its last change, but the kernel counts: Documentation/block/stat.rst, in sectors of 512 bytes. */
async function deviceState(rdev: bigint): Promise<Pick<FileFingerprint, "sizeBytes" | "mtimeNs">> {
  // makedev(3).
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  const directory = `/sys/dev/block/${major.toString()}:${minor.toString()}`;
  const sectors = BigInt((await readFile(`${directory}/size`, "utf8")).trim());
  const counters = (await readFile(`${directory}/stat`, "utf8")).trim().split(/\s+/);
  const [written = "", discarded = ""] = [counters[WRITTEN_SECTORS], counters[DISCARDED_SECTORS]];
  return { sizeBytes: (sectors * 512n).toString(), mtimeNs: `${written} written, ${discarded} discarded` };
}

const WRITTEN_SECTORS = 6;
const DISCARDED_SECTORS = 13;
