import type { SnapshotNodes, SnapshotPlan } from "../../model/snapshot-plan.js";
import type { QmpSession } from "../../qmp/index.js";
import { FleeceError, isFleeceError } from "../../shared/errors.js";
import { formatBytes } from "../../shared/units.js";
import { NbdReaderFactory } from "../nbd-io.js";
import { hasReachedLimit } from "./scratch.js";

/**
 * A copy-before-write filter that has lost content says so to nobody who asks, but from then on every read of its frozen
 * view fails. The view of each disk that is offered is exported too, so that such a read can be tried.
 */

const SECTOR_BYTES = 512;

/** Of the export, and its id. */
export function probeName({ access }: SnapshotNodes): string {
  return `${access}-probe`;
}

/** Needs a running NBD server. Idempotent. A writable one takes TRIM, by which a reader gives content up; no writes. */
export async function addProbe(
  qmp: QmpSession,
  nodes: SnapshotNodes,
  { writable }: { writable: boolean },
): Promise<void> {
  const id = probeName(nodes);
  const exports = await qmp.execute("query-block-exports");
  if (exports.some((listed) => listed.id === id)) return;
  await qmp.execute("block-export-add", { type: "nbd", id, "node-name": nodes.access, name: id, writable });
}

/** Fails with SNAPSHOT_BROKEN if content of one of the disks was lost. A disk that has no probe was not read. */
export async function tryProbes(
  qmp: QmpSession,
  plan: SnapshotPlan,
  socketPath: string,
  signal?: AbortSignal,
): Promise<void> {
  const exports = new Set((await qmp.execute("query-block-exports")).map(({ id }) => id));
  for (const { target, sizeBytes, nodes } of plan.disks) {
    const exportName = probeName(nodes);
    if (!exports.has(exportName)) continue;
    const address = { target, exportName, socketPath, sizeBytes };
    await using reader = await new NbdReaderFactory().open(address, signal);
    try {
      await reader.read(0, SECTOR_BYTES, signal);
    } catch (error) {
      throw (await brokenByLimit(qmp, plan, nodes, error)) ?? error;
    }
  }
}

/** The same loss with its cause, if that is the limit of the scratch image. */
export async function brokenByLimit(
  qmp: QmpSession,
  { scratchLimitBytes, disks }: SnapshotPlan,
  nodes: SnapshotNodes,
  cause: unknown,
): Promise<FleeceError | undefined> {
  if (scratchLimitBytes === undefined || !isFleeceError(cause, "SNAPSHOT_BROKEN")) return undefined;
  if (!(await hasReachedLimit(qmp, nodes, scratchLimitBytes))) return undefined;
  const target = disks.find((disk) => disk.nodes === nodes)?.target ?? "";
  return new FleeceError(
    "SNAPSHOT_BROKEN",
    `The frozen content of disk ${target} is gone: its scratch space reached the limit of ${formatBytes(scratchLimitBytes)}`,
    { cause, facts: { target } },
  );
}
