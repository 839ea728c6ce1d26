import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshotOptions,
  DomainSnapshots,
  MergedLayer,
  RevertCost,
  RevertDomainSnapshotRequest,
  RevertOutcome,
  SnapshotMachine,
  SnapshotState,
} from "../../model/domain-snapshot.js";
import { findSnapshot } from "../../model/domain-snapshot.js";
import { parseBitmapName } from "../../model/checkpoint.js";
import { withoutSnapshot } from "../../model/layer-plan.js";
import { checkName } from "../../model/names.js";
import type { InternalJournal, InternalLoading } from "../../model/operation.js";
import { keptName, machineDifferences } from "../../model/revert-plan.js";
import type { InternalDisk, InternalSnapshotter } from "../../ports/internal-snapshots.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import { randomId } from "../../shared/ids.js";
import type { ServiceContext } from "../context.js";
import { requireDomain, withDomain } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { Operation } from "../operation.js";
import type { LayerOptions } from "./layer-options.js";
import { readSnapshot, refuseOpenSnapshots } from "./read-snapshot.js";
import { repeatedCreation, repeatedRevert, withLastRevert } from "./repeated.js";
import { settleInternal } from "./settle-internal.js";

/** Domain snapshots inside the qcow2 images. They stand in no chain, so any of them can be deleted without harm to others. */

/**
 * A snapshot of all disks, with memory unless told otherwise. The guest stands still as long as memory is written; then it is as
 * it was. Fails with UNSUPPORTED where a disk cannot hold one, ALREADY_EXISTS, DOMAIN_BUSY, MEMORY_SAVE_FAILED, NO_SPACE.
 */
