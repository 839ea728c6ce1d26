import type { DiskLayers } from "../model/domain-snapshot.js";
import type { CreationPlan, DomainFacts } from "../model/domain-snapshot-plan.js";
import type { QuiesceOutcome } from "../model/quiesce.js";
import type { UndoLog } from "./block-driver.js";

/**
 * Takes external snapshots of one domain: through its QEMU, or of the image files of an inactive one. One object serves one
 * operation. Errors are as those of a BlockDriver.
 */
export interface SnapshotTaker extends AsyncDisposable {
  readonly mode: "running" | "inactive";

  /** Reads only. `layers` tell where disks are whose files the configuration does not name. */
  look(layers: readonly DiskLayers[], signal?: AbortSignal): Promise<DomainFacts>;

  /** The files that the plan's disks are in now, by target; left out if the domain does not have the disk any more. Reads only. */
  activeFiles(plan: CreationPlan, signal?: AbortSignal): Promise<ReadonlyMap<string, string>>;

  /**
   * Makes the overlays, and gives a running QEMU their nodes; the guest does not notice. `look` must have come before. Fails
   * with ALREADY_EXISTS if a file is there by now. What it makes is in `undo`.
   */
  addOverlays(plan: CreationPlan, undo: UndoLog, signal?: AbortSignal): Promise<void>;

  /**
   * The moment: saves the memory if that is planned, and puts the overlays on the disks, with the guest stopped as
   * shortly as possible. On every path the guest is afterwards as it was, or `undo` and a guard know how to make it so. Before
   * the disks change, `beforeDisks` is awaited; if this rejects before that, the disks are as they were. Fails with
   * MEMORY_SAVE_FAILED, NO_SPACE, QUIESCE_FAILED, or DISK_CHANGED if an inactive domain was started.
   */
  take(plan: CreationPlan, options: TakeOptions): Promise<TakenMoment>;

  /** Idempotent. */
  close(): Promise<void>;
}

export interface TakeOptions {
  readonly undo: UndoLog;
  /** LVM's part of the plan. Awaited once, when nobody writes to its disks and the memory is complete, before `beforeDisks`. */
  readonly takeVolumes: () => Promise<void>;
  readonly beforeDisks: (moment: MomentSoFar) => Promise<void>;
  readonly onMemory: (savedBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/** What a later process needs to finish the work, if the disks turn out to have changed. */
export interface MomentSoFar {
  readonly timeMs: number;
  /** Of the memory file, which is complete. */
  readonly memoryBytes?: number;
}

export interface TakenMoment extends MomentSoFar {
  /** For how long the guest did not run; 0 if it was not stopped, or did not run before. */
  readonly pausedMs: number;
  /** Set if the plan asked for it. */
  readonly quiesce?: QuiesceOutcome;
}

export interface SnapshotTakers {
  /** Fails with DOMAIN_UNREACHABLE if the domain can be reached in no way. */
  open(domain: string, signal?: AbortSignal): Promise<SnapshotTaker>;
}
