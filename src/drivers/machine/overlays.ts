import { open } from "node:fs/promises";
import path from "node:path";
import type { PlannedLayer } from "../../model/domain-snapshot-plan.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { QmpSession } from "../../qmp/index.js";
import { fileError } from "../../shared/errors.js";
import { linkFile, syncDirectory } from "../durable-files.js";
import { changeImageBitmap, createImage } from "../qemu-tools.js";
import type { SeenDisk } from "./machine-look.js";

/**
 * Makes the overlay of one disk, durable and complete before anybody uses it. Bitmaps that record go on in it under the same name;
 * they are made here and not in QEMU because one that QEMU makes is just absent after a crash of it, while the one below looks
 * sound: an incremental backup would miss what was written. One that is here from the start is then known to be inconsistent.
 */
export async function createOverlay(layer: PlannedLayer, undo: UndoLog, signal?: AbortSignal): Promise<void> {
  const { overlay, file, format, sizeBytes, carried } = layer;
  await undo.register({ kind: "linked-file", path: overlay.firstName, link: overlay.path });
  const options = { backing: file, backingFormat: format, signal };
  await createImage({ path: overlay.firstName, format: "qcow2", sizeBytes, ...options });
  for (const { bitmap, granularityBytes } of carried) {
    const step = { action: "add", bitmap, persistent: true, granularityBytes } as const;
    await changeImageBitmap(overlay.firstName, step, { signal });
  }
  await syncFile(overlay.firstName);
  await linkFile(overlay.firstName, overlay.path);
  await syncDirectory(path.dirname(overlay.path));
}

/** Opened without its backing file: that is the disk, which the transaction puts below it. */
export async function addOverlayNode(
  qmp: QmpSession,
  { node, overlay }: PlannedLayer,
  { cache, detectZeroes }: Pick<SeenDisk, "cache" | "detectZeroes">,
  undo: UndoLog,
): Promise<void> {
  await undo.register({ kind: "vm-node", node });
  const common = { discard: "unmap", cache } as const;
  await qmp.execute("blockdev-add", {
    ...common,
    driver: "qcow2",
    "node-name": node,
    backing: null,
    "detect-zeroes": detectZeroes,
    file: { ...common, driver: "file", filename: overlay.path },
  });
}

export async function syncFile(file: string): Promise<void> {
  try {
    const handle = await open(file, "r");
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw fileError(error, "make durable", file);
  }
}
