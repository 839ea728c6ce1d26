import type { BitmapStep } from "../../model/checkpoint.js";
import type { TransactionAction } from "../../qmp/index.js";

/** The steps on one disk's bitmaps as actions of a QMP transaction, which is all or nothing over all disks. */
export function bitmapTransaction(node: string, steps: readonly BitmapStep[]): TransactionAction[] {
  return steps.map((step) => {
    switch (step.action) {
      case "add":
        return {
          type: "block-dirty-bitmap-add",
          data: { node, name: step.bitmap, persistent: step.persistent, granularity: step.granularityBytes },
        };
      case "merge":
        return {
          type: "block-dirty-bitmap-merge",
          data: { node, target: step.bitmap, bitmaps: [step.source] },
        };
      case "enable":
        return { type: "block-dirty-bitmap-enable", data: { node, name: step.bitmap } };
      case "disable":
        return { type: "block-dirty-bitmap-disable", data: { node, name: step.bitmap } };
      case "remove":
        return { type: "block-dirty-bitmap-remove", data: { node, name: step.bitmap } };
    }
  });
}
