import type { BitmapStep } from "../../src/model/checkpoint.js";
import { bitmapName } from "../../src/model/checkpoint.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type {
  DomainState,
  ExportAddress,
  FreezeResult,
  PlannedExport,
  PlannedPush,
  SnapshotPlan,
} from "../../src/model/snapshot-plan.js";
import type { WriteFigures } from "../../src/model/guest-pace.js";
import { type HostEntry, isQemuEntry, type QemuEntry, type UndoEntry } from "../../src/model/undo.js";
import type { BlockDriver, PushOptions, UndoLog } from "../../src/ports/block-driver.js";
import { FleeceError } from "../../src/shared/errors.js";
import type { FakeDomain, Gate, Session } from "./fake-domain.js";
import { refused } from "./fake-disk.js";
import type { FakeQemu } from "./fake-qemu.js";

const SOCKET_DIRECTORY = "/run/fake-vm";
const FROZEN: UndoEntry = { kind: "vm-frozen", socketPath: "/run/fake-vm.qga" };
const SOCKET = `${SOCKET_DIRECTORY}/nbd.sock`;

/** The driver of a QEMU process in memory. Each step on it is one round trip, with a gate on either side. */
export class FakeRunningDriver implements BlockDriver {
  readonly mode = "running";
  readonly #domain: FakeDomain;
  readonly #qemu: FakeQemu;
  readonly #session: Session;
  readonly #onClose: () => void;
  /** Of the process that opened the driver: a later one has its own. */
  readonly #gate: Gate;

  constructor(domain: FakeDomain, qemu: FakeQemu, session: Session, onClose: () => void) {
    this.#domain = domain;
    this.#qemu = qemu;
    this.#session = session;
    this.#onClose = onClose;
    this.#gate = domain.gate;
  }

