import type { DiskFormat } from "./snapshot-plan.js";

/**
 * Domain snapshots: system checkpoints that a domain can be reverted to. One document per domain holds all of them, the
 * tree that they form, and which file each disk of the domain is in now. It is replaced as a whole, so that a snapshot, its place in the
 * tree and the files of the disks can never disagree.
 */
export interface DomainSnapshots {
  readonly schemaVersion: 1;
  readonly domain: string;
  /** The snapshot that the present state descends from; left out before the first and after the root was reverted away. */
  readonly current?: string;
  /** Of disks that are no longer in the file that the configuration names, or were not at some time. */
  readonly layers: readonly DiskLayers[];
  /** Oldest first. Names are unique. */
  readonly snapshots: readonly DomainSnapshot[];
  /** How the last revert ended that was asked for with a key: a repeat of it is answered so. */
  readonly lastRevert?: LastRevert;
}

export interface LastRevert {
  /** The key of the request. */
  readonly request: string;
  /** What the domain was reverted to. */
  readonly name: string;
  readonly state: SnapshotState;
  readonly keptAs?: string;
  readonly endedCheckpoints: readonly string[];
  readonly risks: readonly string[];
  /** Of the QEMU that was started, if one was. */
  readonly pid?: number;
}

/** Where a disk's present content is. */
export interface DiskLayers {
  readonly target: string;
  /** The file that the disk had before its first domain snapshot: by that name backups know the disk for ever. */
  readonly home: string;
  /** The file that the domain writes to, or would if it ran. Absolute. */
  readonly active: string;
  readonly format: DiskFormat;
  /** Files that deletions have merged or removed, but that the arguments of a QEMU may still name. */
  readonly former?: readonly string[];
}

/** How the domain was, and is again after a revert unless told otherwise. */
export type SnapshotState = "running" | "paused" | "inactive";

/** `external`: the old file is the snapshot, the guest goes on in an overlay. `internal`: inside the qcow2 images. */
export type SnapshotKind = "external" | "internal";

export interface DomainSnapshot {
  readonly name: string;
  readonly description: string;
  /** Unix milliseconds of the moment. */
  readonly timeMs: number;
  /** Left out for a root. */
  readonly parent?: string;
  readonly state: SnapshotState;
  readonly kind: SnapshotKind;
  /** Whether the guest ran while its memory was saved. */
  readonly live: boolean;
  /** Left out for disk-only snapshots and inactive domains. */
  readonly memory?: SnapshotMemory;
  /** What file systems are like in a snapshot without memory: see the terms of backups. */
  readonly consistency?: "clean" | "filesystem" | "crash";
  /** How long the guest did not run, in milliseconds; 0 if it was not stopped. */
  readonly pausedMs: number;
  /** All writable disks, for a snapshot with memory. */
  readonly disks: readonly SnapshotDisk[];
  /** What a QEMU must be like to load the memory; left out without memory. */
  readonly machine?: SnapshotMachine;
  /** A directory that was made for this snapshot's files, to be removed with it when it is empty. */
  readonly directory?: string;
  /** Made by a revert, to keep what the domain was before it. */
  readonly keptByRevert?: true;
  readonly clones: readonly SnapshotClone[];
  /** Its deletion has begun, and content of it may be lost: it can only be deleted. */
  readonly deleting?: true;
  /** Targets of disks that the domain had and the snapshot does not hold; left out if there were none. */
  readonly leftOut?: readonly string[];
  /** The key of the request that made it. */
  readonly request?: string;
}

export type SnapshotMemory =
  | {
      readonly kind: "external";
      readonly file: string;
      readonly sizeBytes: number;
      /** Of all of the file, hexadecimal: QEMU itself does not notice a flipped bit in it. */
      readonly sha256: string;
    }
  /** In the image of one of the disks. */
  | { readonly kind: "internal"; readonly target: string; readonly sizeBytes: number };

export interface SnapshotDisk {
  readonly target: string;
  /** With this content; nothing writes to it as long as the snapshot exists, if the snapshot is external. Absolute. */
  readonly file: string;
  readonly format: DiskFormat;
  readonly sizeBytes: number;
  /** Names of the bitmaps that the layer had at the moment, the recording one last. */
  readonly bitmaps: readonly string[];
  /** Set if `file` is a snapshot by LVM, and the guest went on in the volume that it is of. */
  readonly volume?: SnapshotVolume;
}

/** A logical volume that is a snapshot of another one. */
export interface SnapshotVolume {
  readonly kind: "thin" | "classic";
  readonly group: string;
  readonly name: string;
  /** What tells it from another volume of that name: `fleece:<id>`. */
  readonly tag: string;
}

/** What has to be the same for QEMU to load a memory image; names of nodes and files need not be. */
export interface SnapshotMachine {
  /** Resolved, `pc-q35-7.2` for example, not `q35`. */
  readonly type: string;
  readonly cpu: string;
  readonly memoryBytes: number;
  readonly cpus: number;
  readonly qemuVersion: string;
  /** Argument list of the QEMU process, its own path first; empty where it could not be read. */
  readonly arguments: readonly string[];
  /** Every device that was added, with its bus, address and id: `virtio-blk-pci pcie.0 02.0 d0`. Sorted. */
  readonly devices: readonly string[];
}

/** Overlays (and memory) for another domain. Their base must not change as long as they are in use. */
export interface SnapshotClone {
  readonly directory: string;
  readonly timeMs: number;
}

