import type { RevertJournal } from "../../model/operation.js";
import type { Logger } from "../../ports/logger.js";
import type { Machine, Machines } from "../../ports/machines.js";
import type { SnapshotFiles } from "../../ports/snapshot-files.js";
import type { Operation } from "../operation.js";

export interface FinishParts {
  readonly machines: Machines;
  readonly snapshotFiles: SnapshotFiles;
  readonly log: Logger;
}

/**
 * What is left of a revert once it is decided, also by a process that has died since: idempotent. The new QEMU runs only when the old
 * one has ended: their disks are two, but their network addresses are one. The document is written.
 */
export async function finishRevert(
  parts: FinishParts,
  operation: Operation,
  subject: RevertJournal,
  started?: Machine,
): Promise<void> {
  const { machines, snapshotFiles } = parts;
  const { domain } = operation.record;
  if (subject.old !== undefined) await machines.end(subject.old, subject.moved);
  if (subject.arguments !== undefined) {
    const machine = started ?? (await machines.find(domain, subject.arguments));
    if (machine === undefined) {
      parts.log.warn(
        { domain, snapshot: subject.name },
        "The QEMU that a revert had started has ended; the domain is inactive, with its disks reverted",
      );
    } else {
      try {
        if (subject.to !== "running") await machine.activateImages();
        else if ((await machine.status()) === "paused") await machine.continue();
      } finally {
        await machine.close();
      }
    }
  }
  for (const file of subject.obsolete) await snapshotFiles.remove(file);
  await operation.end();
}
