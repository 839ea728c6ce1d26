import type { PlannedDisk, SnapshotNodes } from "../../model/snapshot-plan.js";
import type { QmpSession } from "../../qmp/index.js";
import { NbdReaderFactory } from "../nbd-io.js";

/**
 * A copy-before-write filter that has lost content says so to nobody who asks, but from then on every read of its frozen
 * view fails. The view of each disk that is offered is exported too, so that such a read can be tried.
 */

const SECTOR_BYTES = 512;

/** Of the export, and its id. */
export function probeName({ access }: SnapshotNodes): string {
  return `${access}-probe`;
}

/** Needs a running NBD server. Idempotent. */
export async function addProbe(qmp: QmpSession, nodes: SnapshotNodes): Promise<void> {
  const id = probeName(nodes);
  const exports = await qmp.execute("query-block-exports");
  if (exports.some((listed) => listed.id === id)) return;
  await qmp.execute("block-export-add", { type: "nbd", id, "node-name": nodes.access, name: id });
}

/** Fails with SNAPSHOT_BROKEN if content of one of the disks was lost. A disk that has no probe was not read. */
export async function tryProbes(
  qmp: QmpSession,
  disks: readonly PlannedDisk[],
  socketPath: string,
  signal?: AbortSignal,
): Promise<void> {
  const exports = new Set((await qmp.execute("query-block-exports")).map(({ id }) => id));
  for (const { target, sizeBytes, nodes } of disks) {
    const exportName = probeName(nodes);
    if (!exports.has(exportName)) continue;
    const address = { target, exportName, socketPath, sizeBytes };
    await using reader = await new NbdReaderFactory().open(address, signal);
    await reader.read(0, SECTOR_BYTES, signal);
  }
}
