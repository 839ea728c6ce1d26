import type {
  DomainSnapshot,
  DomainSnapshots,
  RevertCost,
  RevertDomainSnapshotRequest,
  RevertOutcome,
  SnapshotMachine,
  SnapshotState,
} from "../../model/domain-snapshot.js";
import { parseBitmapName } from "../../model/checkpoint.js";
import type { InternalJournal, InternalLoading } from "../../model/operation.js";
import { keptName, machineDifferences } from "../../model/revert-plan.js";
import type { InternalDisk, InternalSnapshotter } from "../../ports/internal-snapshots.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import { beginInternal } from "./internal-operation.js";
import type { FoundSnapshot } from "./read-snapshot.js";
import { refuseUnforced, type RevertOrder } from "./revert-order.js";
import { withLastRevert } from "./repeated.js";
import { saveInternal } from "./save-internal.js";
import { settleInternal } from "./settle-internal.js";

/**
 * What a revert will cost. Memory cannot be loaded while there are bitmaps, so all checkpoints end; those of the moment are not
 * in the images. The present is kept as an internal snapshot of its own, unless `force` says that it is not wanted.
 */
export async function internalRevertCost(
  context: ServiceContext,
  { all, snapshot }: FoundSnapshot,
  request: RevertDomainSnapshotRequest,
): Promise<RevertCost> {
  await using images = await context.internals.open(all);
  const now = { disks: await images.disks(), machine: await images.machine() };
  return costOf(context, all, snapshot, now, request);
}

/**
 * Puts disks back, and memory, if the snapshot has it, in the QEMU that runs. Fails with FORCE_NEEDED if checkpoints would end
 * or the machine differs, UNSUPPORTED if the domain's state does not fit, MEMORY_LOAD_FAILED; the guest then runs on, without its
 * checkpoints if loading had begun. But if QEMU gives up in the midst of a load and the present was not kept, the guest stays stopped.
 */
export async function revertInternal(context: ServiceContext, order: RevertOrder): Promise<RevertOutcome> {
  const { session, all, snapshot, request, options } = order;
  await session.close();
  await using images = await context.internals.open(all, options.signal);
  await images.checkIdle();
  const disks = await images.disks(options.signal);
  checkRevertible(images, snapshot, disks);
  // A revert that was killed has kept it.
  const kept = all.snapshots.find(({ request: key }) => key !== undefined && key === request.request);
  const machine = await images.machine();
  const planned = costOf(context, all, snapshot, { disks, machine }, request);
  const cost = { ...planned, keptAs: kept?.name ?? planned.keptAs };
  refuseUnforced(order, cost.risks);
  let now = all;
  if (cost.keptAs !== undefined && kept === undefined) {
    const present = { name: cost.keptAs, timeMs: context.clock.now(), machine, request: request.request };
    const scene = { session, images, all, disks };
    ({ now } = await saveInternal(context, scene, { ...present, description: "", keptByRevert: true }));
  }
  return await load(context, order, { images, now, disks, cost });
}

/** What has begun to be replaced goes on to its end, or back to what was kept; nothing runs on half of it. */
async function load(
  context: ServiceContext,
  { session, snapshot, request, options }: RevertOrder,
  loaded: {
    readonly images: InternalSnapshotter;
    /** The document with what was kept. */
    readonly now: DomainSnapshots;
    readonly disks: readonly InternalDisk[];
    readonly cost: RevertCost;
  },
): Promise<RevertOutcome> {
  const { images, now, disks, cost } = loaded;
  const { name } = snapshot;
  const startMs = context.clock.now();
  const former = images.state;
  const state = former === "inactive" ? "inactive" : (request.to ?? stateWith(snapshot));
  const document = withLastRevert({ ...now, current: name }, request, { ...cost, state });
  const loading: InternalLoading = {
    ...{ name, document, to: state },
    ...(cost.keptAs === undefined ? {} : { back: { name: cost.keptAs, document: now, to: former } }),
  };
  const { operation, subject } = await beginInternal(context, now.domain, name, disks);
  let progress: "nothing" | "begun" | "loaded" = "nothing";
  const outcome = (): RevertOutcome => {
    return { ...cost, snapshot, state, downtimeMs: context.clock.now() - startMs };
  };
  try {
    options.onProgress?.({ phase: "loading" });
    const beforeReplacing = async (): Promise<void> => {
      await operation.setSubject({ ...subject, loading });
      progress = "begun";
    };
    await images.load(name, { id: operation.record.id, undo: operation, beforeReplacing });
    progress = "loaded";
    await context.domainSnapshots.write(document);
    if (state === "running") await images.resume();
    await operation.end();
    return outcome();
  } catch (error) {
    if (progress === "loaded" && state === "running")
      await quietly(context, now.domain, () => images.resume());
    await images[Symbol.asyncDispose]();
    const left = afterFailure(subject, { loading, former, progress, error });
    // In memory it is so in any case.
    await quietly(context, now.domain, async () => {
      await operation.setSubject(left);
      // What is half replaced must not run.
      if (isFleeceError(error, "MEMORY_LOAD_FAILED")) await operation.settle({ kind: "vm-held" });
    });
    const isSettled = await quietly(context, now.domain, () => settleInternal(context, session, operation));
    if (progress === "loaded" && isSettled) return outcome();
    if (!isFleeceError(error, "MEMORY_LOAD_FAILED")) throw error;
    throw loadFailed(error, isSettled && left.loading !== undefined);
  }
}

