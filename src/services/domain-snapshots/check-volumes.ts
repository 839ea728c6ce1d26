import type { DomainSnapshot, SnapshotDisk } from "../../model/domain-snapshot.js";
import { checkVolume, type VolumeReport } from "../../model/volumes.js";
import type { Volumes } from "../../ports/volumes.js";
import { errorMessage } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";

/** Fails with DAMAGED if a snapshot by LVM has lost its content. LVM is asked only if there is one. */
export async function checkVolumes(
  volumes: Volumes,
  disks: readonly SnapshotDisk[],
  signal?: AbortSignal,
): Promise<void> {
  const known = volumesOf(disks);
  if (known.length === 0) return;
  const reports = await volumes.report(known, signal);
  for (const [index, volume] of known.entries()) checkVolume(volume, reports[index] ?? { state: "missing" });
}

/** What has become of the snapshots by LVM, by their devices. */
export async function reportVolumes(
  { volumes, log }: ServiceContext,
  snapshots: readonly DomainSnapshot[],
): Promise<ReadonlyMap<string, VolumeReport>> {
  const disks = snapshots.flatMap((snapshot) => snapshot.disks).filter(({ volume }) => volume !== undefined);
  if (disks.length === 0) return new Map();
  try {
    const reports = await volumes.report(volumesOf(disks));
    return new Map(disks.map(({ file }, index) => [file, reports[index] ?? { state: "missing" }]));
  } catch (error) {
    // A list of snapshots is better than none.
    log.warn({}, errorMessage(error));
    return new Map(disks.map(({ file }) => [file, { state: "unknown" }]));
  }
}

function volumesOf(disks: readonly SnapshotDisk[]) {
  return disks.flatMap(({ volume }) => (volume === undefined ? [] : [volume]));
}
