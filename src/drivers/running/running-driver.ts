import type { BitmapStep } from "../../model/checkpoint.js";
import { bitmapName, CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import type {
  DiskState,
  DomainState,
  ExportAddress,
  FreezeResult,
  Obstacle,
  PlannedDisk,
  PlannedExport,
  PlannedPush,
  SnapshotPlan,
} from "../../model/snapshot-plan.js";
import { cbwTimeoutSeconds } from "../../model/known-qemu-issues.js";
import type { WriteFigures } from "../../model/guest-pace.js";
import type { QemuEntry, UndoEntry } from "../../model/undo.js";
import type { BlockDriver, CopySpeed, PushOptions, UndoLog } from "../../ports/block-driver.js";
import type { Clock } from "../../ports/clock.js";
import type { DomainSnapshotStore } from "../../ports/domain-snapshot-store.js";
import type { Logger } from "../../ports/logger.js";
import type { QmpSession } from "../../qmp/index.js";
import { isEvent } from "../../qmp/index.js";
import { OneByOne } from "../../shared/async.js";
import { FleeceError, isFleeceError } from "../../shared/errors.js";
import type { DomainConfig } from "../../model/config.js";
import { addExport, exportId, mergedBitmapName } from "../node-exports.js";
import { withQmpErrors } from "../qmp-errors.js";
import type { BlockFacts } from "./block-graph.js";
import { filteredNode, layersOf, locateDisks } from "./block-graph.js";
import { bitmapTransaction } from "./bitmap-transaction.js";
import { guestWrites } from "./guest-writes.js";
import { clientsAbort, iothreadOf } from "./iothreads.js";
import { FrozenCopies } from "./frozen-copies.js";
import { addProbe, brokenByLimit, probeName, tryProbes } from "./loss-probe.js";
import { startNbdServer } from "./nbd-server.js";
import { PushedDisks } from "./pushed-disks.js";
import type { QuietMomentParts } from "./quiet-moment.js";
import { quietMoment } from "./quiet-moment.js";
import { addResizeGuard } from "./resize-guard.js";
import { addScratch, isWorthReleasing } from "./scratch.js";
import { type DiskToStage, StagedExports } from "./staged-exports.js";
import { describeLayers } from "./layers.js";
import { type AssignedDisk, type AssignedDisks, assignTargets } from "./targets.js";
import { frozenEntries, undoInQemu } from "./undo.js";
import { lookForUsers } from "./users.js";

/**
 * The disks of a running QEMU. Content is frozen by a copy-before-write filter inserted under the device at run time.
 *
 * Why this filter and not `blockdev-backup sync=none`: when scratch space runs out, that job makes the *guest's* write
 * fail with ENOSPC and tells nobody; the filter with `on-cbw-error=break-snapshot` lets the guest's write through and
 * breaks the snapshot instead.
 */
export class RunningDriver implements BlockDriver {
  readonly mode = "running";
  readonly #qmp: QmpSession;
  readonly #config: DomainConfig;
  readonly #domainSnapshots: Pick<DomainSnapshotStore, "read">;
  readonly #clock: Clock;
  readonly #qmpSocketPath: string;
  readonly #nbdSocketPath: string;
  readonly #staged: StagedExports;
  readonly #pushed: PushedDisks;
  readonly #undoing = new OneByOne();
  readonly #log: Logger;
  readonly #cbwTimeoutMs: number;
  /** QEMU's word for why it ends, once it has said so. With `-no-shutdown` it lives on. */
  #shutdownReason: string | undefined;
  /** Object paths by target, once somebody has asked for the guest's writes: that is done every second. */
  #devices: ReadonlyMap<string, string> | undefined;

  constructor(options: {
    qmp: QmpSession;
    config: DomainConfig;
    domainSnapshots: Pick<DomainSnapshotStore, "read">;
    clock: Clock;
    qmpSocketPath: string;
    nbdSocketPath: string;
    runtimeRoot: string;
    log: Logger;
    /** How long a guest's write may wait for the copy of the old content. */
    cbwTimeoutMs: number;
  }) {
    this.#log = options.log;
    this.#cbwTimeoutMs = options.cbwTimeoutMs;
    this.#qmp = options.qmp;
    this.#qmpSocketPath = options.qmpSocketPath;
    this.#config = options.config;
    this.#domainSnapshots = options.domainSnapshots;
    this.#clock = options.clock;
    this.#nbdSocketPath = options.nbdSocketPath;
    const copies = new FrozenCopies(options.qmp, (entry) => this.#undo(entry));
    this.#staged = new StagedExports({ copies, runtimeRoot: options.runtimeRoot });
    this.#pushed = new PushedDisks(copies);
    this.#qmp.onEvent((event) => {
      if (isEvent(event, "SHUTDOWN")) this.#shutdownReason = event.data.reason;
    });
  }

  inspect(signal?: AbortSignal): Promise<DomainState> {
    return this.#guarded(async () => {
      const snapshots = await this.#domainSnapshots.read(this.#config.name);
      // Sent at once and answered in this order.
      const [{ status }, { located, missing }, jobs, users] = await Promise.all([
        this.#qmp.execute("query-status"),
        this.#assign(snapshots, signal),
        this.#jobObstacle(),
        lookForUsers(this.#qmp),
      ]);
      const disks = await Promise.all(
        [...located].map(([target, disk]) => this.#describe(target, disk, snapshots, jobs)),
      );
      const mode = status === "running" ? "running" : "paused";
      const qemuVersion = this.#qemuVersion();
      const missingDisks = missing.length === 0 ? {} : { missingDisks: missing };
      return { domain: this.#config.name, mode, qemuVersion, disks, ...missingDisks, ...users };
    });
  }

  changeBitmaps(changes: ReadonlyMap<string, readonly BitmapStep[]>, signal?: AbortSignal): Promise<void> {
    return this.#guarded(async () => {
      const located = await this.#locate(signal);
      const actions = [...changes].flatMap(([target, steps]) =>
        bitmapTransaction(this.#disk(located, target).diskNode, steps),
      );
      if (actions.length > 0) await this.#qmp.execute("transaction", { actions });
    });
  }

  /**
   * The order is what makes the moment gap-free: new bitmaps, then filters, then the old bitmaps stop. A write between
   * the first and the last is in both bitmaps; the next incremental reads a block too many, never one too few. One
   * moment over several disks needs the guest's writes held for these steps; a single disk needs no hold.
   *
   * All is registered at once, in the order in which it is made: each write of the journal waits twice for the disk.
   */
  freeze(plan: SnapshotPlan, undo: UndoLog, signal?: AbortSignal): Promise<FreezeResult> {
    return this.#guarded(async () => {
      const located = await this.#locate(signal);
      await undo.register(...freezeEntries(plan));
      for (const disk of plan.disks) {
        const { diskNode } = this.#disk(located, disk.target);
        const limitBytes = plan.scratchLimitBytes;
        await addScratch(this.#qmp, disk, { diskNode, limitBytes, signal });
      }
      const cbwTimeout = this.#cbwTimeoutSeconds();
      const { value: timeMs, ...quiet } = await quietMoment(
        {
          qmp: this.#qmp,
          clock: this.#clock,
          domain: plan.domain,
          qmpSocketPath: this.#qmpSocketPath,
          hold: plan.disks.length > 1,
          quiesce: this.#quiesce(plan),
          undo,
          signal,
        },
        () => this.#moment(plan, located, cbwTimeout),
      );
      for (const disk of plan.disks) {
        const { nodes } = disk;
        await this.#qmp.execute("blockdev-add", {
          driver: "snapshot-access",
          "node-name": nodes.access,
          file: nodes.filter,
          discard: "unmap",
        });
        await addResizeGuard(this.#qmp, nodes);
      }
      return { timeMs, ...quiet, fingerprints: [] };
    });
  }

  /**
   * Offered is the scratch image over the disk as its backing node. The filter's own view would be the natural one to read,
   * for its reads fail once content is lost. But before QEMU 8.0 it takes the block status of what it has preserved from the
   * disk if the request reaches further (`hbitmap_status`, fixed upstream by a4d5224c2c): what the guest has zeroed or
   * discarded since reads as zeroes, and an NBD server leaves it out. That view tells only whether content was lost, and
   * takes what the reader gives up: the scratch image loses it, and the filter does not preserve it any more.
   *
   * If a disk of the snapshot is one that no NBD client may come near, all of it goes the other way: see StagedExports.
   */
  startExports(
    plan: SnapshotPlan,
    exports: readonly PlannedExport[],
    undo: UndoLog,
    signal?: AbortSignal,
    pace?: CopySpeed,
  ): Promise<readonly ExportAddress[]> {
    return this.#guarded(async () => {
      const located = await this.#locate(signal);
      if (await this.#needsStaging(plan, located)) {
        const disks: DiskToStage[] = [];
        for (const planned of exports) {
          const disk = plannedDisk(plan, planned.target);
          disks.push({ disk, planned, bitmapNodes: await this.#bitmapNodes(disk, located) });
        }
        return this.#staged.open(disks, undo, signal, pace);
      }
      await undo.register(
        { kind: "vm-nbd-server", socketPath: this.#nbdSocketPath },
        ...exports.flatMap(exportEntries),
      );
      await startNbdServer(this.#qmp, this.#nbdSocketPath, this.#config.name);
      const addresses: ExportAddress[] = [];
      for (const planned of exports) {
        const { target, nodes } = planned;
        const disk = plannedDisk(plan, target);
        const node = nodes.scratch;
        const releases = planned.release === true && this.#mayRelease(plan, target);
        await addProbe(this.#qmp, nodes, { writable: releases });
        const bitmapNodes = planned.changes === undefined ? [] : await this.#bitmapNodes(disk, located);
        const request = { planned, node, bitmapNodes, sizeBytes: disk.sizeBytes };
        const address = await addExport(this.#qmp, request, this.#nbdSocketPath);
        addresses.push({ ...address, ...(releases ? { releaseExport: probeName(nodes) } : {}) });
      }
      signal?.throwIfAborted();
      return addresses;
    });
  }

  push(plan: SnapshotPlan, planned: PlannedPush, undo: UndoLog, options: PushOptions = {}): Promise<void> {
    return this.#guarded(async () => {
      const disk = plannedDisk(plan, planned.target);
      const bitmapNodes = await this.#bitmapNodes(disk, await this.#locate(options.signal));
      try {
        await this.#pushed.push({ disk, bitmapNodes, planned }, planned.into, undo, options);
      } catch (error) {
        throw (await brokenByLimit(this.#qmp, plan, disk.nodes, error)) ?? error;
      }
    });
  }

  /**
   * A break cannot be queried, but every read through the filter fails from then on: so one is tried on each disk that has
   * been offered, after all others. A disk that has been copied out needs no filter any more.
   */
  async checkIntact(plan: SnapshotPlan, _fingerprints?: unknown, signal?: AbortSignal): Promise<void> {
    try {
      await this.#guarded(() => this.#checkIntact(plan, signal));
    } catch (error) {
      if (!isFleeceError(error, "DOMAIN_UNREACHABLE") || this.#shutdownReason === undefined) throw error;
      throw new FleeceError(
        "SNAPSHOT_BROKEN",
        `Domain ${plan.domain} was stopped after the block snapshot was taken; QEMU's reason: ${this.#shutdownReason}`,
        { cause: error, facts: { domain: plan.domain, reason: this.#shutdownReason } },
      );
    }
  }

  /** QEMU serves them itself, and `checkIntact` looks after those of staged disks. */
  checkServing(): Promise<void> {
    return Promise.resolve();
  }

  guestWrites(targets: readonly string[], signal?: AbortSignal): Promise<ReadonlyMap<string, WriteFigures>> {
    return this.#guarded(async () => {
      this.#devices ??= new Map(
        [...(await this.#locate(signal))].map(([target, { qomPath }]) => [target, qomPath]),
      );
      return guestWrites(this.#qmp, this.#devices, targets);
    });
  }

  undo(entry: QemuEntry): Promise<void> {
    return this.#guarded(() => this.#undo(entry));
  }

  close(): Promise<void> {
    return this.#qmp.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /**
   * A disk that has been copied is let go while others are copied, and the watch may take its filter away at the same time. A
   * device that is given the node that it has already aborts QEMU: nothing may come between the look and the deed.
   */
  #undo(entry: QemuEntry): Promise<void> {
    return this.#undoing.run(() => undoInQemu(this.#qmp, entry, this.#clock));
  }

  async #checkIntact(plan: SnapshotPlan, signal?: AbortSignal): Promise<void> {
    const graph = await this.#qmp.execute("x-debug-query-block-graph");
    const names = new Set(graph.nodes.map(({ name }) => name));
    for (const disk of plan.disks) {
      const { filter, access } = disk.nodes;
      if (!names.has(filter) && !(await this.#staged.holds(disk, signal))) {
        const why = "it was started anew, or another program has removed it";
        throw new FleeceError(
          "SNAPSHOT_BROKEN",
          `The filter of disk ${disk.target} is gone from QEMU: ${why}`,
        );
      }
      const below = filteredNode(graph, access);
      if (below === undefined || below === filter) continue;
      throw new FleeceError(
        "SNAPSHOT_BROKEN",
        `Another program has put node ${below} on disk ${disk.target}, over the filter that preserves its frozen content`,
        { facts: { target: disk.target, node: below } },
      );
    }
    await tryProbes(this.#qmp, plan, this.#nbdSocketPath, signal);
  }

  #guarded<T>(action: () => Promise<T>): Promise<T> {
    return withQmpErrors(`QEMU of domain ${this.#config.name}`, action);
  }

  async #locate(signal?: AbortSignal): Promise<ReadonlyMap<string, AssignedDisk>> {
    const snapshots = await this.#domainSnapshots.read(this.#config.name);
    return (await this.#assign(snapshots, signal)).located;
  }

  async #assign(snapshots: DomainSnapshots, signal?: AbortSignal): Promise<AssignedDisks> {
    signal?.throwIfAborted();
    return assignTargets(this.#config, snapshots, locateDisks(await this.#facts()));
  }

  async #facts(): Promise<BlockFacts> {
    const [devices, nodes, graph] = await Promise.all([
      this.#qmp.execute("query-block"),
      this.#qmp.execute("query-named-block-nodes", { flat: true }),
      this.#qmp.execute("x-debug-query-block-graph"),
    ]);
    return { devices, nodes, graph };
  }

  #disk(located: ReadonlyMap<string, AssignedDisk>, target: string): AssignedDisk {
    const disk = located.get(target);
    if (disk !== undefined) return disk;
    throw new FleeceError("DISK_NOT_FOUND", `Domain ${this.#config.name} has no disk ${target}`, {
      facts: { domain: this.#config.name, target },
    });
  }

  /** Of the images of a frozen disk. They are there also when the disk was unplugged since: our nodes hold them. */
  async #bitmapNodes(
    { target, nodes }: PlannedDisk,
    located: ReadonlyMap<string, AssignedDisk>,
  ): Promise<readonly string[]> {
    const facts = await this.#facts();
    const frozen = filteredNode(facts.graph, nodes.filter) ?? this.#disk(located, target).diskNode;
    return layersOf(facts, frozen).map(({ node }) => node);
  }

  async #describe(
    target: string,
    disk: AssignedDisk,
    snapshots: DomainSnapshots,
    jobs: Obstacle | undefined,
  ): Promise<DiskState> {
    const iothread = await iothreadOf(this.#qmp, disk.qomPath);
    // A job first: the filter that it may have put on the disk would be blamed otherwise.
    const obstacle = jobs ?? disk.obstacle;
    // One image has one name, whether or not the domain runs: by it a backup knows a disk again.
    const configured = this.#config.disks?.find((listed) => listed.target === target);
    return {
      target,
      format: disk.format,
      file: configured?.file ?? disk.file,
      ...(await describeLayers(target, disk, snapshots)),
      sizeBytes: disk.sizeBytes,
      ...(disk.allocatedBytes === undefined ? {} : { allocatedBytes: disk.allocatedBytes }),
      ...(iothread === undefined ? {} : { iothread }),
      ...(this.#mustStage(iothread) ? { staged: true } : {}),
      ...(obstacle === undefined ? {} : { obstacle }),
    };
  }

  async #needsStaging(plan: SnapshotPlan, located: ReadonlyMap<string, AssignedDisk>): Promise<boolean> {
    if (this.#config.exports === "staged") return true;
    for (const { target } of plan.disks) {
      const disk = located.get(target);
      // Unplugged: no device, no iothread.
      if (disk === undefined) continue;
      if (this.#mustStage(await iothreadOf(this.#qmp, disk.qomPath))) return true;
    }
    return false;
  }

  #mustStage(iothread: string | undefined): boolean {
    return this.#config.exports === "staged" || clientsAbort(this.#qmp, iothread);
  }

  /** A block job or a migration moves the graph under us; neither says in time which disks it will touch. */
  async #jobObstacle(): Promise<Obstacle | undefined> {
    const [job] = await this.#qmp.execute("query-block-jobs");
    if (job !== undefined) {
      return { code: "FOREIGN_FILTER", reason: `a ${job.type} job (${job.device}) works on the domain` };
    }
    const { status } = await this.#qmp.execute("query-migrate");
    if (status === undefined || MIGRATION_AT_REST.has(status)) return undefined;
    return { code: "FOREIGN_FILTER", reason: `the domain is being migrated (${status})` };
  }

  #mayRelease({ disks, scratchLimitBytes }: SnapshotPlan, target: string): boolean {
    return disks.some((disk) => disk.target === target && isWorthReleasing(disk, scratchLimitBytes));
  }

  #cbwTimeoutSeconds(): number {
    const qemuVersion = this.#qemuVersion();
    const seconds = cbwTimeoutSeconds(qemuVersion, this.#cbwTimeoutMs);
    if (seconds * 1000 < this.#cbwTimeoutMs) {
      this.#log.warn(
        { domain: this.#config.name, qemuVersion, wantedMs: this.#cbwTimeoutMs },
        `A guest's write waits at most ${seconds} s for scratch space: QEMU ${qemuVersion} miscounts more`,
      );
    }
    return seconds;
  }

  async #moment(
    plan: SnapshotPlan,
    located: ReadonlyMap<string, AssignedDisk>,
    cbwTimeout: number,
  ): Promise<number> {
    const onEach = (steps: (disk: PlannedDisk) => readonly BitmapStep[]) =>
      plan.disks.flatMap((disk) => bitmapTransaction(this.#disk(located, disk.target).diskNode, steps(disk)));
    if (plan.checkpoint !== undefined) {
      const bitmap = bitmapName(plan.checkpoint);
      await this.#qmp.execute("transaction", {
        actions: onEach(({ format }) => [
          { action: "add", bitmap, persistent: format === "qcow2", granularityBytes: CHECKPOINT_GRANULARITY },
        ]),
      });
    }
    const timeMs = plan.checkpoint?.timeMs ?? this.#clock.now();
    for (const disk of plan.disks) {
      const { qomPath, diskNode } = this.#disk(located, disk.target);
      await this.#qmp.execute("blockdev-add", {
        driver: "copy-before-write",
        "node-name": disk.nodes.filter,
        file: diskNode,
        target: disk.nodes.scratch,
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": cbwTimeout,
        // Without it the filter swallows the guest's discards; whether the disk honours them is the disk's own setting.
        discard: "unmap",
      });
      await this.#qmp.execute("qom-set", { path: qomPath, property: "drive", value: disk.nodes.filter });
    }
    const stopOld = onEach(({ previousBitmaps }) =>
      plan.checkpoint === undefined ? [] : previousBitmaps.map((bitmap) => ({ action: "disable", bitmap })),
    );
    if (stopOld.length > 0) await this.#qmp.execute("transaction", { actions: stopOld });
    return timeMs;
  }

  #qemuVersion(): string {
    const { major, minor, micro } = this.#qmp.version;
    return `${major}.${minor}.${micro}`;
  }

  #quiesce({ quiesce }: SnapshotPlan): QuietMomentParts["quiesce"] {
    const { guestAgent } = this.#config;
    if (quiesce === undefined) return undefined;
    if (guestAgent !== undefined) return { ...quiesce, agentSocketPath: guestAgent };
    throw new FleeceError("INTERNAL", `Expected a guest agent for domain ${this.#config.name}`);
  }
}

