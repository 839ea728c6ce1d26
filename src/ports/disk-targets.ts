import type { BlockWriter } from "./block-io.js";

/** Where one disk of a restore goes. */
export type TargetKind = "file" | "block-device" | "nbd";

export interface ExistingTarget {
  /** The disk's name. */
  readonly target: string;
  readonly kind: Exclude<TargetKind, "file">;
  /** The path of a block device, or an NBD URI. */
  readonly to: string;
}

/** Places that exist before a restore and are written over by it. */
export interface DiskTargets {
  /**
   * An NBD URI, a path that leads to a block device, or else a file to be made. Changes nothing. Fails with INVALID_ARGUMENT
   * for a path that is not absolute, PATH_NOT_FOUND for a device that does not exist.
   */
  kindOf(to: string): Promise<TargetKind>;
  /**
   * Opens it for writing at least `sizeBytes`; what is beyond them stays as it is. A device is held alone until the writer is
   * closed. Fails, before anything is written, with INVALID_ARGUMENT if it is too small or read-only, DISK_IN_USE, NBD_FAILED.
   */
  open(place: ExistingTarget, sizeBytes: number, signal?: AbortSignal): Promise<BlockWriter>;
}
