import type { ExportAddress, PlannedExport } from "../model/snapshot-plan.js";
import type { QmpSession } from "../qmp/index.js";
import { CHECKPOINT_GRANULARITY } from "../model/checkpoint.js";
import { FleeceError } from "../shared/errors.js";

/** Offers nodes of any QEMU process with a QMP monitor and a running NBD server; the same for VMs and storage daemons. */

export interface NodeExport {
  readonly planned: PlannedExport;
  /** The node to offer. */
  readonly node: string;
  /** The nodes that hold the bitmaps to merge; each of those is in at least one of them. */
  readonly bitmapNodes: readonly string[];
  readonly sizeBytes: number;
}

/**
 * An export's map of changes must stand still and would keep its bitmaps busy, so that nothing could be done with the
 * checkpoints meanwhile: a merged copy on the node that is offered serves instead, under the name of the checkpoint asked about.
 */
export async function addExport(
  qmp: QmpSession,
  { planned, node, bitmapNodes, sizeBytes }: NodeExport,
  socketPath: string,
): Promise<ExportAddress> {
  const { exportName, changes, target } = planned;
  const merged = changes === undefined ? undefined : mergedBitmapName(changes.since);
  if (changes !== undefined && merged !== undefined) {
    // One of an export that has ended may be left on a node of ours; it would not know the bitmaps of today.
    await removeBitmap(qmp, node, merged);
    await qmp.execute("block-dirty-bitmap-add", {
      node,
      name: merged,
      granularity: CHECKPOINT_GRANULARITY,
      disabled: true,
    });
    await qmp.execute("block-dirty-bitmap-merge", {
      node,
      target: merged,
      bitmaps: await bitmapsOn(qmp, bitmapNodes, changes.bitmaps),
    });
  }
  await qmp.execute("block-export-add", {
    type: "nbd",
    id: exportId(node),
    "node-name": node,
    name: exportName,
    ...(merged === undefined ? {} : { bitmaps: [merged] }),
  });
  return {
    target,
    exportName,
    socketPath,
    sizeBytes,
    ...(merged === undefined ? {} : { changesContext: `qemu:dirty-bitmap:${merged}` }),
  };
}

/** Readers see it in the name of the metadata context. */
export function mergedBitmapName(since: string): string {
  return `since-${since}`;
}

/** Where bitmaps of these names are: the images of a disk may each have one. Fails with QEMU_FAILED if one is nowhere. */
export async function bitmapsOn(
  qmp: QmpSession,
  nodes: readonly string[],
  names: readonly string[],
): Promise<{ node: string; name: string }[]> {
  const all = await qmp.execute("query-named-block-nodes", { flat: true });
  return names.flatMap((name) => {
    const found = nodes.filter((node) =>
      all
        .find((listed) => listed["node-name"] === node)
        ?.["dirty-bitmaps"]?.some((bitmap) => bitmap.name === name),
    );
    if (found.length > 0) return found.map((node) => ({ node, name }));
    throw new FleeceError("QEMU_FAILED", `Expected bitmap ${name} on ${nodes.join(" or ")}, there is none`);
  });
}

/** Removes a bitmap unless it does not exist. */
export async function removeBitmap(qmp: QmpSession, node: string, bitmap: string): Promise<void> {
  const nodes = await qmp.execute("query-named-block-nodes", { flat: true });
  const bitmaps = nodes.find((listed) => listed["node-name"] === node)?.["dirty-bitmaps"] ?? [];
  if (bitmaps.some(({ name }) => name === bitmap)) {
    await qmp.execute("block-dirty-bitmap-remove", { node, name: bitmap });
  }
}

/** Names may hold what QEMU does not allow in an id (`:`, `@`, `+`, `=`), and a frozen disk has one export. */
export function exportId(node: string): string {
  return `${node}-export`;
}

/** Ends an export whether or not a client uses it, and waits until it is gone. Idempotent. */
export async function removeExport(qmp: QmpSession, id: string): Promise<void> {
  const exists = async (): Promise<boolean> =>
    (await qmp.execute("query-block-exports")).some((listed) => listed.id === id);
  if (!(await exists())) return;
  const enough = new AbortController();
  const gone = qmp.waitForEvent(
    (event) => event.event === "BLOCK_EXPORT_DELETED" && event.data["id"] === id,
    {
      timeoutMs: EXPORT_END_TIMEOUT_MS,
      signal: enough.signal,
    },
  );
  gone.catch(() => undefined);
  try {
    // Mode `safe` fails while a client is connected; nobody who still reads may keep the disk's filter in place.
    await qmp.execute("block-export-del", { id, mode: "hard" });
    if (await exists()) await gone;
  } finally {
    enough.abort();
  }
}

/** Requests in flight end first; each is bounded by the disk below. */
const EXPORT_END_TIMEOUT_MS = 30_000;
