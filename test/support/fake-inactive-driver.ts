import type { BitmapStep } from "../../src/model/checkpoint.js";
import { bitmapName } from "../../src/model/checkpoint.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type {
  DomainState,
  ExportAddress,
  FileFingerprint,
  FreezeResult,
  PlannedExport,
  SnapshotPlan,
} from "../../src/model/snapshot-plan.js";
import type { WriteFigures } from "../../src/model/guest-pace.js";
import type { QemuEntry } from "../../src/model/undo.js";
import type { BlockDriver, UndoLog } from "../../src/ports/block-driver.js";
import { FleeceError } from "../../src/shared/errors.js";
import type { FakeDomain, Gate } from "./fake-domain.js";
import type { FakeDaemon } from "./fake-host.js";

/** The driver of an inactive domain in memory: one gate on either side of each `qemu-img` call and daemon command. */
export class FakeInactiveDriver implements BlockDriver {
  readonly mode = "inactive";
  readonly #domain: FakeDomain;
  /** Of the process that opened the driver: a later one has its own. */
  readonly #gate: Gate;

  constructor(domain: FakeDomain) {
    this.#domain = domain;
    this.#gate = domain.gate;
  }

  inspect(signal?: AbortSignal): Promise<DomainState> {
    return this.#step("inspect", signal, () => {
      this.#requireInactive();
      const disks = [...this.#domain.disks.values()].map((disk) => disk.state(false));
      return { domain: this.#domain.name, mode: "inactive" as const, disks };
    });
  }

  /** A failure leaves the steps before it done. */
  async changeBitmaps(
    changes: ReadonlyMap<string, readonly BitmapStep[]>,
    signal?: AbortSignal,
  ): Promise<void> {
    for (const [target, steps] of changes) {
      const disk = this.#domain.disk(target);
      for (const step of steps) {
        await this.#step(`${step.action} bitmap`, signal, () => {
          this.#requireInactive();
          disk.apply(step, false);
        });
      }
    }
  }

  async freeze(plan: SnapshotPlan, undo: UndoLog, signal?: AbortSignal): Promise<FreezeResult> {
    const { checkpoint } = plan;
    const timeMs = this.#domain.now();
    if (checkpoint !== undefined) {
      const targets = plan.disks.map(({ target }) => target);
      await undo.register({ kind: "checkpoint", checkpoint, targets });
      const tracked = plan.disks.filter(({ format }) => format === "qcow2");
      const bitmap = bitmapName(checkpoint);
      const add = { action: "add", bitmap, persistent: true, granularityBytes: BLOCK_SIZE } as const;
      await this.changeBitmaps(new Map(tracked.map(({ target }) => [target, [add]])), signal);
      const stops = tracked.map(({ target, previousBitmaps }) => {
        const steps = previousBitmaps.map((each) => ({ action: "disable", bitmap: each }) as const);
        return [target, steps] as const;
      });
      await this.changeBitmaps(new Map(stops), signal);
      const moment = plan.disks.map(
        ({ target }) => [target, Buffer.from(this.#domain.disk(target).content)] as const,
      );
      this.#domain.moments.set(checkpoint.name, new Map(moment));
    }
    const fingerprints = plan.disks.map(({ target }) => this.#fingerprint(target));
    const directory = directoryOf(plan);
    await undo.register({ kind: "daemon", directory });
    await this.#step("start daemon", signal, () => {
      const nodes: FakeDaemon["nodes"] = new Map();
      for (const { target, nodes: names } of plan.disks) {
        nodes.set(names.access, { content: this.#domain.disk(target).content });
      }
      this.#domain.host.daemons.set(directory, { nodes, exports: new Map() });
    });
    return { timeMs, heldMs: 0, fingerprints };
  }

  async startExports(
    plan: SnapshotPlan,
    exports: readonly PlannedExport[],
    undo: UndoLog,
    signal?: AbortSignal,
  ): Promise<readonly ExportAddress[]> {
    const directory = directoryOf(plan);
    const socketPath = `${directory}/nbd.sock`;
    const addresses: ExportAddress[] = [];
    for (const { target, exportName, nodes, changes } of exports) {
      const accessNode = nodes.access;
      const id = `${accessNode}-${exportName}`;
      await undo.register({ kind: "daemon-export", directory, id });
      const disk = this.#domain.disk(target);
      await this.#step("add export", signal, () => {
        const daemon = this.#domain.host.daemons.get(directory);
        const node = daemon?.nodes.get(accessNode);
        if (daemon === undefined || node === undefined) {
          throw new FleeceError("SNAPSHOT_BROKEN", "The storage daemon has ended");
        }
        const merged = changes === undefined ? {} : { changes: disk.merged(changes.bitmaps) };
        daemon.exports.set(id, { ...node, ...merged, exportName, socketPath, ended: false });
      });
      const context = changes === undefined ? {} : { changesContext: `qemu:dirty-bitmap:${changes.since}` };
      addresses.push({ target, exportName, socketPath, sizeBytes: disk.content.length, ...context });
    }
    return addresses;
  }

  push(): Promise<never> {
    return Promise.reject(new Error("No disk of this domain is staged"));
  }

  async checkIntact(
    _plan: SnapshotPlan,
    fingerprints: readonly FileFingerprint[],
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#step("check", signal, () => {
      const changed = fingerprints.find(
        ({ target, mtimeNs }) => this.#fingerprint(target).mtimeNs !== mtimeNs,
      );
      if (changed !== undefined) {
        throw new FleeceError("DISK_CHANGED", `Disk ${changed.target} was changed while it was read`);
      }
      this.#requireInactive();
    });
  }

  guestWrites(): Promise<ReadonlyMap<string, WriteFigures>> {
    return Promise.resolve(new Map());
  }

  /** What an earlier QEMU process of the domain held is gone with it. */
  checkServing(): Promise<void> {
    return Promise.resolve();
  }

  undo(entry: QemuEntry): Promise<void> {
    return this.#step(`undo ${entry.kind}`, undefined, () => {
      if (entry.kind !== "vm-nbd-server") return;
      this.#domain.host.directories.delete(entry.socketPath.replace(/\/[^/]*$/, ""));
    });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #fingerprint(target: string): FileFingerprint {
    const { file, version, content } = this.#domain.disk(target);
    const sizeBytes = String(content.length);
    return { target, path: file, device: "1", inode: target, sizeBytes, mtimeNs: String(version) };
  }

  /** A running QEMU holds the write lock of its images. */
  #requireInactive(): void {
    if (this.#domain.qemu === undefined) return;
    throw new FleeceError("DISK_IN_USE", `The images of domain ${this.#domain.name} are in use`);
  }

  async #step<T>(name: string, signal: AbortSignal | undefined, effect: () => T): Promise<T> {
    await this.#gate(`${name}: before`);
    signal?.throwIfAborted();
    const result = effect();
    await this.#gate(`${name}: after`);
    return result;
  }
}

function directoryOf({ id }: SnapshotPlan): string {
  return `/run/fake-daemons/${id}`;
}
