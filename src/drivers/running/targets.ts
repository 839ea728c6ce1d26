import { stat } from "node:fs/promises";
import type { DomainConfig } from "../../model/config.js";
import { isName } from "../../model/names.js";
import { FleeceError } from "../../shared/errors.js";
import type { LocatedDisk } from "./block-graph.js";

/**
 * Which located disk is which target: by the image file where the configuration lists disks (device names change, the
 * file does not), else by the device's own id.
 */
export async function assignTargets(
  config: DomainConfig,
  disks: readonly LocatedDisk[],
): Promise<ReadonlyMap<string, LocatedDisk>> {
  if (config.disks === undefined) {
    return new Map(disks.filter(({ id }) => isName("disk", id)).map((disk) => [disk.id, disk]));
  }
  const identities = await Promise.all(disks.map(({ file }) => fileIdentity(file)));
  const result = new Map<string, LocatedDisk>();
  for (const wanted of config.disks) {
    const identity = await fileIdentity(wanted.file);
    const disk = disks.find((_, index) => identities[index] === identity);
    if (disk === undefined) {
      throw new FleeceError(
        "DISK_NOT_FOUND",
        `Disk ${wanted.target} of domain ${config.name} is ${wanted.file} in the configuration, but the running QEMU has no writable disk with that file (it has ${disks.map(({ file }) => file).join(", ") || "none"})`,
        { facts: { domain: config.name, target: wanted.target, file: wanted.file } },
      );
    }
    if (disk.format !== wanted.format) {
      throw new FleeceError(
        "CONFIG_INVALID",
        `Disk ${wanted.target} of domain ${config.name} is ${wanted.format} in the configuration, but QEMU runs it as ${disk.format}`,
        { facts: { domain: config.name, target: wanted.target } },
      );
    }
    result.set(wanted.target, disk);
  }
  return result;
}

/** Device and inode, so that links and relative names do not matter; the path itself where it cannot be looked at. */
async function fileIdentity(file: string): Promise<string> {
  try {
    const { dev, ino } = await stat(file, { bigint: true });
    return `${dev.toString()}:${ino.toString()}`;
  } catch {
    return file;
  }
}
