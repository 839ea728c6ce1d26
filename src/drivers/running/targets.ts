import { stat } from "node:fs/promises";
import type { DomainConfig } from "../../model/config.js";
import { isName } from "../../model/names.js";
import type { MissingDisk } from "../../model/snapshot-plan.js";
import { FleeceError } from "../../shared/errors.js";
import type { LocatedDisk } from "./block-graph.js";

export interface AssignedDisks {
  readonly located: ReadonlyMap<string, LocatedDisk>;
  /** What the configuration lists and nothing is located for. */
  readonly missing: readonly MissingDisk[];
}

/**
 * Which located disk is which target: by the image file where the configuration lists disks (device names change, the
 * file does not), else by the device's own id. A disk that is missing is in nobody's way who does not ask for it: what was
 * left on the others can be put in order.
 */
export async function assignTargets(
  config: DomainConfig,
  disks: readonly LocatedDisk[],
): Promise<AssignedDisks> {
  if (config.disks === undefined) {
    const named = disks.filter(({ id }) => isName("disk", id));
    return { located: new Map(named.map((disk) => [disk.id, disk])), missing: [] };
  }
  const identities = await Promise.all(disks.map(({ file }) => fileIdentity(file)));
  const located = new Map<string, LocatedDisk>();
  const missing: MissingDisk[] = [];
  for (const wanted of config.disks) {
    const identity = await fileIdentity(wanted.file);
    const disk = disks.find((_, index) => identities[index] === identity);
    if (disk === undefined) {
      const others = disks.map(({ file }) => file).join(", ") || "none";
      const reason = `it is ${wanted.file} in the configuration, but the running QEMU has no writable disk with that file (it has ${others})`;
      missing.push({ target: wanted.target, reason });
      continue;
    }
    if (disk.format !== wanted.format) {
      throw new FleeceError(
        "CONFIG_INVALID",
        `Disk ${wanted.target} of domain ${config.name} is ${wanted.format} in the configuration, but QEMU runs it as ${disk.format}`,
        { facts: { domain: config.name, target: wanted.target } },
      );
    }
    located.set(wanted.target, disk);
  }
  return { located, missing };
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
