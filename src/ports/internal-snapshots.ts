import type { DomainSnapshots, SnapshotMachine } from "../model/domain-snapshot.js";
import type { DiskFormat } from "../model/snapshot-plan.js";
import type { UndoLog } from "./block-driver.js";

/** Finds out how the internal snapshots of a domain's images can be reached now. Fails with DOMAIN_UNREACHABLE. */
export interface InternalSnapshots {
  /** The domain's document tells in which file each disk is now. */
  open(all: DomainSnapshots, signal?: AbortSignal): Promise<InternalSnapshotter>;
}

/** An image of the domain, writable and not removable. */
export interface InternalDisk {
  readonly target: string;
  readonly file: string;
  readonly format: DiskFormat;
  readonly sizeBytes: number;
  /** It is an overlay. */
  readonly hasBacking: boolean;
  /** For what the image grows by; undefined where nobody can tell, of a device for example. */
  readonly freeBytes?: number;
  readonly bitmaps: readonly string[];
  readonly snapshots: readonly { readonly name: string; readonly memoryBytes: number }[];
}

/** Snapshots inside the qcow2 images of all of a domain's disks. Errors are FleeceErrors. */
export interface InternalSnapshotter extends AsyncDisposable {
  readonly state: "running" | "paused" | "inactive";
  /** Fails with DOMAIN_BUSY or FOREIGN_FILTER. Reads only. */
  checkIdle(): Promise<void>;
  /** Reads only. */
  disks(signal?: AbortSignal): Promise<readonly InternalDisk[]>;
  /** What decides whether memory fits; undefined if the domain is inactive. Reads only. */
  machine(): Promise<SnapshotMachine | undefined>;
  /**
   * On all disks, with memory into the first one if asked and the domain is not inactive. The guest is then as before, also
   * after a failure; some images may have the snapshot after one, if the domain is inactive. Fails with MEMORY_SAVE_FAILED, NO_SPACE,
   * DISK_IN_USE or QEMU_FAILED.
   */
  save(name: string, options: InternalOptions & { readonly memory: boolean }): Promise<void>;
  /**
   * Puts all disks back, and the memory of a domain that is not inactive. All bitmaps go first. The guest is stopped then, also
   * after a failure. What fails before `beforeReplacing` has replaced nothing; neither has QEMU_FAILED of a domain that is not
   * inactive. After anything else (MEMORY_LOAD_FAILED, DOMAIN_UNREACHABLE) disks and memory may be of several moments: it must not run.
   */
  load(
    name: string,
    options: InternalOptions & { readonly beforeReplacing?: () => Promise<void> },
  ): Promise<void>;
  /** From all disks that have it. Idempotent. */
  remove(name: string, options: InternalOptions): Promise<void>;
  /** Idempotent. */
  resume(): Promise<void>;
}

export interface InternalOptions {
  /** Of the jobs. */
  readonly id: string;
  readonly undo: UndoLog;
  readonly signal?: AbortSignal | undefined;
}
