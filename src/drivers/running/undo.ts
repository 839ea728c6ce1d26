import type { PlannedDisk } from "../../model/snapshot-plan.js";
import type { UndoEntry } from "../../model/undo.js";
import type { Clock } from "../../ports/clock.js";
import type { QmpSession } from "../../qmp/index.js";
import { isQmpError } from "../../qmp/index.js";
import { thawLeftover } from "../guest-agent/guest-freezer.js";
import { removeBitmap, removeExport } from "../node-exports.js";
import { filteredNode, locateDisks } from "./block-graph.js";
import { stopNbdServer } from "./nbd-server.js";
import { guardNode } from "./resize-guard.js";

/** What one frozen disk takes inside QEMU and beside it, in the order in which a freeze acquires it. */
export function frozenEntries({ target, nodes, scratchPath, scratchFile }: PlannedDisk): {
  readonly scratch: readonly UndoEntry[];
  readonly filter: readonly UndoEntry[];
  readonly access: readonly UndoEntry[];
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
 * Undoes one entry inside QEMU, after asking it what exists: the entry may have been written for something that was never
 * made, was undone before, or went with an earlier QEMU process. Only names of ours are ever touched.
 */
export async function undoInQemu(qmp: QmpSession, entry: UndoEntry, clock: Clock): Promise<void> {
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
    case "vm-frozen":
      return thawLeftover({ socketPath: entry.socketPath, clock });
    case "checkpoint":
    case "file":
    case "linked-file":
    case "directory":
    case "daemon":
    case "daemon-export":
      throw new Error(`Undo of a ${entry.kind} is not a matter of QEMU`);
  }
}

export async function nodeExists(qmp: QmpSession, node: string): Promise<boolean> {
  const nodes = await qmp.execute("query-named-block-nodes", { flat: true });
  return nodes.some((listed) => listed["node-name"] === node);
}

async function removeNode(qmp: QmpSession, node: string): Promise<void> {
  if (await nodeExists(qmp, node)) await qmp.execute("blockdev-del", { "node-name": node });
}

/** Gives every device that uses the filter the disk below it. The disk's node name is asked for, not remembered. */
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
}

/** Cancelled, it fails, and it may have failed before: that it is gone is all that counts. */
async function endJob(qmp: QmpSession, id: string): Promise<void> {
  if (!(await qmp.execute("query-jobs")).some((job) => job.id === id)) return;
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
