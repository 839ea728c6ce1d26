import type {
  CreateDomainSnapshotRequest,
  DomainSnapshot,
  DomainSnapshotOptions,
  DomainSnapshots,
  MergedLayer,
} from "../../model/domain-snapshot.js";
import { findSnapshot } from "../../model/domain-snapshot.js";
import { withoutSnapshot } from "../../model/layer-plan.js";
import { checkName } from "../../model/names.js";
import type { InternalDisk } from "../../ports/internal-snapshots.js";
import { FleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import { requireDomain, withDomain } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { beginInternal } from "./internal-operation.js";
import type { LayerOptions } from "./layer-options.js";
import { refuseOpenSnapshots } from "./read-snapshot.js";
import { repeatedCreation } from "./repeated.js";
import { saveInternal } from "./save-internal.js";
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
    const hasMemory = images.state !== "inactive" && request.diskOnly !== true;
    const machine = hasMemory ? await images.machine() : undefined;
    options.onProgress?.({ phase: hasMemory ? "memory" : "disks" });
    const scene = { session, images, all, disks };
    const { snapshot } = await saveInternal(context, scene, {
      ...{ name, timeMs, machine, description: request.description ?? "", request: request.request },
      ...(hasMemory && images.state === "running" ? { pausedSinceMs: timeMs } : {}),
      signal: options.signal,
    });
    return snapshot;
  });
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
    const { operation } = await beginInternal(context, all.domain, name, snapshot.disks);
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
