import type { ExportAddress } from "../../model/snapshot-plan.js";
import type { PushOptions, UndoLog } from "../../ports/block-driver.js";
import { copyEntries, type DiskToCopy, type FrozenCopies } from "./frozen-copies.js";

/** Frozen disks that QEMU copies straight to where their content is to stay: see `BlockDriver.push`. */
export class PushedDisks {
  readonly #copies: FrozenCopies;

  constructor(copies: FrozenCopies) {
    this.#copies = copies;
  }

  async push(
    each: DiskToCopy,
    into: ExportAddress,
    undo: UndoLog,
    { signal, pace, abandonTarget, onProgress, onCopied }: PushOptions,
  ): Promise<void> {
    const { disk, planned } = each;
    await undo.register(...copyEntries(each));
    await this.#copies.connect(disk.nodes, into, signal);
    const options = {
      signal,
      pace,
      abandonTarget,
      onProgress: (job: { "current-progress": number; "total-progress": number }) =>
        onProgress?.(job["current-progress"], job["total-progress"]),
    };
    if (planned.changes === undefined) await this.#copies.copyAll(each, options);
    else await this.#copies.copyChanges(each, planned.changes, options);
    // Before the filter goes: nobody may take its absence for a loss.
    onCopied?.();
    await this.#copies.letGo(each, undo);
  }
}
