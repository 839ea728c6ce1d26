import { join } from "node:path";
import { CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import type { RevertCost, RevertOutcome } from "../../model/domain-snapshot.js";
import type { RevertJournal } from "../../model/operation.js";
import { planLaunch, type RevertLaunch } from "../../model/revert-launch.js";
import {
  bitmapToCarry,
  costOfRevert,
  documentAfterRevert,
  machineDifferences,
  type RevertedDisk,
} from "../../model/revert-plan.js";
import type { UndoEntry } from "../../model/undo.js";
import type { Machine } from "../../ports/machines.js";
import { errorMessage } from "../../shared/errors.js";
import { randomId } from "../../shared/ids.js";
import type { ServiceContext } from "../context.js";
import { Operation } from "../operation.js";
import { finishRevert } from "./finish-revert.js";
import { startAgainAfter } from "./quit-first.js";
import { refuseDeleting } from "./read-snapshot.js";
import { withLastRevert } from "./repeated.js";
import { goBack, undecide } from "./revert-back.js";
import { refuseUnforced, type RevertOrder } from "./revert-order.js";
import { checkFiles, openScene, type RevertScene } from "./revert-scene.js";

/** What a revert would cost now. */
export async function externalRevertCost(context: ServiceContext, order: RevertOrder): Promise<RevertCost> {
  refuseDeleting(order.snapshot, "reverted to");
  await using scene = await openScene(context, order);
  return costOfRevert(scene.facts);
}

/**
 * Puts new overlays over the files of the snapshot, and starts a QEMU on them. Nothing is stopped before all that a revert needs is
 * known to be whole; the present QEMU is kept until the new one has loaded everything, and goes on if that fails. Fails with
 * DAMAGED, FORCE_NEEDED, UNSUPPORTED or MEMORY_LOAD_FAILED, and the domain is as before; but with `quitFirst` see `startAgain`.
 */
export async function revertExternal(context: ServiceContext, order: RevertOrder): Promise<RevertOutcome> {
  const { snapshot, session, request, options } = order;
  refuseDeleting(snapshot, "reverted to");
  await using scene = await openScene(context, order);
  await checkFiles(context, snapshot, options);
  const cost = costOfRevert(scene.facts);
  refuseUnforced(order, cost.risks);
  const id = randomId(8);
  const disks = await nameOverlays(context, order);
  const launch = planLaunch(scene.facts, {
    ...{ id, request, disks, settings: context.machines.settings(session.domain) },
    old: scene.old && { process: scene.old.process, isRunning: scene.oldStatus === "running" },
  });
  const preparing = journalOf(scene, cost, launch, disks);
  const header = { id, domain: session.domain, startedAtMs: context.clock.now() };
  const operation = await Operation.begin(context.store, { ...header, subject: preparing });
  return await new ExternalRevert(context, order, { scene, cost, launch, disks, preparing, operation }).run();
}

/** `<target>-<name>-r<N>.qcow2`: a snapshot may be reverted to any number of times. */
async function nameOverlays(
  { snapshotFiles, domainSnapshots }: ServiceContext,
  { session, snapshot }: RevertOrder,
): Promise<RevertedDisk[]> {
  const directory = await domainSnapshots.directory(session.domain);
  for (let number = 1; ; number++) {
    const disks = snapshot.disks.map((disk) => ({
      disk,
      overlay: join(directory, `${disk.target}-${snapshot.name}-r${number}.qcow2`),
    }));
    const taken = await Promise.all(disks.map(({ overlay }) => snapshotFiles.exists(overlay)));
    if (!taken.includes(true)) return disks;
  }
}

function journalOf(
  { facts, old }: RevertScene,
  cost: RevertCost,
  { to, moved, again, start }: RevertLaunch,
  disks: readonly RevertedDisk[],
): RevertJournal {
  return {
    ...{ kind: "domain-snapshot-revert", name: facts.snapshot.name, phase: "preparing", to, moved },
    ...documentAfterRevert(facts, cost, disks),
    ...(again === undefined ? {} : { again }),
    ...(old === undefined ? {} : { old: { pid: old.process.pid, startTicks: old.process.startTicks } }),
    ...(start === undefined ? {} : { arguments: start.arguments }),
  };
}

interface PlannedRevert {
  readonly scene: RevertScene;
  readonly cost: RevertCost;
  readonly launch: RevertLaunch;
  readonly disks: readonly RevertedDisk[];
  readonly preparing: RevertJournal;
  readonly operation: Operation;
}

/** One revert, from its first record to its end. */
class ExternalRevert {
  readonly #context: ServiceContext;
  readonly #order: RevertOrder;
  readonly #plan: PlannedRevert;
  /** What the journal has, or was to have when writing it failed. */
  #subject: RevertJournal;
  /** The old QEMU has been told to end: it is no way back any more. */
  #hasQuit = false;
  #machine: Machine | undefined;
  #stoppedAtMs: number;

  constructor(context: ServiceContext, order: RevertOrder, plan: PlannedRevert) {
    this.#context = context;
    this.#order = order;
    this.#plan = plan;
    this.#subject = plan.preparing;
    this.#stoppedAtMs = context.clock.monotonicMs();
  }

  async run(): Promise<RevertOutcome> {
    try {
      await this.#makeOverlays();
      if (this.#plan.launch.again === undefined) await this.#startBesideOld();
      else await this.#startAfterOld();
      await this.#loadMemory();
      await this.#decide();
    } catch (error) {
      throw await this.#giveUp(error);
    }
    return await this.#goOn();
  }

  async #makeOverlays(): Promise<void> {
    const { operation, disks, scene } = this.#plan;
    const { signal, onProgress } = this.#order.options;
    const owner = scene.old?.process;
    await operation.register(...disks.map(({ overlay }): UndoEntry => ({ kind: "file", path: overlay })));
    for (const { disk, overlay } of disks) {
      onProgress?.({ phase: "disks", target: disk.target });
      const bitmap = bitmapToCarry(disk);
      const bitmaps = bitmap === undefined ? [] : [{ bitmap, granularityBytes: CHECKPOINT_GRANULARITY }];
      await this.#context.snapshotFiles.createOverlay({ path: overlay, base: disk, bitmaps, owner }, signal);
    }
  }

  /** The old QEMU, if there is one, runs on until the new one is ready to load. */
  async #startBesideOld(): Promise<void> {
    const { operation, scene, launch } = this.#plan;
    // Before the entry of the new QEMU, so that the old one is continued only when that is gone.
    if (scene.oldStatus === "running") await operation.register({ kind: "vm-held" });
    await this.#start();
    this.#stoppedAtMs = this.#context.clock.monotonicMs();
    const { monitor = "" } = this.#context.machines.settings(this.#order.session.domain);
    await scene.old?.hold(launch.guardPath ?? monitor, this.#order.options.signal);
  }

  async #startAfterOld(): Promise<void> {
    const { operation, scene, preparing } = this.#plan;
    this.#order.options.signal?.throwIfAborted();
    this.#stoppedAtMs = this.#context.clock.monotonicMs();
    this.#subject = { ...preparing, phase: "quitting" };
    await operation.setSubject(this.#subject);
    this.#hasQuit = true;
    await scene.old?.close();
    if (scene.old !== undefined) await this.#context.machines.end(scene.old.process, []);
    await this.#start();
  }

  async #start(): Promise<void> {
    const { operation, launch } = this.#plan;
    const { start, moved } = launch;
    if (start === undefined) return;
    this.#order.options.onProgress?.({ phase: "preparing" });
    await operation.register({ kind: "machine", arguments: start.arguments, moved });
    const { machines } = this.#context;
    await machines.setAside(moved);
    this.#machine = await machines.start(start, this.#signal());
    const { machine: saved } = this.#order.snapshot;
    if (saved === undefined) return;
    refuseUnforced(this.#order, machineDifferences(saved, await this.#machine.facts()));
  }

  async #loadMemory(): Promise<void> {
    if (this.#machine !== undefined && this.#order.snapshot.memory !== undefined) {
      this.#order.options.onProgress?.({ phase: "loading" });
      await this.#machine.load(this.#signal());
    }
    this.#signal()?.throwIfAborted();
  }

  /** From the record on, all leads forward. */
  async #decide(): Promise<void> {
    const { preparing, cost, launch, operation } = this.#plan;
    const done = { ...cost, state: launch.to, ...this.#pid() };
    const document = withLastRevert(preparing.document, this.#order.request, done);
    this.#subject = { ...preparing, phase: "switched", document };
    await operation.setSubject(this.#subject);
    await this.#context.domainSnapshots.write(document);
  }

  async #goOn(): Promise<RevertOutcome> {
    const { scene, cost, launch } = this.#plan;
    const { snapshot, options } = this.#order;
    options.onProgress?.({ phase: "finishing" });
    scene.old?.keepHeld();
    await scene.old?.close();
    await this.#finish();
    const stillMs = Math.round(this.#context.clock.monotonicMs() - this.#stoppedAtMs);
    const downtimeMs = scene.old === undefined ? 0 : stillMs;
    return { ...cost, snapshot, state: launch.to, downtimeMs, ...this.#pid() };
  }

  /** There is no way back any more, so what fails once is tried once more before it is left to the next command. */
  async #finish(): Promise<void> {
    const { operation } = this.#plan;
    try {
      await finishRevert(this.#context, operation, this.#subject, this.#machine);
    } catch (error) {
      const { id, domain } = operation.record;
      this.#context.log.warn({ domain, operation: id }, errorMessage(error));
      await finishRevert(this.#context, operation, this.#subject);
    }
  }

  /** Returns the error to fail with. */
  async #giveUp(error: unknown): Promise<unknown> {
    const { preparing, operation, scene } = this.#plan;
    const { session, all } = this.#order;
    if (this.#hasQuit) {
      await this.#machine?.close();
      const quitting = { ...preparing, phase: "quitting" } as const;
      const former = this.#subject.phase === "switched" ? all : undefined;
      return await startAgainAfter(error, this.#context, session, operation, { quitting, former });
    }
    if (this.#subject !== preparing) await undecide(this.#context, operation, preparing, all);
    await goBack(this.#context, session, operation, { old: scene.old, machine: this.#machine });
    return error;
  }

  /** A guest that has ended already would gain nothing from it. */
  #signal(): AbortSignal | undefined {
    return this.#plan.launch.again === undefined ? this.#order.options.signal : undefined;
  }

  #pid(): { readonly pid?: number } {
    return this.#machine === undefined ? {} : { pid: this.#machine.process.pid };
  }
}
