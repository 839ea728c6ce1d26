import type {
  ClonedDomainSnapshot,
  DeletedDomainSnapshot,
  DomainSnapshot,
  ListDomainSnapshotsResponse,
  RevertCost,
  RevertedDomain,
} from "../api/messages.js";
import { formatBytes } from "../shared/units.js";
import { CONSISTENCY, milliseconds } from "./backup-view.js";
import { facts, formatTime, table } from "./layout.js";
import { printable } from "./printable.js";
import { tree } from "./tree.js";

export function domainSnapshotList(
  { snapshots }: ListDomainSnapshotsResponse,
  { terminal, long }: { readonly terminal: boolean; readonly long: boolean },
): string {
  if (snapshots.length === 0) return "No domain snapshots\n";
  if (long) return snapshots.map((snapshot) => domainSnapshotDetails(snapshot, terminal)).join("\n");
  return table(
    snapshots,
    [
      { head: "SNAPSHOT", cell: ({ name, current }) => (current ? `${name} *` : name) },
      { head: "PARENT", cell: ({ parent }) => parent ?? "-" },
      { head: "TIME", cell: ({ time }) => formatTime(time) },
      { head: "STATE", cell: ({ state }) => state.toLowerCase() },
      {
        head: "TYPE",
        cell: (snapshot) => `${snapshot.kind.toLowerCase()}${isBroken(snapshot) ? ", broken" : ""}`,
      },
      { head: "MEMORY", cell: memorySize, align: "right" },
      { head: "DISKS", cell: ({ disks }) => disks.map(({ target }) => target).join(",") },
    ],
    terminal,
  );
}

function isBroken({ disks }: DomainSnapshot): boolean {
  return disks.some(({ volume }) => volume?.state === "OVERFLOWED" || volume?.state === "MISSING");
}

function volumeText({ volume }: DomainSnapshot["disks"][number]): string {
  if (!volume) return "-";
  const { kind, state, usedPercent } = volume;
  const words = {
    STATE_UNSPECIFIED: "not known",
    WHOLE: usedPercent === undefined ? "" : `${usedPercent} % used`,
    OVERFLOWED: "BROKEN: overflowed",
    MISSING: "BROKEN: missing",
  }[state];
  return [kind.toLowerCase(), words].filter((word) => word !== "").join(", ");
}

/** Each snapshot below the one it descends from; a star marks where the domain is. */
export function domainSnapshotTree({ snapshots }: ListDomainSnapshotsResponse): string {
  if (snapshots.length === 0) return "No domain snapshots\n";
  return tree(snapshots, label);
}

function label({ name, current }: DomainSnapshot): string {
  return `${printable(name)}${current ? " *" : ""}`;
}