  inspect(signal?: AbortSignal): Promise<DomainState> {
    return this.#step("inspect", signal, () => {
      const disks = [...this.#domain.disks.values()].map((disk) => {
        const state = disk.state(true);
        const filter = this.#qemu.roots.get(disk.target);
        if (filter === undefined) return state;
        const reason = `it already has a block snapshot (filter ${filter})`;
        return { ...state, obstacle: { code: "FOREIGN_FILTER" as const, reason, filter } };
      });
      const ourNodes = [...this.#qemu.nodes.keys()];
      return { domain: this.#domain.name, mode: this.#qemu.status, qemuVersion: "7.2.22", disks, ourNodes };
    });
  }

  async changeBitmaps(
    changes: ReadonlyMap<string, readonly BitmapStep[]>,
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#transaction("change bitmaps", signal, changes);
  }

  async freeze(plan: SnapshotPlan, undo: UndoLog, signal?: AbortSignal): Promise<FreezeResult> {
    const { checkpoint, disks } = plan;
    for (const { scratchPath, nodes } of disks) {
      await undo.register({ kind: "file", path: scratchPath }, { kind: "vm-node", node: nodes.scratch });
      await this.#step("create scratch", signal, () => this.#domain.host.files.add(scratchPath));
      await this.#step("add scratch", signal, () => this.#qemu.addNode(nodes.scratch, { kind: "scratch" }));
    }
    const targets = disks.map(({ target }) => target);
    await undo.register(
      ...(checkpoint === undefined ? [] : [{ kind: "checkpoint", checkpoint, targets } as const]),
      ...disks.flatMap(({ target, nodes }) => [
        { kind: "vm-node", node: nodes.filter } as const,
        { kind: "vm-filter", target, filter: nodes.filter } as const,
      ]),
    );
    const frozen = plan.quiesce !== undefined && (await this.#freezeGuest(undo));
    const { timeMs, heldMs } = await this.#thawedAfter(frozen, undo, () =>
      this.#held(disks.length > 1, undo, () => this.#moment(plan)),
    );
    for (const { nodes } of disks) {
      await undo.register({ kind: "vm-node", node: nodes.access });
      await this.#step("add access", signal, () =>
        this.#qemu.addNode(nodes.access, { kind: "access", filter: nodes.filter, bitmaps: new Map() }),
      );
    }
    const quiesce = frozen ? { quiesce: { frozen: true, frozenMs: 2 } as const } : {};
    return { timeMs, heldMs, ...quiesce, fingerprints: [] };
  }

  async startExports(
    _plan: SnapshotPlan,
    exports: readonly PlannedExport[],
    undo: UndoLog,
    signal?: AbortSignal,
  ): Promise<readonly ExportAddress[]> {
    await undo.register({ kind: "vm-nbd-server", socketPath: SOCKET });
    await this.#step("start the NBD server", signal, () => {
      this.#domain.host.directories.add(SOCKET_DIRECTORY);
      this.#qemu.nbdSocketPath ??= SOCKET;
    });
    const addresses: ExportAddress[] = [];
    for (const planned of exports) addresses.push(await this.#export(planned, undo, signal));
    return addresses;
  }

  /** In two parts, so that the guest may write, and anything else happen, in the midst of the copy. */
  async push(
    plan: SnapshotPlan,
    { target, changes, into }: PlannedPush,
    undo: UndoLog,
    { signal, abandonTarget, onProgress, onCopied }: PushOptions = {},
  ): Promise<void> {
    const planned = plan.disks.find((disk) => disk.target === target);
    if (planned === undefined) throw new Error(`The snapshot has no disk ${target}`);
    const { access, filter, scratch, push } = planned.nodes;
    const bitmap = `since-${changes?.since ?? ""}`;
    const copying: QemuEntry[] = [
      { kind: "vm-node", node: push },
      ...(changes === undefined ? [] : [{ kind: "vm-bitmap", node: access, bitmap } as const]),
      { kind: "vm-job", id: push },
    ];
    await undo.register(...copying);
    const image = [...this.#domain.images].find(({ exportName }) => exportName === into.exportName);
    await this.#step("connect target", signal, () => {
      if (image === undefined) throw refused(`Nothing listens on ${into.socketPath}`);
      this.#qemu.addNode(push, { kind: "target", image });
    });
    const disk = this.#domain.disk(target);
    const all = Array.from({ length: Math.ceil(disk.content.length / BLOCK_SIZE) }, (_, block) => block);
    const blocks = changes === undefined ? all : [...disk.merged(changes.bitmaps)];
    if (changes !== undefined) {
      await this.#step("merge changes", signal, () => this.#qemu.addBitmap(access, bitmap, new Set(blocks)));
    }
    const middle = Math.ceil(blocks.length / 2);
    try {
      await this.#step("start copy", signal, () => this.#qemu.startCopy(access, push));
      for (const part of [blocks.slice(0, middle), blocks.slice(middle)]) {
        await this.#step("copy", signal, () => this.#qemu.copy(push, part));
        onProgress?.(part.length * BLOCK_SIZE, blocks.length * BLOCK_SIZE);
      }
    } catch (error) {
      if (signal?.aborted === true) await abandonTarget?.();
      // The job has failed, or been cancelled; nobody dismisses it by a connection that is lost.
      if (this.#session.alive) this.#qemu.jobs.delete(push);
      throw error;
    }
    this.#qemu.jobs.delete(push);
    onCopied?.();
    const entries: (QemuEntry | HostEntry)[] = [
      { kind: "file", path: planned.scratchPath },
      { kind: "vm-node", node: scratch },
      { kind: "vm-node", node: filter },
      { kind: "vm-filter", target, filter },
      { kind: "vm-node", node: access },
      ...copying,
    ];
    for (const entry of entries.toReversed()) {
      if (isQemuEntry(entry)) await this.undo(entry);
      else await this.#domain.host.undo(entry);
    }
    await undo.settle(...entries);
  }

  async checkIntact(plan: SnapshotPlan, _fingerprints: unknown, signal?: AbortSignal): Promise<void> {
    await this.#step("check", signal, () => {
      const missing = plan.disks.find(({ nodes }) => !this.#qemu.nodes.has(nodes.filter));
      if (missing === undefined) return;
      throw new FleeceError("SNAPSHOT_BROKEN", `The filter of disk ${missing.target} is gone`);
    });
  }

  checkServing(): Promise<void> {
    return Promise.resolve();
  }

  async guestWrites(
    targets: readonly string[],
    signal?: AbortSignal,
  ): Promise<ReadonlyMap<string, WriteFigures>> {
    return this.#step("guest writes", signal, () => {
      const { disks, writeFigures } = this.#domain;
      return new Map(targets.filter((target) => disks.has(target)).map((target) => [target, writeFigures]));
    });
  }

  async undo(entry: QemuEntry): Promise<void> {
    await this.#step(`undo ${entry.kind}`, undefined, () => {
      switch (entry.kind) {
        case "vm-held":
          this.#qemu.status = "running";
          return;
        case "vm-saving":
          if (entry.wasRunning) this.#qemu.status = "running";
          return;
        case "vm-frozen":
          this.#qemu.frozen = false;
          return;
        case "vm-node":
          if (this.#qemu.nodes.has(entry.node)) this.#qemu.removeNode(entry.node);
          return;
        case "vm-filter":
          this.#qemu.removeFilter(entry.filter);
          return;
        case "vm-export":
          this.#qemu.removeExport(entry.id);
          return;
        case "vm-nbd-server":
          if (this.#qemu.exports.size > 0) return;
          this.#qemu.nbdSocketPath = undefined;
          this.#domain.host.directories.delete(SOCKET_DIRECTORY);
          return;
        case "vm-bitmap":
          this.#qemu.removeBitmap(entry.node, entry.bitmap);
          return;
        case "vm-job":
          this.#qemu.jobs.delete(entry.id);
          return;
      }
    });
  }

  close(): Promise<void> {
    this.#onClose();
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** New bitmaps, then filters, then the old bitmaps stop: a write between the first and the last is in both. */
  async #moment({ checkpoint, disks }: SnapshotPlan): Promise<number> {
    const each = (steps: (disk: (typeof disks)[number]) => readonly BitmapStep[]) =>
      new Map(disks.map((disk) => [disk.target, steps(disk)]));
    if (checkpoint !== undefined) {
      const bitmap = bitmapName(checkpoint);
      const add = { action: "add", bitmap, granularityBytes: BLOCK_SIZE } as const;
      await this.#transaction(
        "add bitmaps",
        undefined,
        each(({ format }) => [{ ...add, persistent: format === "qcow2" }]),
      );
    }
    const timeMs = this.#domain.now();
    const moment = new Map<string, Buffer>();
    for (const { target, nodes } of disks) {
      const disk = this.#domain.disk(target);
      const node = { kind: "filter", disk, scratch: nodes.scratch } as const;
      await this.#step("add filter", undefined, () => this.#qemu.addNode(nodes.filter, node));
      await this.#step("insert filter", undefined, () => {
        moment.set(target, this.#qemu.insertFilter(nodes.filter));
      });
    }
    if (checkpoint !== undefined) {
      this.#domain.moments.set(checkpoint.name, moment);
      await this.#transaction(
        "stop old bitmaps",
        undefined,
        each(({ previousBitmaps }) => previousBitmaps.map((bitmap) => ({ action: "disable", bitmap }))),
      );
    }
    return timeMs;
  }

  async #freezeGuest(undo: UndoLog): Promise<boolean> {
    await undo.register(FROZEN);
    await this.#step("freeze guest", undefined, () => (this.#qemu.frozen = true));
    return true;
  }

  async #thawedAfter<T>(frozen: boolean, undo: UndoLog, action: () => Promise<T>): Promise<T> {
    if (!frozen) return action();
    let result: T;
    try {
      result = await action();
    } finally {
      await this.#step("thaw guest", undefined, () => (this.#qemu.frozen = false));
    }
    await undo.settle(FROZEN);
    return result;
  }

  async #held(
    needed: boolean,
    undo: UndoLog,
    action: () => Promise<number>,
  ): Promise<{ timeMs: number; heldMs: number }> {
    if (!needed || this.#qemu.status !== "running") return { timeMs: await action(), heldMs: 0 };
    const entry: UndoEntry = { kind: "vm-held" };
    await undo.register(entry);
    let timeMs: number;
    try {
      await this.#step("stop", undefined, () => (this.#qemu.status = "paused"));
      timeMs = await action();
    } finally {
      await this.#step("cont", undefined, () => (this.#qemu.status = "running"));
    }
    await undo.settle(entry);
    return { timeMs, heldMs: 1 };
  }

  async #export(planned: PlannedExport, undo: UndoLog, signal?: AbortSignal): Promise<ExportAddress> {
    const { target, exportName, changes } = planned;
    const node = planned.nodes.access;
    const id = `${node}-${exportName}`;
    const bitmap = changes === undefined ? undefined : `since-${changes.since}`;
    const disk = this.#domain.disk(target);
    if (changes !== undefined && bitmap !== undefined) {
      await undo.register({ kind: "vm-bitmap", node, bitmap });
      await this.#step("merge changes", signal, () =>
        this.#qemu.addBitmap(node, bitmap, disk.merged(changes.bitmaps)),
      );
    }
    await undo.register({ kind: "vm-export", id });
    const socketPath = await this.#step("add export", signal, () =>
      this.#qemu.addExport(id, { node, exportName, ...(bitmap === undefined ? {} : { bitmap }) }),
    );
    const context = bitmap === undefined ? {} : { changesContext: `qemu:dirty-bitmap:${bitmap}` };
    return { target, exportName, socketPath, sizeBytes: disk.content.length, ...context };
  }

  #transaction(
    name: string,
    signal: AbortSignal | undefined,
    changes: ReadonlyMap<string, readonly BitmapStep[]>,
  ): Promise<void> {
    return this.#step(name, signal, () => {
      const disks = [...changes].map(([target, steps]) => ({ disk: this.#domain.disk(target), steps }));
      const rollbacks = disks.map(({ disk }) => disk.checkpointBitmaps());
      try {
        for (const { disk, steps } of disks) for (const step of steps) disk.apply(step, true);
      } catch (error) {
        for (const rollback of rollbacks) rollback();
        throw error;
      }
    });
  }

  async #step<T>(name: string, signal: AbortSignal | undefined, effect: () => T): Promise<T> {
    await this.#gate(`${name}: before`);
    signal?.throwIfAborted();
    this.#requireAlive();
    const result = effect();
    await this.#gate(`${name}: after`);
    this.#requireAlive();
    return result;
  }

  #requireAlive(): void {
    if (!this.#session.alive) throw new FleeceError("DOMAIN_UNREACHABLE", "The connection to QEMU broke");
    if (this.#domain.qemu !== this.#qemu) throw refused("A session outlived its QEMU process");
  }
}
