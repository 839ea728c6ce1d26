import type { DomainConfig } from "../../model/config.js";
import type { DiskLayers } from "../../model/domain-snapshot.js";
import type { CreationPlan, DomainFacts, NewFile } from "../../model/domain-snapshot-plan.js";
import type { StandIn } from "../../model/stand-in.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { Clock } from "../../ports/clock.js";
import type { SnapshotTaker, TakenMoment, TakeOptions } from "../../ports/snapshot-taker.js";
import { isEvent, isQmpError, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { withQmpErrors } from "../qmp-errors.js";
import { HoldGuard } from "../running/hold-guard.js";
import { quietMoment } from "../running/quiet-moment.js";
import { fileIdentity } from "../running/targets.js";
import { lookAtDisks, lookAtMachine, type SeenDisk } from "./machine-look.js";
import { MemoryFile } from "./memory-file.js";
import { forFile, saveMemory } from "./memory-saver.js";
import { addOverlayNode, createPlannedOverlay } from "./overlays.js";
import { prepareStandIn, reopenedNode, reopeningOf, settleSaving, standIn, takeBack } from "./stand-ins.js";

export interface RunningTakerOptions {
  readonly qmp: QmpSession;
  readonly config: DomainConfig;
  readonly clock: Clock;
  readonly qmpSocketPath: string;
  readonly runtimeRoot: string;
  /** See `SaveParts`. */
  readonly convergeWithinMs: number;
}

/**
 * Snapshots of a running or paused QEMU. Memory first, disks second, also of a live guest: QEMU has stopped it by then, and both
 * are of one moment. So there is nothing to undo on the disks when the memory cannot be saved.
 */
export class RunningTaker implements SnapshotTaker {
  readonly mode = "running";
  readonly #options: RunningTakerOptions;
  readonly #qmp: QmpSession;
  #seen: readonly SeenDisk[] = [];

  constructor(options: RunningTakerOptions) {
    this.#options = options;
    this.#qmp = options.qmp;
  }

  look(layers: readonly DiskLayers[], signal?: AbortSignal): Promise<DomainFacts> {
    return this.#guarded(async () => {
      signal?.throwIfAborted();
      const { facts, disks } = await lookAtMachine({ ...this.#options, layers });
      this.#seen = disks;
      return facts;
    });
  }

  activeFiles(plan: CreationPlan): Promise<ReadonlyMap<string, string>> {
    return this.#guarded(async () => {
      const seen = await lookAtDisks({ ...this.#options, layers: [] });
      const identities = new Set<string>();
      for (const { facts } of seen) identities.add(await fileIdentity(facts.file));
      const active = new Map<string, string>();
      for (const { target, file, overlay } of plan.disks) {
        for (const path of [file, overlay.path]) {
          if (identities.has(await fileIdentity(path))) active.set(target, path);
        }
      }
      return active;
    });
  }

  addOverlays(plan: CreationPlan, undo: UndoLog, signal?: AbortSignal): Promise<void> {
    return this.#guarded(async () => {
      for (const layer of plan.disks) {
        await createPlannedOverlay(layer, undo, signal);
        await addOverlayNode(this.#qmp, layer, this.#disk(layer.target), undo);
      }
    });
  }

  take(plan: CreationPlan, options: TakeOptions): Promise<TakenMoment> {
    const { memory } = plan;
    return this.#guarded(() =>
      memory === undefined ? this.#takeDisks(plan, options) : this.#takeAll(plan, memory, options),
    );
  }

  close(): Promise<void> {
    return this.#qmp.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The transaction is one moment by itself: the guest's requests wait while it lasts. LVM takes one volume after the other. */
  async #takeDisks(plan: CreationPlan, options: TakeOptions): Promise<TakenMoment> {
    const { clock, config, qmpSocketPath } = this.#options;
    const { undo, beforeDisks, signal } = options;
    const { guestAgent } = config;
    const hold = plan.volumes !== undefined;
    const quiesce =
      plan.quiesce === undefined || guestAgent === undefined
        ? undefined
        : { ...plan.quiesce, agentSocketPath: guestAgent };
    const { value: timeMs, ...quiet } = await quietMoment(
      { qmp: this.#qmp, clock, domain: plan.domain, qmpSocketPath, hold, quiesce, undo, signal },
      async () => {
        const moment = { timeMs: clock.now() };
        await options.takeVolumes();
        await beforeDisks(moment);
        await this.#switchDisks(plan);
        return moment.timeMs;
      },
    );
    const outcome = quiet.quiesce === undefined ? {} : { quiesce: quiet.quiesce };
    return { timeMs, pausedMs: quiet.heldMs, ...outcome };
  }

  async #takeAll(plan: CreationPlan, memory: NewFile, options: TakeOptions): Promise<TakenMoment> {
    const { clock, qmpSocketPath, runtimeRoot } = this.#options;
    const { undo, signal } = options;
    const wasRunning = plan.state === "running";
    const standIns = plan.disks.flatMap(({ target }) => this.#disk(target).standIn ?? []);
    const saving = { kind: "vm-saving", wasRunning, ...(standIns.length === 0 ? {} : { standIns }) } as const;
    await undo.register({ kind: "linked-file", path: memory.firstName, link: memory.path }, saving);
    await using file = await MemoryFile.create(memory, runtimeRoot);
    await using _asBefore = await forFile(this.#qmp);
    // A paused guest waits for nobody: the journal alone knows of it, unless it has lost its images meanwhile.
    const isGuarded = wasRunning || standIns.length > 0;
    const reopenings = standIns.map(reopeningOf);
    await using guard = isGuarded ? await HoldGuard.start({ qmpSocketPath, reopenings, signal }) : undefined;
    const state = wasRunning ? "saving" : "stood-in";
    const pause = new Stopwatch(this.#qmp, clock);
    guard?.begin(state);
    try {
      const moment = await this.#saveAndSwitch(plan, { into: file, standIns }, options);
      await settleSaving(this.#qmp, clock, saving);
      guard?.end(state);
      await undo.settle(saving);
      return { ...moment, pausedMs: wasRunning ? pause.elapsedMs() : 0 };
    } catch (error) {
      // The guard is served only once we are gone. It and the journal know of the guest if this fails, too.
      if (isQmpError(error, "QMP_TIMEOUT")) await this.#qmp.close();
      else {
        await settleSaving(this.#qmp, clock, saving).then(
          () => guard?.end(state),
          () => undefined,
        );
      }
      throw error;
    } finally {
      pause.stop();
    }
  }

  async #saveAndSwitch(
    plan: CreationPlan,
    { into, standIns }: { readonly into: MemoryFile; readonly standIns: readonly StandIn[] },
    { takeVolumes, beforeDisks, onMemory, signal }: TakeOptions,
  ): Promise<{ readonly timeMs: number; readonly memoryBytes: number }> {
    const { clock, convergeWithinMs } = this.#options;
    for (const each of standIns) await prepareStandIn(this.#qmp, each);
    if (plan.state === "running" && !plan.live) await this.#qmp.execute("stop");
    for (const each of standIns) await standIn(this.#qmp, each);
    const save = { qmp: this.#qmp, clock, domain: plan.domain, into, convergeWithinMs, signal };
    await saveMemory({ ...save, live: plan.live, onProgress: onMemory });
    for (const each of standIns) await takeBack(this.#qmp, each);
    signal?.throwIfAborted();
    const moment = { timeMs: clock.now(), memoryBytes: into.sizeBytes };
    await takeVolumes();
    await beforeDisks(moment);
    await this.#switchDisks(plan);
    return moment;
  }

  /** All of them or none. */
  async #switchDisks(plan: CreationPlan): Promise<void> {
    if (plan.disks.length === 0) return;
    await this.#qmp.execute("transaction", {
      actions: plan.disks.map(({ target, node }) => ({
        type: "blockdev-snapshot",
        data: { node: this.#presentNode(plan, target), overlay: node },
      })),
    });
  }

  #presentNode({ memory }: CreationPlan, target: string): string {
    const { node, standIn: planned } = this.#disk(target);
    return memory === undefined || planned === undefined ? node : reopenedNode(planned);
  }

  #disk(target: string): SeenDisk {
    const disk = this.#seen.find(({ facts }) => facts.target === target);
    if (disk !== undefined) return disk;
    const { name } = this.#options.config;
    throw new FleeceError("DISK_NOT_FOUND", `Domain ${name} has no disk ${target}`, {
      facts: { domain: name, target },
    });
  }

  #guarded<T>(action: () => Promise<T>): Promise<T> {
    return withQmpErrors(`QEMU of domain ${this.#options.config.name}`, action);
  }
}

/** For how long the guest does not run, by QEMU's own word. */
class Stopwatch {
  readonly stop: () => void;
  #stoppedAtMs: number | undefined;
  #elapsedMs = 0;

  constructor(qmp: QmpSession, clock: Clock) {
    this.stop = qmp.onEvent((event) => {
      if (isEvent(event, "STOP")) this.#stoppedAtMs = clock.monotonicMs();
      if (!isEvent(event, "RESUME") || this.#stoppedAtMs === undefined) return;
      this.#elapsedMs += clock.monotonicMs() - this.#stoppedAtMs;
      this.#stoppedAtMs = undefined;
    });
  }

  elapsedMs(): number {
    return Math.round(this.#elapsedMs);
  }
}
