import type { Disk, Domain, ListDomainsResponse } from "../api/messages.js";
import { formatBytes } from "../shared/units.js";
import { facts, table } from "./layout.js";
import { printable } from "./printable.js";

export function domainList({ domains }: ListDomainsResponse, terminal: boolean): string {
  const known = (text: (domain: Domain) => string) => (domain: Domain) =>
    domain.state === "UNKNOWN" ? "-" : text(domain);
  const overview = table(
    domains,
    [
      { head: "DOMAIN", cell: ({ name }) => name },
      { head: "STATE", cell: ({ state }) => state.toLowerCase() },
      { head: "QEMU", cell: ({ qemuVersion }) => qemuVersion ?? "-" },
      { head: "DISKS", cell: known(({ disks }) => String(disks.length)), align: "right" },
      { head: "SIZE", cell: known(({ disks }) => formatBytes(totalBytes(disks))), align: "right" },
      { head: "CHECKPOINTS", cell: known(({ disks }) => String(checkpointCount(disks))), align: "right" },
    ],
    terminal,
  );
  const troubled = domains.filter(({ trouble }) => trouble !== undefined);
  const notes = troubled.map(({ name, trouble }) => `${printable(name)}: ${printable(trouble ?? "")}\n`);
  return notes.length === 0 ? overview : `${overview}\n${notes.join("")}`;
}

export function domainDetails(domain: Domain, terminal: boolean): string {
  const { name, state, qemuVersion, disks } = domain;
  const head = facts([
    ["Domain", name],
    ["State", state.toLowerCase()],
    ["QEMU", qemuVersion],
  ]);
  const notes = disks.flatMap((disk) => [
    ...(disk.obstacle === undefined || disk.obstacle === null
      ? []
      : [`Disk ${disk.target} cannot be backed up: ${disk.obstacle.reason} (${disk.obstacle.code})`]),
    ...(disk.activeFile === undefined
      ? []
      : [`Disk ${disk.target} is in ${disk.activeFile} now, over ${disk.frozenFiles.join(", ")}`]),
    ...(disk.foreignBitmaps.length === 0
      ? []
      : [`Disk ${disk.target} has bitmaps of other programs: ${disk.foreignBitmaps.join(", ")}`]),
  ]);
  const text = notes.map((note) => `${printable(note)}\n`).join("");
  return `${head}\n${diskTable(disks, terminal)}${text === "" ? "" : `\n${text}`}`;
}

function diskTable(disks: readonly Disk[], terminal: boolean): string {
  if (disks.length === 0) return "No disks that can be backed up\n";
  return table(
    disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "FORMAT", cell: ({ format }) => format.toLowerCase() },
      { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
      { head: "CHECKPOINTS", cell: ({ checkpoints }) => String(checkpoints.length), align: "right" },
      { head: "FILE", cell: ({ file }) => file },
    ],
    terminal,
  );
}

function totalBytes(disks: readonly Disk[]): number {
  return disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}

/** Checkpoints of the domain: one on several disks counts once. */
function checkpointCount(disks: readonly Disk[]): number {
  return new Set(disks.flatMap(({ checkpoints }) => checkpoints)).size;
}
