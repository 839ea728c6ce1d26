import type { KnownFile, LayerFile, LayerMerge } from "../model/layer-plan.js";
import type { UndoLog } from "./block-driver.js";

/** Finds out how the layers of a domain's disks can be reached now. Fails with DOMAIN_UNREACHABLE when it runs and does not answer. */
export interface LayerMergers {
  open(domain: string, signal?: AbortSignal): Promise<LayerMerger>;
}

/** Merges layers of a domain's disks, through its QEMU if it runs, else through a storage daemon. Errors are FleeceErrors. */
export interface LayerMerger extends AsyncDisposable {
  readonly mode: "running" | "inactive";
  /** These files and all below them, as far as they are files and there. Reads only. */
  look(files: readonly KnownFile[], signal?: AbortSignal): Promise<readonly LayerFile[]>;
  /** Fails with DOMAIN_BUSY or FOREIGN_FILTER when something else works on the disks. Reads only. */
  checkIdle(signal?: AbortSignal): Promise<void>;
  /** Whether the running domain writes to the file; false for an inactive one. */
  isWritten(file: string): Promise<boolean>;
  /** Of a merge that is done: what the running domain still holds open of the file that nobody uses any more. Idempotent. */
  release(merge: LayerMerge): Promise<void>;
  /**
   * One merge. Idempotent as long as `upper` is there. After a failure, cancellation or death all files above show what they
   * did, but `lower` may have lost its own content to a commit. Fails with NO_SPACE, DISK_IN_USE when another program has one
   * of the files as its base, CHECKPOINT_BUSY or QEMU_FAILED.
   */
  merge(merge: LayerMerge, options: MergeOptions): Promise<void>;
}

export interface MergeOptions {
  /** Of the job, and the daemon if there is one: eight characters. */
  readonly id: string;
  readonly undo: UndoLog;
  /** Awaited before the running domain may begin to write to `lower`. */
  readonly onBrink: () => Promise<void>;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}