export async function createInternal(
  context: ServiceContext,
  request: CreateDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<DomainSnapshot> {
  const { domain } = request;
  requireDomain(context, domain);
  const timeMs = context.clock.now();
  const name = checkName("domain snapshot", request.name ?? String(Math.floor(timeMs / 1000)));
  refuseUnsupported(request);
  return withDomain(context, domain, `domain snapshot ${name} of ${domain}`, async (session) => {
    await session.close();
    const all = await context.domainSnapshots.read(domain);
    const made = repeatedCreation(all, request);
    if (made !== undefined) return made;
    await refuseOpenSnapshots(context, domain);
    await using images = await context.internals.open(all, options.signal);
    await images.checkIdle();
    const disks = await images.disks(options.signal);
    refuseDisks(all, disks, name);
    refuseSubset(request, all, disks);
    const memory = images.state !== "inactive" && request.diskOnly !== true;
    const machine = memory ? await images.machine() : undefined;
    const operation = await begin(context, domain, name, disks);
    try {
      options.onProgress?.({ phase: memory ? "memory" : "disks" });
      await saveNamed(images, name, memory, operation, options.signal);
      const [snapshot, now] = added(all, {
        ...{ name, timeMs, machine, disks: await images.disks(), state: images.state },
        description: request.description ?? "",
        request: request.request,
        pausedMs: memory && images.state === "running" ? context.clock.now() - timeMs : 0,
      });
      await context.domainSnapshots.write(now);
      await operation.end();
      return snapshot;
    } catch (error) {
      await images[Symbol.asyncDispose]();
      await settleInternal(context, session, operation);
      throw error;
    }
  });
}

/**
 * What a revert will cost. Memory cannot be loaded while there are bitmaps, so all checkpoints end; those of the moment are not
 * in the images. The present is kept as an internal snapshot of its own, unless `force` says that it is not wanted.
 */
export async function internalRevertCost(
  context: ServiceContext,
  request: RevertDomainSnapshotRequest,
): Promise<RevertCost> {
  const { all, snapshot } = await readSnapshot(context, request.domain, request.name);
  await using images = await context.internals.open(all);
  const now = { disks: await images.disks(), machine: await images.machine() };
  return costOf(context, all, snapshot, now, request);
}

/**
 * Puts disks back, and memory, if the snapshot has it, in the QEMU that runs. Fails with FORCE_NEEDED if checkpoints would end
 * or the machine differs, UNSUPPORTED if the domain's state does not fit, MEMORY_LOAD_FAILED; the guest then runs on, without its
 * checkpoints if loading had begun. But if QEMU gives up in the midst of a load and the present was not kept, the guest stays stopped.
 */
export async function revertInternal(
  context: ServiceContext,
  request: RevertDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<RevertOutcome> {
  const { domain, name } = request;
  requireDomain(context, domain);
  return withDomain(context, domain, `revert of ${domain} to ${name}`, async (session) => {
    await session.close();
    await refuseOpenSnapshots(context, domain);
    const { all, snapshot } = await readSnapshot(context, domain, name);
    const reverted = repeatedRevert(all, request);
    if (reverted !== undefined) return reverted;
    await using images = await context.internals.open(all, options.signal);
    await images.checkIdle();
    const disks = await images.disks(options.signal);
    checkRevertible(images, snapshot, disks);
    // A revert that was killed has kept it.
    const kept = all.snapshots.find(({ request: key }) => key !== undefined && key === request.request);
    const machine = await images.machine();
    const planned = costOf(context, all, snapshot, { disks, machine }, request);
    const cost = { ...planned, keptAs: kept?.name ?? planned.keptAs };
    if (cost.risks.length > 0 && request.force !== true) throw forceNeeded(snapshot, cost);
    let now = all;
    if (cost.keptAs !== undefined && kept === undefined) {
      const key = request.request;
      const present = { all, name: cost.keptAs, disks, machine, request: key };
      now = await keepPresent(context, { session, images, ...present });
    }
    return await load(context, { session, images, now, snapshot, disks, cost, request, options });
  });
}

/** What has begun to be replaced goes on to its end, or back to what was kept; nothing runs on half of it. */
async function load(
  context: ServiceContext,
  parts: {
    readonly session: DomainSession;
    readonly images: InternalSnapshotter;
    /** The document with what was kept. */
    readonly now: DomainSnapshots;
    readonly snapshot: DomainSnapshot;
    readonly disks: readonly InternalDisk[];
    readonly cost: RevertCost;
    readonly request: RevertDomainSnapshotRequest;
    readonly options: DomainSnapshotOptions;
  },
): Promise<RevertOutcome> {
  const { session, images, now, snapshot, disks, cost, request, options } = parts;
  const { name } = snapshot;
  const startMs = context.clock.now();
  const former = images.state;
  const state = former === "inactive" ? "inactive" : (request.to ?? stateWith(snapshot));
  const document = withLastRevert({ ...now, current: name }, request, { ...cost, state });
  const loading: InternalLoading = {
    ...{ name, document, to: state },
    ...(cost.keptAs === undefined ? {} : { back: { name: cost.keptAs, document: now, to: former } }),
  };
  const operation = await begin(context, now.domain, name, disks);
  const subject = internalOf(operation);
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

/** Within the domain's lock; clones have been asked about. */
export async function deleteInternal(
  context: ServiceContext,
  session: DomainSession,
  all: DomainSnapshots,
  snapshot: DomainSnapshot,
  options: LayerOptions,
): Promise<readonly MergedLayer[]> {
  const { name } = snapshot;
  const layers = snapshot.disks.map(({ target, file }): MergedLayer => ({
    target,
    how: "internal",
    from: file,
  }));
  const images = await context.internals.open(all, options.signal);
  try {
    await images.checkIdle();
    const operation = await begin(context, all.domain, name, snapshot.disks);
    try {
      await options.onPlanned(layers);
      // First: what has begun to be deleted cannot be reverted to any more.
      await context.domainSnapshots.write(withoutSnapshot(all, name));
      await images.remove(name, { id: operation.record.id, undo: operation });
      await operation.end();
    } catch (error) {
      await images[Symbol.asyncDispose]();
      await settleInternal(context, session, operation);
      throw error;
    }
  } finally {
    await images[Symbol.asyncDispose]();
  }
  return layers;
}

async function begin(
  { store, clock }: ServiceContext,
  domain: string,
  snapshot: string,
  disks: readonly { readonly file: string }[],
): Promise<Operation> {
  const subject = {
    kind: "domain-snapshot-internal",
    snapshot,
    files: disks.map(({ file }) => file),
  } as const;
  return await Operation.begin(store, { id: randomId(8), domain, startedAtMs: clock.now(), subject });
}

function internalOf({ record: { subject } }: Operation): InternalJournal {
  if (subject.kind === "domain-snapshot-internal") return subject;
  throw new FleeceError(
    "INTERNAL",
    `Expected the journal of an internal snapshot, got that of a ${subject.kind}`,
  );
}

async function saveNamed(
  images: InternalSnapshotter,
  name: string,
  memory: boolean,
  operation: Operation,
  signal?: AbortSignal,
): Promise<void> {
  await images.save(name, { id: operation.record.id, undo: operation, memory, signal });
}

async function keepPresent(
  context: ServiceContext,
  parts: {
    readonly session: DomainSession;
    readonly images: InternalSnapshotter;
    readonly all: DomainSnapshots;
    readonly name: string;
    readonly disks: readonly InternalDisk[];
    readonly machine: SnapshotMachine | undefined;
    readonly request: string | undefined;
  },
): Promise<DomainSnapshots> {
  const { session, images, all, name, disks, machine, request } = parts;
  const timeMs = context.clock.now();
  const operation = await begin(context, all.domain, name, disks);
  try {
    await saveNamed(images, name, machine !== undefined, operation);
    const [, now] = added(all, {
      ...{ name, timeMs, machine, disks: await images.disks(), state: images.state },
      ...{ description: "", pausedMs: 0, keptByRevert: true, request },
    });
    await context.domainSnapshots.write(now);
    await operation.end();
    return now;
  } catch (error) {
    await images[Symbol.asyncDispose]();
    await settleInternal(context, session, operation);
    throw error;
  }
}

/** The snapshot, and the document with it as the current one. */
function added(
  all: DomainSnapshots,
  made: {
    readonly name: string;
    readonly description: string;
    readonly timeMs: number;
    /** Of the memory; left out without. */
    readonly machine: SnapshotMachine | undefined;
    readonly state: DomainSnapshot["state"];
    readonly pausedMs: number;
    readonly disks: readonly InternalDisk[];
    readonly keptByRevert?: boolean;
    readonly request: string | undefined;
  },
): [DomainSnapshot, DomainSnapshots] {
  const { name, description, timeMs, state, pausedMs } = made;
  const holder = made.disks.find((disk) => memoryIn(disk, name) > 0);
  const snapshot: DomainSnapshot = {
    ...{ name, description, timeMs, state, pausedMs, kind: "internal", live: false, clones: [] },
    ...(all.current === undefined ? {} : { parent: all.current }),
    ...(holder === undefined
      ? { consistency: state === "inactive" ? "clean" : "crash" }
      : { memory: { kind: "internal", target: holder.target, sizeBytes: memoryIn(holder, name) } }),
    ...(made.machine === undefined ? {} : { machine: made.machine }),
    disks: made.disks.map(({ target, file, format, sizeBytes, bitmaps }) => ({
      ...{ target, file, format, sizeBytes, bitmaps },
    })),
    ...(made.keptByRevert === true ? { keptByRevert: true } : {}),
    ...(made.request === undefined ? {} : { request: made.request }),
  };
  return [snapshot, { ...all, current: name, snapshots: [...all.snapshots, snapshot] }];
}

function memoryIn({ snapshots }: InternalDisk, name: string): number {
  return snapshots.find((snapshot) => snapshot.name === name)?.memoryBytes ?? 0;
}

function refuseUnsupported(request: CreateDomainSnapshotRequest): void {
  const { live, quiesce, directory, memoryPath, lvm } = request;
  const asked = [
    [lvm === true, "--lvm: it is in the images, not beside them"],
    [live === true, "--live: the guest stands still while memory goes into an image"],
    [quiesce === true, "--quiesce"],
    [
      directory !== undefined || memoryPath !== undefined,
      "a place for its files: all of it is in the images",
    ],
  ] as const;
  const refused = asked.find(([is]) => is);
  if (refused === undefined) return;
  throw new FleeceError("INVALID_ARGUMENT", `An internal domain snapshot cannot have ${refused[1]}`);
}

/** Disks may be named, but QEMU would take memory and some of them without a word. */
function refuseSubset(
  { disks: wanted, domain }: CreateDomainSnapshotRequest,
  { layers }: DomainSnapshots,
  disks: readonly InternalDisk[],
): void {
  if (wanted === undefined) return;
  const known = disks.map(({ target }) => target);
  const named = wanted.map(({ disk }) => {
    const found = disks.find(({ target, file }) => target === disk || file === disk);
    const target = found?.target ?? layers.find(({ home }) => home === disk)?.target;
    if (target !== undefined) return target;
    throw new FleeceError(
      "DISK_NOT_FOUND",
      `Domain ${domain} has no disk ${disk}; it has ${known.join(", ")}`,
      { facts: { domain, target: disk } },
    );
  });
  const missing = known.filter((target) => !named.includes(target));
  if (missing.length === 0) return;
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected all disks of domain ${domain} in an internal snapshot, ${missing.join(", ")} is left out`,
    { facts: { domain, targets: missing.join(", ") } },
  );
}

/** An image under an overlay cannot be reached by QEMU any more, and its internal snapshots neither. */
function refuseDisks(all: DomainSnapshots, disks: readonly InternalDisk[], name: string): void {
  const unfit = disks.find(({ format }) => format !== "qcow2");
  if (disks.length === 0 || unfit !== undefined) {
    const found = unfit === undefined ? "no disk" : `${unfit.format} for disk ${unfit.target}`;
    throw new FleeceError(
      "UNSUPPORTED",
      `Internal domain snapshots need qcow2 images for all disks; found ${found}`,
    );
  }
  const external = all.snapshots.find(({ kind }) => kind === "external");
  if (external !== undefined) {
    throw new FleeceError(
      "UNSUPPORTED",
      `Domain ${all.domain} has the external snapshot ${external.name}: internal ones would be out of reach below its overlays`,
    );
  }
  const layer = all.layers.find(({ home, active }) => home !== active);
  if (layer !== undefined) {
    throw new FleeceError(
      "UNSUPPORTED",
      `Disk ${layer.target} of domain ${all.domain} is in an overlay, ${layer.active}, of an external snapshot: external and internal ones cannot be mixed`,
      { facts: { domain: all.domain, target: layer.target, path: layer.active } },
    );
  }
  const holder = disks.find(({ snapshots }) => snapshots.some((snapshot) => snapshot.name === name));
  if (holder === undefined && findSnapshot(all, name) === undefined) return;
  throw new FleeceError(
    "ALREADY_EXISTS",
    holder === undefined
      ? `Domain ${all.domain} has a domain snapshot ${name} already`
      : `Disk ${holder.target} (${holder.file}) has an internal snapshot ${name} already`,
    { facts: { domain: all.domain, snapshot: name } },
  );
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

function forceNeeded({ name }: DomainSnapshot, { risks }: RevertCost): FleeceError {
  return new FleeceError("FORCE_NEEDED", `The revert to ${name} needs force: ${risks.join("; ")}`, {
    facts: { snapshot: name, risks },
  });
}

function stateWith({ state }: DomainSnapshot): "running" | "paused" {
  return state === "running" ? "running" : "paused";
}