/** What is to be done with a revert that has failed. */
function afterFailure(
  { loading: _, ...subject }: InternalJournal,
  failed: {
    readonly loading: InternalLoading;
    readonly former: SnapshotState;
    readonly progress: "nothing" | "begun" | "loaded";
    readonly error: unknown;
  },
): InternalJournal {
  const { loading, former, progress, error } = failed;
  const isRefused = former !== "inactive" && isFleeceError(error, "QEMU_FAILED");
  if (progress === "nothing" || (progress === "begun" && isRefused)) return subject;
  if (progress === "loaded" || isFleeceError(error, "DOMAIN_UNREACHABLE")) return { ...subject, loading };
  if (loading.back !== undefined) return { ...subject, loading: loading.back };
  // Images are put back by the next command, if not now; a QEMU that has refused will refuse again.
  return former === "inactive" ? { ...subject, loading } : subject;
}

function loadFailed(cause: FleeceError, isBack: boolean): FleeceError {
  const consequence = isBack
    ? "the domain is as it was before, but for its checkpoints"
    : "its disks and memory may be of several moments, so that the guest stays stopped: revert it to a snapshot, or start it anew";
  return new FleeceError("MEMORY_LOAD_FAILED", `${cause.message}; ${consequence}`, { cause });
}

/** False if it failed, which the log tells. */
async function quietly(
  { log }: ServiceContext,
  domain: string,
  action: () => Promise<void>,
): Promise<boolean> {
  try {
    await action();
    return true;
  } catch (error) {
    log.warn({ domain }, errorMessage(error));
    return false;
  }
}

function checkRevertible(
  images: InternalSnapshotter,
  snapshot: DomainSnapshot,
  disks: readonly InternalDisk[],
): void {
  const { name } = snapshot;
  const missing = disks.find(({ snapshots }) => !snapshots.some((each) => each.name === name));
  if (missing !== undefined || disks.length !== snapshot.disks.length) {
    throw new FleeceError(
      "DAMAGED",
      `Expected all disks of the domain to have the internal snapshot ${name}; ${missing?.target ?? "one"} has not, and without it the others would be of another moment`,
    );
  }
  if (images.state !== "inactive" && snapshot.memory === undefined) {
    throw new FleeceError(
      "UNSUPPORTED",
      `Domain snapshot ${name} has no memory, and its disks cannot be put back under a running guest: stop the domain first`,
    );
  }
  if (images.state === "inactive" && snapshot.memory !== undefined) {
    throw new FleeceError(
      "UNSUPPORTED",
      `Domain snapshot ${name} has memory, which needs a QEMU to be loaded into: start the domain first, paused`,
    );
  }
}

function costOf(
  { clock }: ServiceContext,
  all: DomainSnapshots,
  { name, machine: saved }: DomainSnapshot,
  now: { readonly disks: readonly InternalDisk[]; readonly machine: SnapshotMachine | undefined },
  { force }: RevertDomainSnapshotRequest,
): RevertCost {
  const bitmaps = now.disks.flatMap((disk) => disk.bitmaps);
  const endedCheckpoints = [...new Set(bitmaps.flatMap((bitmap) => parseBitmapName(bitmap)?.name ?? []))];
  const foreign = bitmaps.filter((bitmap) => parseBitmapName(bitmap) === undefined);
  return {
    keptAs: force === true ? undefined : keptName(all, name, clock.now()),
    endedCheckpoints,
    risks: [
      ...(endedCheckpoints.length === 0
        ? []
        : [`checkpoints end: ${endedCheckpoints.join(", ")}; the next backup reads and compares all`]),
      ...(foreign.length === 0 ? [] : [`bitmaps of other programs go: ${foreign.join(", ")}`]),
      ...(saved === undefined || now.machine === undefined ? [] : machineDifferences(saved, now.machine)),
    ],
  };
}

function stateWith({ state }: DomainSnapshot): "running" | "paused" {
  return state === "running" ? "running" : "paused";
}