/** What the names of overlays come from: `<disk>-<name>.qcow2`; memory is `<name>.save`. */
export interface CreateDomainSnapshotRequest {
  readonly domain: string;
  /** Default: the moment in epoch seconds. */
  readonly name?: string | undefined;
  readonly description?: string | undefined;
  readonly kind?: SnapshotKind | undefined;
  readonly live?: boolean | undefined;
  /** Without memory. Default: with, for a running or paused domain. */
  readonly diskOnly?: boolean | undefined;
  /** Absolute; a file, or an existing directory for `<name>.save`. */
  readonly memoryPath?: string | undefined;
  /** For overlays and memory; must not exist. Default: the state directory. */
  readonly directory?: string | undefined;
  /** Default: every writable disk. Others are left out. */
  readonly disks?: readonly RequestedDisk[] | undefined;
  readonly quiesce?: boolean | undefined;
  /** By LVM itself, for disks that are logical volumes and for which no overlay is named. */
  readonly lvm?: boolean | undefined;
  /** Of a classic snapshot by LVM, for old content. Default: as much as it can need. */
  readonly lvmReservedBytes?: number | undefined;
  /** The key of the request: a repeat finds the snapshot by it. */
  readonly request?: string | undefined;
}

export interface RequestedDisk {
  /** A target, or the path of the disk's file. */
  readonly disk: string;
  /** Default: the snapshot's. */
  readonly kind?: SnapshotKind | undefined;
  /** The overlay to make, absolute. Default: by the snapshot's name. */
  readonly overlay?: string | undefined;
}

export interface RevertDomainSnapshotRequest {
  readonly domain: string;
  readonly name: string;
  /** Default: as it was at the moment. */
  readonly to?: "running" | "paused" | undefined;
  /** Also if checkpoints end, the machine differs, or the present state cannot be kept; and then it is not kept. */
  readonly force?: boolean | undefined;
  /**
   * The present QEMU ends before the new one starts, which may then have its ports. What the guest has in memory is lost if that
   * fails: it is started anew on its present disks. Of no effect where no QEMU takes another's place.
   */
  readonly quitFirst?: boolean | undefined;
  /** The key of the request: a repeat finds by it that the domain has been reverted. */
  readonly request?: string | undefined;
}

export interface DeleteDomainSnapshotRequest {
  readonly domain: string;
  readonly name: string;
  /** Forget it and leave its files alone. */
  readonly metadataOnly?: boolean | undefined;
}

export interface CloneDomainSnapshotRequest {
  readonly domain: string;
  readonly name: string;
  /** Absolute; must not exist. */
  readonly directory: string;
}

/** What a revert will cost, found out before anything changes. */
export interface RevertCost {
  /** The name under which the present state is kept, or undefined if it is lost. */
  readonly keptAs?: string | undefined;
  /** Names of checkpoints that cannot be used any more afterwards. */
  readonly endedCheckpoints: readonly string[];
  /** Why `force` is needed; empty if it is not. */
  readonly risks: readonly string[];
}

export interface RevertOutcome extends RevertCost {
  readonly snapshot: DomainSnapshot;
  readonly state: SnapshotState;
  /** From the stop of the old state to the start of the new, in milliseconds; 0 if nobody is left who measured it. */
  readonly downtimeMs: number;
  /** Process id of the QEMU that was started, if one was. */
  readonly pid?: number;
}

/** One file or image that a deletion changed. */
export interface MergedLayer {
  readonly target: string;
  /**
   * `commit`: the later content went into the earlier file. `stream`: the earlier content into the later file. `left`: it stays, and
   * the snapshot is only forgotten.
   */
  readonly how: "commit" | "stream" | "removed" | "internal" | "left";
  readonly from: string;
  readonly into?: string;
}

export interface DeleteOutcome {
  readonly name: string;
  readonly merged: readonly MergedLayer[];
  /** Snapshots that have another parent now. */
  readonly reparented: readonly string[];
}

export interface CloneOutcome {
  readonly directory: string;
  readonly disks: readonly { readonly target: string; readonly file: string }[];
  readonly memory?: string;
  /** An argument list that starts the clone, with its own disks and `-incoming` for the memory. */
  readonly arguments?: readonly string[];
}

/** Of a long call, as often as something changes. */
export interface DomainSnapshotProgress {
  readonly phase: "preparing" | "memory" | "disks" | "checking" | "loading" | "merging" | "finishing";
  readonly target?: string | undefined;
  readonly doneBytes?: number | undefined;
  readonly totalBytes?: number | undefined;
}

export interface DomainSnapshotOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: DomainSnapshotProgress) => void) | undefined;
}

export interface DeletionOptions extends DomainSnapshotOptions {
  /** Awaited before anything is gone. */
  readonly onPlanned?: ((outcome: DeleteOutcome) => Promise<void>) | undefined;
}

export interface CloneOptions extends DomainSnapshotOptions {
  /** Awaited before the clone has its name; `identity` is that of its directory. */
  readonly onComplete?: ((outcome: CloneOutcome, identity: string) => Promise<void>) | undefined;
}

export function noSnapshots(domain: string): DomainSnapshots {
  return { schemaVersion: 1, domain, layers: [], snapshots: [] };
}

export function findSnapshot(all: DomainSnapshots, name: string): DomainSnapshot | undefined {
  return all.snapshots.find((snapshot) => snapshot.name === name);
}

export function childrenOf(all: DomainSnapshots, name: string): readonly DomainSnapshot[] {
  return all.snapshots.filter(({ parent }) => parent === name);
}

/** All files that a disk has had: what an argument list of any time may name. */
export function filesOfDisk(all: DomainSnapshots, target: string): readonly string[] {
  const layers = all.layers.filter((each) => each.target === target);
  const snapshots = all.snapshots.flatMap(({ disks }) => disks.filter((disk) => disk.target === target));
  return [
    ...new Set([
      ...layers.flatMap(({ home, active, former = [] }) => [home, active, ...former]),
      ...snapshots.map(({ file }) => file),
    ]),
  ];
}
