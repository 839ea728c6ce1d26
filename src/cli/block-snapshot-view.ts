import type { BlockSnapshot, ListBlockSnapshotsResponse } from "../api/messages.js";
import { formatBytes, formatDuration } from "../shared/units.js";
import { CONSISTENCY, milliseconds } from "./backup-view.js";
import { exportTable } from "./export-view.js";
import { facts, formatTime, table } from "./layout.js";
import { printable } from "./printable.js";

export function blockSnapshotList({ snapshots }: ListBlockSnapshotsResponse, terminal: boolean): string {
  if (snapshots.length === 0) return "No block snapshots\n";
  return table(
    snapshots,
    [
      { head: "SNAPSHOT", cell: ({ name }) => name },
      { head: "OWNER", cell: ({ owner }) => owner },
      { head: "TIME", cell: ({ time }) => formatTime(time) },
      { head: "DISKS", cell: ({ disks }) => disks.map(({ target }) => target).join(",") },
      { head: "CHECKPOINT", cell: ({ checkpoint }) => checkpoint ?? "-" },
      { head: "SCRATCH", cell: scratchOf, align: "right" },
      { head: "EXPORTS", cell: ({ exports }) => String(exports.length), align: "right" },
      { head: "STATE", cell: ({ broken }) => (broken === undefined ? "open" : "broken") },
      { head: "LEASE ENDS", cell: ({ leaseEndTime }) => formatTime(leaseEndTime) },
    ],
    terminal,
  );
}

export function blockSnapshotDetails(snapshot: BlockSnapshot, terminal: boolean): string {
  const { leaseMs, leaseEndTime } = snapshot;
  const head = facts([
    ["Snapshot", snapshot.name],
    ["Domain", snapshot.domain],
    ["Owner", snapshot.owner],
    ["Broken", snapshot.broken],
    ["Moment", formatTime(snapshot.time)],
    ["Consistency", CONSISTENCY[snapshot.consistency]],
    ["Not frozen", snapshot.quiesceFailure],
    ["Checkpoint", snapshot.checkpoint],
    ["Guest held", milliseconds(snapshot.heldMs)],
    ["Guest frozen", milliseconds(snapshot.frozenMs)],
    ["Scratch", scratchOf(snapshot)],
    ["Lease", `${formatDuration(leaseMs)}, ends ${formatTime(leaseEndTime)}`],
  ]);
  const disks = table(
    snapshot.disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "FORMAT", cell: ({ format }) => format.toLowerCase() },
      { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
      { head: "SCRATCH", cell: ({ scratchFile }) => scratchFile ?? "-" },
    ],
    terminal,
  );
  const exports = snapshot.exports.length === 0 ? "" : `\n${exportTable(snapshot.exports, terminal)}`;
  return `${head}\n${disks}${exports}`;
}

function scratchOf({ scratchUsedBytes, scratchLimitBytes }: BlockSnapshot): string {
  const used = formatBytes(scratchUsedBytes);
  return scratchLimitBytes === undefined ? used : `${used} of ${formatBytes(scratchLimitBytes)}`;
}

export function blockSnapshotCreated(snapshot: BlockSnapshot, terminal: boolean): string {
  const { name, domain } = snapshot;
  const what = `Block snapshot ${printable(name)} of domain ${printable(domain)}`;
  return `${what} is open until it is deleted or its lease ends\n\n${blockSnapshotDetails(snapshot, terminal)}`;
}

export function blockSnapshotRenewed({ name, domain, leaseEndTime }: BlockSnapshot): string {
  const what = `the lease of block snapshot ${printable(name)} of domain ${printable(domain)}`;
  return `Renewed ${what}; it ends ${formatTime(leaseEndTime)}\n`;
}

export function blockSnapshotDeleted({ name, domain, checkpoint }: BlockSnapshot, failed: boolean): string {
  const what = `block snapshot ${printable(name)} of domain ${printable(domain)}`;
  if (checkpoint === undefined) return `Deleted ${what}${failed ? " as failed" : ""}\n`;
  return failed
    ? `Deleted ${what} as failed; its checkpoint ${printable(checkpoint)} is gone, no change is lost\n`
    : `Deleted ${what}; its checkpoint ${printable(checkpoint)} stays\n`;
}
