import { chown } from "node:fs/promises";
import path from "node:path";
import type { PlannedLayer } from "../../model/domain-snapshot-plan.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { NewOverlay } from "../../ports/snapshot-files.js";
import type { QmpSession } from "../../qmp/index.js";
import { linkFile, syncDirectory, syncFile } from "../durable-files.js";
import { changeImageBitmap, createImage } from "../qemu-tools.js";
import type { SeenDisk } from "./machine-look.js";

/**
 * Makes an overlay, durable and complete before anybody uses it. Bitmaps that record are made here and not in QEMU because one
 * that QEMU makes is just absent after a crash of it, while the one below looks sound: an incremental backup would miss what was
 * written. One that is here from the start is then known to be inconsistent.
 */
export async function createOverlay(
  { path: file, base, bitmaps = [], owner }: NewOverlay,
  signal?: AbortSignal,
): Promise<void> {
  const { sizeBytes } = base;
  const backing = { backing: base.file, backingFormat: base.format };
  await createImage({ path: file, format: "qcow2", sizeBytes, ...backing, signal });
  for (const { bitmap, granularityBytes } of bitmaps) {
    const step = { action: "add", bitmap, persistent: true, granularityBytes } as const;
    await changeImageBitmap(file, step, { signal });
  }
  if (owner !== undefined && owner.uid !== process.geteuid?.()) await chown(file, owner.uid, owner.gid);
  await syncFile(file);
  await syncDirectory(path.dirname(file));
}

/** The overlay of one disk of a creation, under the name that users gave it. Bitmaps that record go on in it under the same name. */
export async function createPlannedOverlay(
  layer: PlannedLayer,
  undo: UndoLog,
  signal?: AbortSignal,
): Promise<void> {
  const { overlay, carried } = layer;
  await undo.register({ kind: "linked-file", path: overlay.firstName, link: overlay.path });
  await createOverlay({ path: overlay.firstName, base: layer, bitmaps: carried }, signal);
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
