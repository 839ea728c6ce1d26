import type { Checkpoint, CheckpointDisk, ListCheckpointsResponse } from "../api/messages.js";
import { formatBytes } from "../shared/units.js";
import { facts, formatTime, table } from "./layout.js";
import { printable } from "./printable.js";
import { tree } from "./tree.js";

export function checkpointList({ checkpoints }: ListCheckpointsResponse, terminal: boolean): string {
  if (checkpoints.length === 0) return "No checkpoints\n";
  return table(
    checkpoints,
    [
      { head: "CHECKPOINT", cell: ({ name }) => name },
      { head: "TIME", cell: ({ time }) => formatTime(time) },
      { head: "DISKS", cell: ({ disks }) => disks.map(({ target }) => target).join(",") },
      { head: "CHANGED", cell: ({ disks }) => changed(disks), align: "right" },
      { head: "STATE", cell: stateOf },
    ],
    terminal,
  );
}

/** Each checkpoint below the one it follows. */
export function checkpointTree({ checkpoints }: ListCheckpointsResponse): string {
  if (checkpoints.length === 0) return "No checkpoints\n";
  return tree(checkpoints, ({ name }) => printable(name));
}

export function checkpointDetails(checkpoint: Checkpoint, terminal: boolean): string {
  const head = facts([
    ["Checkpoint", checkpoint.name],
    ["Domain", checkpoint.domain],
    ["Time", formatTime(checkpoint.time)],
    ["Follows", checkpoint.parent],
    ["State", stateOf(checkpoint)],
  ]);
  const disks = table(
    checkpoint.disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "STATE", cell: diskState },
      { head: "CHANGED", cell: (disk) => changed([disk]), align: "right" },
      { head: "GRANULARITY", cell: ({ granularityBytes }) => formatBytes(granularityBytes), align: "right" },
      { head: "BITMAP", cell: ({ bitmap }) => bitmap },
    ],
    terminal,
  );
  return `${head}\n${disks}`;
}

export function checkpointDeleted({ domain, name, parent }: Checkpoint): string {
  const rest =
    parent === undefined ? "" : `; what changed since then now counts as changed since ${printable(parent)}`;
  return `Deleted checkpoint ${printable(name)} of domain ${printable(domain)}${rest}\n`;
}

function stateOf({ valid, disks }: Checkpoint): string {
  if (!valid) return "unusable";
  return disks.some(({ recording }) => recording) ? "recording" : "frozen";
}

function diskState({ inconsistent, recording, busy, persistent }: CheckpointDisk): string {
  const state = inconsistent ? "unusable" : recording ? "recording" : "frozen";
  return [state, ...(busy ? ["busy"] : []), ...(persistent ? [] : ["lost when QEMU ends"])].join(", ");
}

function changed(disks: readonly CheckpointDisk[]): string {
  let sum = 0;
  for (const { dirtyBytes } of disks) {
    if (dirtyBytes === undefined) return "-";
    sum += dirtyBytes;
  }
  return formatBytes(sum);
}
