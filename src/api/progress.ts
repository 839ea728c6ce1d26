import type { Level } from "./messages.js";

/** What a long call tells on its way. */
export type Progress =
  /** A backup's level is decided, and its disks are known. */
  | {
      readonly step: "started";
      readonly level: Level;
      readonly reason: string;
      readonly disks: readonly { readonly target: string; readonly sizeBytes: number }[];
    }
  /** What the guest's writes have cost in scratch space so far; told about once a second. */
  | { readonly step: "scratch"; readonly usedBytes: number; readonly limitBytes?: number }
  /** How far into a disk the call has come. */
  | {
      readonly step: "disk";
      readonly target: string;
      readonly positionBytes: number;
      /** Left out where it was said at the start. */
      readonly sizeBytes?: number;
      /** Read from the domain and stored in the repository; only for a backup that is being taken. */
      readonly readBytes?: number;
      readonly storedBytes?: number;
    };

export interface CallOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}
