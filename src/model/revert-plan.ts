import { posix } from "node:path";
import { parseBitmapName } from "./checkpoint.js";
import {
  type DiskLayers,
  type DomainSnapshot,
  type DomainSnapshots,
  findSnapshot,
  type RevertCost,
  type SnapshotDisk,
  type SnapshotMachine,
} from "./domain-snapshot.js";
import type { DomainState } from "./snapshot-plan.js";

type MachineFacts = Omit<SnapshotMachine, "arguments">;

/** What is known before a revert. */
export interface RevertFacts {
  readonly all: DomainSnapshots;
  readonly snapshot: DomainSnapshot;
  readonly force: boolean;
  readonly nowMs: number;
  /** The disks as they are now; undefined if nothing is known of them, as of an inactive domain without `disks`. */
  readonly present: DomainState | undefined;
  /** Of the QEMU that runs now, if one does. */
  readonly machine: MachineFacts | undefined;
}

/** What a revert will cost, by the rules; pure. */
export function costOfRevert(facts: RevertFacts): RevertCost {
  const { all, snapshot, force, nowMs, present, machine } = facts;
  const endedCheckpoints = endedBy(all, snapshot, present);
  const strangers = (present?.disks ?? [])
    .map(({ target }) => target)
    .filter((target) => !snapshot.disks.some((disk) => disk.target === target));
  const risks = [
    ...(endedCheckpoints.length === 0 ? [] : [`these checkpoints end: ${endedCheckpoints.join(", ")}`]),
    ...strangers.map((target) => `disk ${target} is not in the snapshot and stays as it is`),
    ...(snapshot.machine === undefined || machine === undefined
      ? []
      : machineDifferences(snapshot.machine, machine)),
  ];
  return { ...(force ? {} : { keptAs: keptName(all, snapshot.name, nowMs) }), endedCheckpoints, risks };
}

/** A checkpoint goes on if it is older than the snapshot on the way that led there; on raw disks none outlives its QEMU. */
function endedBy(all: DomainSnapshots, snapshot: DomainSnapshot, present: DomainState | undefined): string[] {
  const ended = new Set<string>();
  for (const { target, checkpoints } of present?.disks ?? []) {
    const kept = bitmapsUpTo(all, snapshot, target);
    for (const { bitmap, name } of checkpoints) if (!kept.has(bitmap)) ended.add(name);
  }
  return [...ended];
}

function bitmapsUpTo(all: DomainSnapshots, snapshot: DomainSnapshot, target: string): ReadonlySet<string> {
  const bitmaps = new Set<string>();
  for (let at: DomainSnapshot | undefined = snapshot; at !== undefined;) {
    const disk = at.disks.find((each) => each.target === target);
    // A raw image holds none, whatever the QEMU had in its memory.
    if (disk?.format === "qcow2") for (const bitmap of disk.bitmaps) bitmaps.add(bitmap);
    at = at.parent === undefined ? undefined : findSnapshot(all, at.parent);
  }
  return bitmaps;
}

/** In words; empty if a memory image of the one fits the other. The QEMU version may differ: its machine types are kept. */
export function machineDifferences(saved: MachineFacts, found: MachineFacts): string[] {
  const differ = (what: string, before: string | number, now: string | number): string[] =>
    before === now ? [] : [`${what} was ${before}, and is ${now} now`];
  const missing = saved.devices.filter((device) => !found.devices.includes(device));
  const added = found.devices.filter((device) => !saved.devices.includes(device));
  return [
    ...differ("the machine type", saved.type, found.type),
    ...differ("the CPU", saved.cpu, found.cpu),
    ...differ("the number of CPUs", saved.cpus, found.cpus),
    ...differ("memory in bytes", saved.memoryBytes, found.memoryBytes),
    ...missing.map((device) => `device ${device} is missing now`),
    ...added.map((device) => `device ${device} was not there`),
  ];
}

/** `before-<name>-<epoch seconds>`, cut to the length of a name, and with another number if there is one already. */
export function keptName(all: DomainSnapshots, name: string, nowMs: number): string {
  for (let epoch = Math.floor(nowMs / 1000); ; epoch++) {
    const kept = `before-${name.slice(0, 100)}-${epoch}`;
    if (findSnapshot(all, kept) === undefined) return kept;
  }
}

export interface RevertedDisk {
  readonly disk: SnapshotDisk;
  readonly overlay: string;
}

export interface PlannedDocument {
  readonly document: DomainSnapshots;
  /** Overlays of the present state that nothing refers to any more. */
  readonly obsolete: readonly string[];
}

/** What is true after the revert. */
export function documentAfterRevert(
  facts: RevertFacts,
  { keptAs }: RevertCost,
  disks: readonly RevertedDisk[],
): PlannedDocument {
  const { all, snapshot, nowMs, present } = facts;
  const before = new Map(all.layers.map((layers) => [layers.target, layers]));
  const reverted = disks.map(({ disk, overlay }): DiskLayers => {
    const { home = disk.file, former = [] } = before.get(disk.target) ?? {};
    const recorded = former.filter((file) => isInArguments(all, file));
    return {
      ...{ target: disk.target, home, active: overlay, format: "qcow2" },
      ...(recorded.length === 0 ? {} : { former: recorded }),
    };
  });
  const others = all.layers.filter(({ target }) => !reverted.some((layers) => layers.target === target));
  const leaves = reverted.flatMap(({ target }) => before.get(target) ?? []);
  const kept = keptAs === undefined ? [] : [keptSnapshot(facts, keptAs, leaves)];
  const snapshots = [...all.snapshots, ...kept];
  const needed = new Set(snapshots.flatMap((each) => each.disks.map(({ file }) => file)));
  const obsolete = leaves.filter(({ home, active }) => active !== home && !needed.has(active));
  return {
    document: { ...all, current: snapshot.name, layers: [...others, ...reverted], snapshots },
    obsolete: obsolete.map(({ active }) => active),
  };

  function keptSnapshot(
    { machine }: RevertFacts,
    name: string,
    layers: readonly DiskLayers[],
  ): DomainSnapshot {
    const mode = present?.mode ?? (machine === undefined ? "inactive" : "running");
    return {
      name,
      description: `What the domain was before it was reverted to ${snapshot.name}`,
      timeMs: nowMs,
      ...(all.current === undefined ? {} : { parent: all.current }),
      state: mode,
      kind: "external",
      live: false,
      consistency: mode === "inactive" ? "clean" : "crash",
      pausedMs: 0,
      disks: layers.map(({ target, active, format }) => {
        const now = present?.disks.find((disk) => disk.target === target);
        const then = snapshot.disks.find((disk) => disk.target === target);
        return {
          target,
          file: active,
          format,
          sizeBytes: now?.sizeBytes ?? then?.sizeBytes ?? 0,
          bitmaps: (now?.checkpoints ?? []).map(({ bitmap }) => bitmap),
        };
      }),
      keptByRevert: true,
      clones: [],
    };
  }
}

/** The QEMU of the present names other files after the revert. */
function isInArguments({ snapshots }: DomainSnapshots, file: string): boolean {
  return snapshots.some(({ machine }) =>
    machine?.arguments.some((word) => word.includes(posix.basename(file))),
  );
}

/** The bitmap that recorded at the snapshot goes on in the new overlay, so that checkpoints before it stay whole. */
export function bitmapToCarry({ format, bitmaps }: SnapshotDisk): string | undefined {
  const last = bitmaps.at(-1);
  return format === "qcow2" && last !== undefined && parseBitmapName(last) !== undefined ? last : undefined;
}