export function domainSnapshotDetails(snapshot: DomainSnapshot, terminal: boolean): string {
  const { consistency, memory } = snapshot;
  const hasVolumes = snapshot.disks.some(({ volume }) => volume !== null);
  const head = facts([
    ["Snapshot", snapshot.name],
    ["Domain", snapshot.domain],
    ["Description", snapshot.description || undefined],
    ["Moment", formatTime(snapshot.time)],
    ["Descends from", snapshot.parent],
    ["Domain is here", snapshot.current ? "yes" : "no"],
    ["State", snapshot.state.toLowerCase()],
    ["Type", typeOf(snapshot)],
    ["Consistency", consistency === "CONSISTENCY_UNSPECIFIED" ? undefined : CONSISTENCY[consistency]],
    [
      "Memory",
      memory ? `${memory.file ?? `in ${memory.target ?? "a disk"}`} (${memorySize(snapshot)})` : "none",
    ],
    ["Machine", snapshot.machineType],
    ["Left out", snapshot.leftOutDisks.join(", ") || undefined],
    ["Guest paused", snapshot.pausedMs === 0 ? undefined : milliseconds(snapshot.pausedMs)],
    ["Kept by a revert", snapshot.keptByRevert ? "yes" : undefined],
    ["Clones", snapshot.clones.map(({ directory }) => directory).join(", ") || undefined],
  ]);
  const disks = table(
    snapshot.disks,
    [
      { head: "DISK", cell: ({ target }) => target },
      { head: "FORMAT", cell: ({ format }) => format },
      { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
      { head: "CHECKPOINTS", cell: ({ checkpoints }) => checkpoints.join(",") || "-" },
      ...(hasVolumes ? [{ head: "LVM", cell: volumeText }] : []),
      { head: "FILE", cell: ({ file }) => file },
    ],
    terminal,
  );
  return `${head}\n${disks}`;
}

export function domainSnapshotCreated(snapshot: DomainSnapshot, terminal: boolean): string {
  const { name, domain } = snapshot;
  const what = `Domain snapshot ${printable(name)} of domain ${printable(domain)} is complete`;
  return `${what}\n\n${domainSnapshotDetails(snapshot, terminal)}`;
}

export function revertCostText({ keptAs, endedCheckpoints, risks }: RevertCost): string {
  const kept =
    keptAs === undefined
      ? "The present state is lost\n"
      : `The present disks are kept as ${printable(keptAs)}\n`;
  const ended =
    endedCheckpoints.length === 0
      ? ""
      : `These checkpoints end: ${endedCheckpoints.map(printable).join(", ")}\n`;
  const why = risks.map((risk) => `Needs --force: ${printable(risk)}\n`).join("");
  return `${kept}${ended}${why}`;
}

export function domainReverted({ snapshot, state, cost, downtimeMs, pid }: RevertedDomain): string {
  const name = printable(snapshot?.name ?? "");
  const domain = printable(snapshot?.domain ?? "");
  const process = pid === undefined ? "" : `, process ${pid}`;
  const down = downtimeMs === 0 ? "" : `, stopped for ${milliseconds(downtimeMs)}`;
  const head = `Domain ${domain} is back at snapshot ${name}: ${state.toLowerCase()}${process}${down}\n`;
  return `${head}${cost ? revertCostText(cost) : ""}`;
}

export function domainSnapshotDeleted({ domain, name, layers, reparented }: DeletedDomainSnapshot): string {
  const lines = layers.map(({ target, how, from, into }) => {
    const [disk, file] = [printable(target), printable(from)];
    if (how === "REMOVED") return `  ${disk}: removed ${file}\n`;
    if (how === "LEFT") return `  ${disk}: ${file} stays\n`;
    if (how === "INTERNAL") return `  ${disk}: removed from ${file}\n`;
    return `  ${disk}: ${file} went into ${printable(into ?? "")}\n`;
  });
  const children =
    reparented.length === 0 ? "" : `  ${reparented.map(printable).join(", ")} descends from its parent now\n`;
  const did = layers.some(({ how }) => how === "LEFT") ? "Forgot" : "Deleted";
  return `${did} domain snapshot ${printable(name)} of domain ${printable(domain)}\n${lines.join("")}${children}`;
}

export function domainSnapshotCloned(clone: ClonedDomainSnapshot): string {
  const { name, domain, directory, disks, memoryFile, arguments: list } = clone;
  const files = disks.map(({ target, file }) => `  ${printable(target)}: ${printable(file)}\n`).join("");
  const memory = memoryFile === undefined ? "" : `  memory: ${printable(memoryFile)}\n`;
  const start = list.length === 0 ? "" : `Start it with:\n  ${list.map(shellWord).join(" ")}\n`;
  const what = `Cloned domain snapshot ${printable(name)} of domain ${printable(domain)} to ${printable(directory)}`;
  return `${what}\n${files}${memory}${start}`;
}

function typeOf({ kind, live, memory }: DomainSnapshot): string {
  return `${kind.toLowerCase()}${memory ? "" : ", disks only"}${live ? ", live" : ""}`;
}

function memorySize({ memory }: DomainSnapshot): string {
  return memory ? formatBytes(memory.sizeBytes) : "-";
}

function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${printable(text).replaceAll("'", `'\\''`)}'`;
}
