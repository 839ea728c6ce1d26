import type { SnapshotVolume } from "../model/domain-snapshot.js";
import type { LogicalVolume, PlannedVolume, VolumeReport } from "../model/volumes.js";

/** Logical volumes and LVM's snapshots of them. Fails with TOOL_MISSING without LVM's programs, LVM_FAILED with its words. */
export interface Volumes {
  /** Which of these block devices are logical volumes, by path. Reads only. */
  find(paths: readonly string[], signal?: AbortSignal): Promise<ReadonlyMap<string, LogicalVolume>>;
  /** In the order of `volumes`. Reads only. */
  report(volumes: readonly SnapshotVolume[], signal?: AbortSignal): Promise<readonly VolumeReport[]>;
  /**
   * Makes a read-only snapshot with its tag, of the instant. What waits for another command of LVM is given up after some seconds. NO_SPACE,
   * and then nothing is left, if the volume group or the pool is full.
   */
  take(volume: PlannedVolume): Promise<void>;
  /** Removes a snapshot; a volume of its name without its tag is left alone. Idempotent. */
  remove(volume: SnapshotVolume): Promise<void>;
}
