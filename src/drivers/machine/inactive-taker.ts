import type { DiskConfig } from "../../model/config.js";
import type { DiskLayers } from "../../model/domain-snapshot.js";
import type { CreationPlan, DiskFacts, DomainFacts } from "../../model/domain-snapshot-plan.js";
import type { FileFingerprint } from "../../model/snapshot-plan.js";
import { sortOutBitmaps } from "../../model/checkpoint.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { Clock } from "../../ports/clock.js";
import type { SnapshotTaker, TakenMoment, TakeOptions } from "../../ports/snapshot-taker.js";
import { FleeceError } from "../../shared/errors.js";
import { fingerprint } from "../inactive/inactive-driver.js";
import { obstacleOf } from "../inactive/layers.js";
import { imageInfo } from "../qemu-tools.js";
import { layerBitmap } from "./machine-look.js";
import { createPlannedOverlay } from "./overlays.js";

/** Snapshots of a domain that does not run: an overlay for each image, in which its next start is to go on. */
export class InactiveTaker implements SnapshotTaker {
  readonly mode = "inactive";
  readonly #disks: readonly DiskConfig[];
  readonly #clock: Clock;
  #fingerprints: readonly FileFingerprint[] = [];

  constructor(disks: readonly DiskConfig[], clock: Clock) {
    this.#disks = disks;
    this.#clock = clock;
  }

  async look(layers: readonly DiskLayers[], signal?: AbortSignal): Promise<DomainFacts> {
    const present = this.#disks.map((disk): DiskConfig => {
      const layer = layers.find(({ target }) => target === disk.target);
      return layer === undefined ? disk : { ...disk, file: layer.active, format: layer.format };
    });
    this.#fingerprints = await Promise.all(present.map((disk) => fingerprint(disk)));
    const disks = await Promise.all(present.map((disk) => describe(disk, signal)));
    return {
      state: "inactive",
      runState: "inactive",
      memoryBlockers: [],
      jobs: [],
      foreignExports: [],
      disks,
    };
  }

  activeFiles(): Promise<ReadonlyMap<string, string>> {
    return Promise.resolve(new Map());
  }

  async addOverlays(plan: CreationPlan, undo: UndoLog, signal?: AbortSignal): Promise<void> {
    for (const layer of plan.disks) await createPlannedOverlay(layer, undo, signal);
  }

  /** That nobody has written to the images since they were looked at is all that there is to it. */
  async take(plan: CreationPlan, { takeVolumes, signal }: TakeOptions): Promise<TakenMoment> {
    const timeMs = this.#clock.now();
    await takeVolumes();
    const ofVolumes = (plan.volumes ?? []).map(({ target, origin: { file } }) => ({
      ...{ target, file, format: "raw" as const },
    }));
    for (const { target, file, format } of [...plan.disks, ...ofVolumes]) {
      const before = this.#fingerprints.find((each) => each.target === target);
      // A guest that runs has the image open for writing.
      await imageInfo(file, format, { signal });
      const now = await fingerprint({ target, file });
      if (before?.mtimeNs === now.mtimeNs && before.inode === now.inode) continue;
      throw new FleeceError(
        "DISK_CHANGED",
        `Disk ${target} (${file}) was changed meanwhile: the domain was probably started`,
        { facts: { target } },
      );
    }
    return { timeMs, pausedMs: 0 };
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

async function describe({ target, file, format }: DiskConfig, signal?: AbortSignal): Promise<DiskFacts> {
  const info = await imageInfo(file, format, { signal });
  const { obstacle } = obstacleOf(info);
  if (obstacle !== undefined) {
    throw new FleeceError(obstacle.code, `No snapshot of disk ${target} can be taken: ${obstacle.reason}`, {
      facts: { target },
    });
  }
  const reported = info.bitmaps.map(({ name, recording, inUse, granularityBytes }) => {
    const state = { recording, inconsistent: inUse, busy: false, persistent: true };
    return { bitmap: name, ...state, granularityBytes };
  });
  return {
    target,
    file,
    formats: [format],
    sizeBytes: info.sizeBytes,
    readOnly: false,
    removable: false,
    bitmaps: sortOutBitmaps(reported).checkpoints.map(layerBitmap),
    internalSnapshots: info.internalSnapshots.map(({ name }) => name),
  };
}
