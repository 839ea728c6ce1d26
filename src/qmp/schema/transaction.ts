import type { BitmapAdd, BitmapMerge, BitmapRef } from "./bitmaps.js";

/** All actions take effect, or none does. */
export type TransactionAction =
  | { type: "block-dirty-bitmap-add"; data: BitmapAdd }
  | {
      type:
        | "block-dirty-bitmap-remove"
        | "block-dirty-bitmap-clear"
        | "block-dirty-bitmap-enable"
        | "block-dirty-bitmap-disable";
      data: BitmapRef;
    }
  | { type: "block-dirty-bitmap-merge"; data: BitmapMerge }
  | { type: "blockdev-snapshot"; data: BlockdevSnapshot }
  | { type: "blockdev-snapshot-internal-sync"; data: { device: string; name: string } }
  /** Fails always; of use to try the others. */
  | { type: "abort"; data: Readonly<Record<string, never>> };

export interface BlockdevSnapshot {
  node: string;
  /** A node opened with `backing: null`. */
  overlay: string;
}
