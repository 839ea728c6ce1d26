import type { PlannedDisk } from "../../model/snapshot-plan.js";
import type { HostEntry, QemuEntry } from "../../model/undo.js";
import type { Clock } from "../../ports/clock.js";
import type { QmpSession } from "../../qmp/index.js";
import { isQmpError } from "../../qmp/index.js";
import { thawLeftover } from "../guest-agent/guest-freezer.js";
import { removeBitmap, removeExport } from "../node-exports.js";
import { filteredNode, locateDisks, overlaysOf } from "./block-graph.js";
import { stopNbdServer } from "./nbd-server.js";
import { settleSaving } from "../machine/stand-ins.js";
import { guardNode } from "./resize-guard.js";

/** What one frozen disk takes inside QEMU and beside it, in the order in which a freeze acquires it. */
export function frozenEntries({ target, nodes, scratchPath, scratchFile }: PlannedDisk): {
  readonly scratch: readonly (QemuEntry | HostEntry)[];
  readonly filter: readonly QemuEntry[];
  readonly access: readonly QemuEntry[];
} {
  return {
    scratch: [
      scratchFile === undefined
        ? { kind: "file", path: scratchPath }
        : { kind: "linked-file", path: scratchPath, link: scratchFile },
      { kind: "vm-node", node: nodes.scratch },
    ],
    filter: [
      { kind: "vm-node", node: nodes.filter },
      { kind: "vm-filter", target, filter: nodes.filter },
    ],
    access: [
      { kind: "vm-node", node: nodes.access },
      { kind: "vm-node", node: guardNode(nodes) },
    ],
  };
}

/**
 * Undoes one entry inside QEMU and asks it what exists, before or after a refusal: the entry may have been written for
 * something that was never made, was undone before, or went with an earlier QEMU process. Only names of ours are ever touched.
 */
export async function undoInQemu(qmp: QmpSession, entry: QemuEntry, clock: Clock): Promise<void> {
  switch (entry.kind) {
    case "vm-export":
      return removeExport(qmp, entry.id);
    case "vm-nbd-server":
      return stopNbdServer(qmp, entry.socketPath);
    case "vm-bitmap":
      return removeBitmap(qmp, entry.node, entry.bitmap);
    case "vm-filter":
      return removeFilter(qmp, entry.filter);
    case "vm-node":
      return removeNode(qmp, entry.node);
    case "vm-job":
      return endJob(qmp, entry.id);
    case "vm-held":
      return continueGuest(qmp);
    case "vm-saving":
      return settleSaving(qmp, clock, entry);
    case "vm-frozen":
      return thawLeftover({ socketPath: entry.socketPath, clock });
  }
}

export async function nodeExists(qmp: QmpSession, node: string): Promise<boolean> {
  const nodes = await qmp.execute("query-named-block-nodes", { flat: true });
  return nodes.some((listed) => listed["node-name"] === node);
}

async function removeNode(qmp: QmpSession, node: string): Promise<void> {
  try {
    await qmp.execute("blockdev-del", { "node-name": node });
  } catch (error) {
    if (!isQmpError(error, "QMP_COMMAND_FAILED") || (await nodeExists(qmp, node))) throw error;
  }
}

/** Gives whatever uses the filter the disk below it. The disk's node name is asked for, not remembered. */
async function removeFilter(qmp: QmpSession, filter: string): Promise<void> {
  const graph = await qmp.execute("x-debug-query-block-graph");
  const diskNode = filteredNode(graph, filter);
  if (diskNode === undefined) return;
  const devices = await qmp.execute("query-block");
  const nodes = await qmp.execute("query-named-block-nodes", { flat: true });
  const users = locateDisks({ devices, nodes, graph }).filter(({ rootNode }) => rootNode === filter);
  for (const { qomPath } of users) {
    await qmp.execute("qom-set", { path: qomPath, property: "drive", value: diskNode });
  }
  for (const overlay of overlaysOf(graph, filter)) await rebase(qmp, overlay, { filter, diskNode });
}

/**
 * An overlay that another program has put on the filter is based on the disk itself from then on. The job has nothing to copy,
 * for a filter holds nothing; it also mends the overlay's header, whose format of the backing file was the filter's, so that
 * the domain could not have been started with it. QEMU 7.2 aborts at `blockdev-reopen` with another backing file instead
 * (an assertion in `bdrv_parent_drained_end_single_no_poll`).
 */
async function rebase(
  qmp: QmpSession,
  overlay: string,
  { filter, diskNode }: { filter: string; diskNode: string },
): Promise<void> {
  const id = `${filter}-rebase`;
  // Of a command that was killed meanwhile.
  await endJob(qmp, id);
  await qmp.runJob("block-stream", { "job-id": id, device: overlay, "base-node": diskNode });
}

/** Ends the connection of an NBD node, if it is one: its requests in flight fail, whatever they wait for. */
export async function yank(qmp: QmpSession, node: string): Promise<void> {
  try {
    await qmp.execute("yank", { instances: [{ type: "block-node", "node-name": node }] });
  } catch (error) {
    if (!isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
  }
}

/**
 * Cancelled, it fails, and it may have failed before: that it is gone is all that counts. The target of a copy has the job's
 * name; nobody will want what is on its way there.
 */
async function endJob(qmp: QmpSession, id: string): Promise<void> {
  if (!(await qmp.execute("query-jobs")).some((job) => job.id === id)) return;
  await yank(qmp, id);
  try {
    await qmp.followJob(id, { signal: AbortSignal.abort() });
  } catch (error) {
    if (!isQmpError(error, "QMP_ABORTED", "QMP_JOB_FAILED", "QMP_JOB_LOST")) throw error;
  }
}

async function continueGuest(qmp: QmpSession): Promise<void> {
  const { status } = await qmp.execute("query-status");
  if (status === "paused") await qmp.execute("cont");
}
