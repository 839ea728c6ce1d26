import { stat } from "node:fs/promises";
import type { DomainConfig } from "../../model/config.js";
import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import { isName } from "../../model/names.js";
import { isFrozen, presentDisk, type PresentDisk } from "../../model/present-disk.js";
import type { MissingDisk, OtherLayer } from "../../model/snapshot-plan.js";
import { FleeceError } from "../../shared/errors.js";
import type { LocatedDisk } from "./block-graph.js";

export interface AssignedDisk extends LocatedDisk {
  /** What domain snapshots say of it, if they have moved it. */
  readonly present?: PresentDisk;
  readonly otherLayer?: OtherLayer;
}

export interface AssignedDisks {
  readonly located: ReadonlyMap<string, AssignedDisk>;
  /** What the configuration lists and nothing is located for. */
  readonly missing: readonly MissingDisk[];
}

/**
 * Which located disk is which target: by the image file where the configuration lists disks (device names change, the
 * file does not), else by the device's own id. Domain snapshots may have moved a disk to another file than the one that is
 * configured. A disk that is missing is in nobody's way who does not ask for it: what was left on the others can be put in
 * order.
 */
export async function assignTargets(
  config: DomainConfig,
  snapshots: DomainSnapshots,
  disks: readonly LocatedDisk[],
): Promise<AssignedDisks> {
  const located = new Map<string, AssignedDisk>();
  if (config.disks === undefined) {
    for (const disk of disks.filter(({ id }) => isName("disk", id))) {
      located.set(disk.id, await withPresent(snapshots, disk.id, disk, presentDisk(snapshots, disk.id)));
    }
    return { located, missing: [] };
  }
  const missing: MissingDisk[] = [];
  const identities = await Promise.all(disks.map((disk) => fileIdentity(disk.file)));
  for (const { target, file: configured, format: configuredFormat } of config.disks) {
    const present = presentDisk(snapshots, target, configured);
    const { file, format } = present ?? { file: configured, format: configuredFormat };
    const wanted = await fileIdentity(file);
    const disk = disks.find((_, index) => identities[index] === wanted) ?? (await diskOver(present, disks));
    if (disk === undefined) {
      const others = disks.map((other) => other.file).join(", ") || "none";
      const where = present === undefined ? "in the configuration" : "by its domain snapshots";
      const reason = `it is ${file} ${where}, but the running QEMU has no writable disk with that file (it has ${others})`;
      missing.push({ target, reason });
      continue;
    }
    const assigned = await withPresent(snapshots, target, disk, present);
    if (disk.format !== format && assigned.otherLayer === undefined) {
      throw new FleeceError(
        "CONFIG_INVALID",
        `Disk ${target} of domain ${config.name} is ${format} in the configuration, but QEMU runs it as ${disk.format}`,
        { facts: { domain: config.name, target } },
      );
    }
    located.set(target, assigned);
  }
  return { located, missing };
}

/** Started with an older image of the disk, or with an overlay that is none of ours. */
async function diskOver(
  present: PresentDisk | undefined,
  disks: readonly LocatedDisk[],
): Promise<LocatedDisk | undefined> {
  if (present === undefined) return undefined;
  for (const disk of disks) if (await isOver(present, disk)) return disk;
  return undefined;
}

async function isOver({ knownFiles }: PresentDisk, { layers }: LocatedDisk): Promise<boolean> {
  const known = new Set(await Promise.all([...knownFiles].map(fileIdentity)));
  const own = await Promise.all(layers.map(({ file }) => fileIdentity(file)));
  return own.some((identity) => known.has(identity));
}

async function withPresent(
  snapshots: DomainSnapshots,
  target: string,
  disk: LocatedDisk,
  present: PresentDisk | undefined,
): Promise<AssignedDisk> {
  // Without any image that the snapshots know it is another disk.
  if (present === undefined || !(await isOver(present, disk))) return disk;
  const { file: found } = disk;
  const { file: expected } = present;
  if ((await fileIdentity(found)) === (await fileIdentity(expected))) return { ...disk, present };
  const otherLayer = { expected, found, frozen: isFrozen(snapshots, target, found) };
  return { ...disk, present, otherLayer };
}

/** Device and inode, so that links and relative names do not matter; the path itself where it cannot be looked at. */
export async function fileIdentity(file: string): Promise<string> {
  try {
    const { dev, ino } = await stat(file, { bigint: true });
    return `${dev.toString()}:${ino.toString()}`;
  } catch {
    return file;
  }
}
