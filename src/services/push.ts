import type { DiskMode } from "../model/backup.js";
import type { PlannedPush, SnapshotPlan } from "../model/snapshot-plan.js";
import type { BlockDriver, UndoLog } from "../ports/block-driver.js";
import type { BackupDraft, DiskSink } from "../ports/repository.js";
import type { ServiceContext } from "./context.js";
import type { BackupPace } from "./pace.js";
import { pull } from "./pull.js";

export interface PushedDisk {
  readonly driver: BlockDriver;
  readonly plan: SnapshotPlan;
  readonly planned: PlannedPush;
  readonly mode: DiskMode;
  readonly draft: BackupDraft;
  readonly sink: DiskSink;
  readonly undo: UndoLog;
  readonly signal: AbortSignal;
  /** As of a pull. The copy is the first half of the way through the disk, reading it back the second. */
  readonly onProgress: (positionBytes: number, readBytes: number) => void;
  /** As of `BlockDriver.push`. */
  readonly onCopied: () => void;
  /** Of the copy. Reading it back costs the guest nothing, and is not limited. */
  readonly pace: BackupPace;
}

/**
 * Has QEMU write a disk into the draft, and reads it back from there, for its digests. The guest pays for the copy alone: what
 * is read back comes from the repository. Resolves with the bytes of data.
 */
export async function pushDisk(context: ServiceContext, disk: PushedDisk): Promise<number> {
  const { driver, plan, planned, mode, draft, sink, undo, signal, onProgress, onCopied, pace } = disk;
  const { target, into } = planned;
  const half = into.sizeBytes / 2;
  context.log.info({ operation: plan.id, domain: plan.domain, target }, "Copying a frozen disk");
  let read = 0;
  try {
    {
      using copying = pace.copying({ writes: true });
      await driver.push(plan, planned, undo, {
        signal,
        pace: copying,
        abandonTarget: () => draft.abandon(),
        onCopied,
        onProgress: (copiedBytes, totalBytes) => {
          read = copiedBytes;
          onProgress(Math.floor(totalBytes === 0 ? 0 : (half * copiedBytes) / totalBytes), read);
        },
      });
    }
    await using reader = await context.readers.open(into, signal);
    return await pull({
      ...{ reader, sink, mode, signal },
      onProgress: (positionBytes) => onProgress(Math.floor(half + positionBytes / 2), read),
    });
  } catch (error) {
    // The first cause wins over its consequences: once the signal has fired, the draft takes nothing any more.
    signal.throwIfAborted();
    throw await draft.explain(error);
  }
}
