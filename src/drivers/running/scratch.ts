import { truncate } from "node:fs/promises";
import type { PlannedDisk, SnapshotNodes } from "../../model/snapshot-plan.js";
import type { QmpSession } from "../../qmp/index.js";
import { KIB } from "../../shared/units.js";
import { linkFile } from "../durable-files.js";
import { createImage } from "../qemu-tools.js";

/** The scratch image of a disk: a qcow2 over the disk, in a file that can be given a fixed size. */

export interface ScratchOptions {
  readonly diskNode: string;
  readonly limitBytes: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * What the image does not hold has not been overwritten: it is read from the disk, its backing node. With a limit, a raw
 * node of that size lies under it: a write beyond its end fails in QEMU with ENOSPC, which breaks the snapshot, whether or
 * not a process of ours is there to see it. QEMU asks for a file of at least that size: it has it as a hole. The caller
 * registers its undo (`frozenEntries`).
 */
export async function addScratch(
  qmp: QmpSession,
  disk: PlannedDisk,
  { diskNode, limitBytes, signal }: ScratchOptions,
): Promise<void> {
  const { scratchPath, scratchFile, sizeBytes, nodes } = disk;
  await createImage({ path: scratchPath, format: "qcow2", sizeBytes, signal });
  if (scratchFile !== undefined) await linkFile(scratchPath, scratchFile);
  const file = { driver: "file", filename: scratchPath, discard: "unmap" } as const;
  if (limitBytes !== undefined) await truncate(scratchPath, fixedSize(limitBytes));
  await qmp.execute("blockdev-add", {
    driver: "qcow2",
    "node-name": nodes.scratch,
    discard: "unmap",
    file:
      limitBytes === undefined
        ? file
        : { driver: "raw", size: fixedSize(limitBytes), discard: "unmap", file },
    backing: diskNode,
  });
}

/** QEMU counts in sectors. */
function fixedSize(limitBytes: number): number {
  return limitBytes - (limitBytes % 512);
}

/** Whether a write was refused for reaching beyond the limit: QEMU remembers how far the furthest attempt went. */
export async function hasReachedLimit(
  qmp: QmpSession,
  { scratch }: SnapshotNodes,
  limitBytes: number,
): Promise<boolean> {
  const nodes = await qmp.execute("query-blockstats", { "query-nodes": true });
  const file = nodes.find((node) => node["node-name"] === scratch)?.parent;
  return (file?.stats.wr_highest_offset ?? 0) > fixedSize(limitBytes);
}

/** Of a disk with 64 KiB clusters, for each of which the scratch image notes in 8 bytes that it was given up. */
const BYTES_PER_NOTE_BYTE = 8 * KIB;

/** Giving up content costs the notes: at most a quarter of what may be taken. */
export function isWorthReleasing({ sizeBytes }: PlannedDisk, limitBytes: number | undefined): boolean {
  return limitBytes === undefined || sizeBytes / BYTES_PER_NOTE_BYTE <= limitBytes / 4;
}