function plannedDisk({ disks }: SnapshotPlan, target: string): PlannedDisk {
  const disk = disks.find((planned) => planned.target === target);
  if (disk !== undefined) return disk;
  throw new FleeceError("DISK_NOT_FOUND", `The snapshot has no disk ${target}`);
}

function freezeEntries({ checkpoint, disks }: SnapshotPlan): UndoEntry[] {
  const targets = disks.map((disk) => disk.target);
  const entries = disks.map(frozenEntries);
  return [
    ...entries.flatMap(({ scratch }) => scratch),
    ...(checkpoint === undefined ? [] : [{ kind: "checkpoint", checkpoint, targets } as const]),
    ...entries.flatMap(({ filter }) => filter),
    ...entries.flatMap(({ access }) => access),
  ];
}

function exportEntries({ nodes, changes }: PlannedExport): UndoEntry[] {
  const node = nodes.scratch;
  return [
    { kind: "vm-export", id: probeName(nodes) },
    ...(changes === undefined
      ? []
      : [{ kind: "vm-bitmap", node, bitmap: mergedBitmapName(changes.since) } as const]),
    { kind: "vm-export", id: exportId(node) },
  ];
}

const MIGRATION_AT_REST: ReadonlySet<string> = new Set(["none", "completed", "failed", "cancelled"]);
