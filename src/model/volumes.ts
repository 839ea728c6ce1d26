import { FleeceError } from "../shared/errors.js";
import { formatBytes } from "../shared/units.js";
import type { SnapshotVolume } from "./domain-snapshot.js";

/** Snapshots that LVM makes of logical volumes, beside the volume that the guest goes on in. Pure. */

/** A logical volume that a disk is. */
export interface LogicalVolume {
  readonly group: string;
  readonly name: string;
  /** `thin`: in a pool, which has the space for its snapshots. `classic`: a snapshot takes space of the group. */
  readonly kind: SnapshotVolume["kind"];
  /** Of the group, in bytes. */
  readonly freeBytes: number;
  /** Names of all volumes of the group. */
  readonly siblings: readonly string[];
}

/** Plain JSON: the journal keeps it. */
export interface PlannedVolume {
  readonly target: string;
  /** The disk, which the guest goes on in. */
  readonly origin: { readonly file: string; readonly name: string };
  readonly snapshot: SnapshotVolume;
  /** The device of the snapshot. */
  readonly file: string;
  readonly sizeBytes: number;
  /** Of the space for old content, for a classic one; left out: as much as the origin can need. */
  readonly reservedBytes?: number;
}

/**
 * `whole`; `overflowed`: the guest has overwritten more than a classic snapshot had space for, and LVM has given it up; `missing`: not
 * there, not active, or not ours; `unknown`: LVM could not be asked.
 */
export type VolumeState = "whole" | "overflowed" | "missing" | "unknown";

export interface VolumeReport {
  readonly state: VolumeState;
  /** Of the space for old content, 0 to 100; of classic ones alone. */
  readonly usedPercent?: number;
}

const MAX_NAME_CHARACTERS = 127;

/** Throws ALREADY_EXISTS. `id` is that of the creation. */
export function planVolume(
  volume: LogicalVolume,
  wanted: {
    readonly id: string;
    readonly snapshot: string;
    readonly target: string;
    readonly file: string;
    readonly sizeBytes: number;
    readonly reservedBytes?: number | undefined;
  },
): PlannedVolume {
  const { group, kind } = volume;
  const { id, snapshot, target, file, sizeBytes, reservedBytes } = wanted;
  const name = volumeName(volume.name, snapshot);
  if (volume.siblings.includes(name)) {
    throw new FleeceError(
      "ALREADY_EXISTS",
      `Expected no logical volume ${group}/${name}, there is one: give the snapshot another name`,
      { facts: { group, volume: name } },
    );
  }
  return {
    target,
    origin: { file, name: volume.name },
    snapshot: { kind, group, name, tag: `fleece:${id}` },
    file: `/dev/${group}/${name}`,
    sizeBytes,
    ...(kind === "thin" || reservedBytes === undefined ? {} : { reservedBytes }),
  };
}

/** `<volume>-<snapshot>`, in the characters that LVM takes. */
export function volumeName(origin: string, snapshot: string): string {
  return `${origin}-${snapshot.replaceAll(/[^A-Za-z0-9_.+-]/g, "_")}`.slice(0, MAX_NAME_CHARACTERS);
}

/** Throws NO_SPACE. Of thin ones their pool decides, which LVM asks. */
export function checkVolumeSpace(planned: readonly PlannedVolume[], volumes: Iterable<LogicalVolume>): void {
  const needed = new Map<string, number>();
  for (const { snapshot, sizeBytes, reservedBytes } of planned) {
    if (snapshot.kind === "thin") continue;
    needed.set(snapshot.group, (needed.get(snapshot.group) ?? 0) + (reservedBytes ?? sizeBytes));
  }
  for (const { group, freeBytes } of volumes) {
    const neededBytes = needed.get(group) ?? 0;
    if (neededBytes <= freeBytes) continue;
    throw new FleeceError(
      "NO_SPACE",
      `Expected ${formatBytes(neededBytes)} free in the volume group ${group} for the domain snapshot, got ${formatBytes(freeBytes)}`,
      { facts: { group, neededBytes, freeBytes } },
    );
  }
}

/** Throws DAMAGED unless the volume still has the content of its snapshot. */
export function checkVolume({ group, name }: SnapshotVolume, { state }: VolumeReport): void {
  if (state === "whole") return;
  const why = {
    overflowed: "it overflowed: more was overwritten since than it had space for, and LVM has given it up",
    missing: "it is not there, not active, or another one by now",
    unknown: "LVM could not be asked for it",
  }[state];
  throw new FleeceError("DAMAGED", `The content of logical volume ${group}/${name} cannot be used: ${why}`, {
    facts: { group, volume: name },
  });
}
