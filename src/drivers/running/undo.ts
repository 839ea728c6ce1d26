import type { UndoEntry } from "../../model/undo.js";
import type { Clock } from "../../ports/clock.js";
import type { QmpSession } from "../../qmp/index.js";
import { thawLeftover } from "../guest-agent/guest-freezer.js";
import { removeBitmap, removeExport } from "../node-exports.js";
import { filteredNode, locateDisks } from "./block-graph.js";
import { stopNbdServer } from "./nbd-server.js";

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
    case "vm-held":
      return continueGuest(qmp);
    case "vm-frozen":
      return thawLeftover({ socketPath: entry.socketPath, clock });
    case "checkpoint":
    case "file":
    case "directory":
    case "daemon":
    case "daemon-export":
      throw new Error(`Undo of a ${entry.kind} is not a matter of QEMU`);
  }
}

async function nodeExists(qmp: QmpSession, node: string): Promise<boolean> {
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

async function continueGuest(qmp: QmpSession): Promise<void> {
  const { status } = await qmp.execute("query-status");
  if (status === "paused") await qmp.execute("cont");
}
