import { posix } from "node:path";
import type { CheckpointBitmap, CheckpointId } from "./checkpoint.js";
import { isUnusable, nextOrder } from "./checkpoint.js";
import type { QuiesceOutcome, QuiescePlan } from "./quiesce.js";

/** The domain as a driver finds it, looked up anew each time: node names change with every restart or hot-plug. */
export interface DomainState {
  readonly domain: string;
  readonly mode: "running" | "paused" | "inactive";
  /** `7.2.22`, for a domain that runs. */
  readonly qemuVersion?: string;
  readonly disks: readonly DiskState[];
  /** Disks that the configuration lists and the running QEMU does not have, after a hot-unplug for example. */
  readonly missingDisks?: readonly MissingDisk[];
  /** Nodes in the running QEMU that carry our mark, whichever fleece made them. */
  readonly ourNodes?: readonly string[];
  /** Ids of NBD exports of the running QEMU that other programs made. */
  readonly foreignExports?: readonly string[];
}

export interface DiskState {
  readonly target: string;
  readonly format: DiskFormat;
  /** The image file or device, as QEMU or the configuration names it. With domain snapshots: the one from before the first. */
  readonly file: string;
  /** The image that the disk's present content is in, where domain snapshots have made it another. */
  readonly activeFile?: string;
  /** Images that a domain snapshot has frozen below the active one, from top to bottom. */
  readonly frozenFiles?: readonly string[];
  /** Set when the disk is in another image than its domain snapshots say: nothing that bitmaps tell may be trusted. */
  readonly otherLayer?: OtherLayer;
  readonly sizeBytes: number;
  /** What the image takes on its host, where that is known. */
  readonly allocatedBytes?: number;
  /** The iothread that a running domain's disk is in, if any. */
  readonly iothread?: string;
  /** Our bitmaps alone, oldest first, also deleted ones that older ones need. */
  readonly checkpoints: readonly CheckpointBitmap[];
  /** Names of bitmaps that others made; never touched. */
  readonly foreignBitmaps: readonly string[];
  /** Set when exports of this disk are staged: copied out of QEMU first, for no NBD client may connect to it. */
  readonly staged?: true;
  /** Set when no snapshot of this disk may be taken, with the reason. */
  readonly obstacle?: Obstacle;
}

export interface OtherLayer {
  readonly expected: string;
  readonly found: string;
  /** Domain snapshots need what was found as it was, so that every write damages them. */
  readonly frozen: boolean;
}

export interface MissingDisk {
  readonly target: string;
  readonly reason: string;
}

export interface Obstacle {
  readonly code: "FOREIGN_FILTER" | "UNSUPPORTED";
  readonly reason: string;
  /** The node on top of the disk, if that is the obstacle. */
  readonly filter?: string;
}

/** Formats of images that this program makes. */
export type ImageFormat = "qcow2" | "raw";

/**
 * Formats that disks may have, by QEMU's names. Only qcow2 holds checkpoints beyond the QEMU process; all others are treated as raw
 * is. QEMU writes to all of them, but it cannot save the memory of a guest that has one of the last four.
 */
export const DISK_FORMATS = ["qcow2", "raw", "vpc", "vhdx", "vmdk", "vdi"] as const;
export type DiskFormat = (typeof DISK_FORMATS)[number];

const FORMATS_BY_DRIVER: ReadonlyMap<string, DiskFormat> = new Map([
  ...DISK_FORMATS.map((format) => [format, format] as const),
  ["file", "raw"],
  ["host_device", "raw"],
]);

/** Of the node at the top of a disk; undefined for one that is no disk of ours to handle. */
export function formatOfDriver(driver: string): DiskFormat | undefined {
  return FORMATS_BY_DRIVER.get(driver);
}

/**
 * Everything a block snapshot will bring into being, decided and named before any of it exists, so that the journal can
 * hold it all beforehand and a later process can find it by name.
 */
export interface SnapshotPlan {
  /** Eight characters, unique among the snapshots of a host: part of node names and paths. */
  readonly id: string;
  readonly domain: string;
  readonly disks: readonly PlannedDisk[];
  /** The checkpoint to create at the same moment. */
  readonly checkpoint?: CheckpointId;
  /**
   * What the scratch images may take together. QEMU holds each of them to it by itself; the sum is held to it as long as
   * a backup of ours watches.
   */
  readonly scratchLimitBytes?: number;
  /** Freeze the guest's file systems for the moment; without effect for an inactive domain. */
  readonly quiesce?: QuiescePlan;
}

export interface PlannedDisk {
  readonly target: string;
  readonly format: DiskFormat;
  readonly sizeBytes: number;
  /** Where old content goes while the domain runs; an inactive domain needs none. */
  readonly scratchPath: string;
  /** A second name of the same file, where the caller has chosen one; the first is then in the same directory. */
  readonly scratchFile?: string;
  readonly nodes: SnapshotNodes;
  /** Bitmaps of ours that record until this moment and stop then, if a new checkpoint takes over. */
  readonly previousBitmaps: readonly string[];
}

export interface SnapshotNodes {
  /** The scratch image over the disk: old content where the guest has written since, the disk elsewhere. */
  readonly scratch: string;
  /** The copy-before-write filter between the device and its disk. */
  readonly filter: string;
  /** The filter's view of the frozen moment; for an inactive domain the disk itself, read-only. */
  readonly access: string;
  /** Where QEMU writes to when it copies the frozen moment out; also the name of the job. */
  readonly push: string;
}

/** Node names that belong to this program begin so. Bitmaps have their own mark: see checkpoint.ts. */
const NODE_MARK = "fleece-";

/** QEMU allows 31 characters: `fleece-` + 8 + `-` + index + `-filter` stays below for 10,000 disks. */
export function snapshotNodes(id: string, diskIndex: number): SnapshotNodes {
  const stem = `${NODE_MARK}${id}-${diskIndex}`;
  return {
    scratch: `${stem}-scratch`,
    filter: `${stem}-filter`,
    access: `${stem}-access`,
    push: `${stem}-push`,
  };
}

export function isOurNode(node: string): boolean {
  return node.startsWith(NODE_MARK);
}

/** The id of the operation that a node of ours was made for: that of its plan. */
export function operationOfNode(node: string): string | undefined {
  return /^fleece-([^-]+)-\d+-/.exec(node)?.[1];
}

/** What to offer of one disk of a snapshot. */
export interface PlannedExport {
  readonly target: string;
  readonly exportName: string;
  /** Of the planned disk; which of them can be read is the driver's matter. */
  readonly nodes: SnapshotNodes;
  /** Bitmaps of the disk whose union is the map of changes; left out to offer the content alone. */
  readonly changes?: { readonly since: string; readonly bitmaps: readonly string[] };
  /** The reader is the only one, and will give up what it has read, so that it takes no scratch space any more. */
  readonly release?: boolean;
}

/** What to copy of one disk of a snapshot, and where to. */
export interface PlannedPush extends Pick<PlannedExport, "target" | "changes"> {
  /** A writable export of the disk's size. Only changes are written to it if they are asked about, else all of the disk. */
  readonly into: ExportAddress;
}

/** Where the frozen content of a disk can be read. */
export interface ExportAddress {
  readonly target: string;
  readonly exportName: string;
  readonly socketPath: string;
  readonly sizeBytes: number;
  /** The NBD metadata context with the changes, when a checkpoint was asked about. */
  readonly changesContext?: string;
  /** The export on the same socket by which content can be given up, where that was asked for and can be had. */
  readonly releaseExport?: string;
  /** A storage daemon of ours serves a copy, so that readers cannot touch the domain's QEMU. */
  readonly staged?: true;
}

/**
 * How an inactive disk's file looked when the snapshot was taken. A pull of it counts only if it looks the same at the
 * end: a guest that was started meanwhile wins, and the attempt is thrown away.
 */
export interface FileFingerprint {
  readonly target: string;
  readonly path: string;
  readonly device: string;
  readonly inode: string;
  readonly sizeBytes: string;
  /** Of a block device: how much was written to it since it is there. */
  readonly mtimeNs: string;
}

export interface FreezeResult {
  /** The checkpoint's time, where there is one: one moment has one time wherever it is shown. */
  readonly timeMs: number;
  /** How long the guest was stopped for the moment to be one over all disks; 0 if it was not. */
  readonly heldMs: number;
  /** Set if the plan asked for it and the domain is not inactive. */
  readonly quiesce?: QuiesceOutcome;
  readonly fingerprints: readonly FileFingerprint[];
}

export interface SnapshotRequest {
  readonly id: string;
  readonly targets: readonly string[];
  readonly scratchDir: string;
  /** By target, for disks whose old content shall go to a file of the caller's choice. */
  readonly scratchFiles?: ReadonlyMap<string, string> | undefined;
  /** The name and moment of a new checkpoint; its order follows from the bitmaps that exist. */
  readonly checkpoint?: { readonly name: string; readonly timeMs: number };
  readonly scratchLimitBytes?: number | undefined;
  readonly quiesce?: QuiescePlan | undefined;
}

/** Names and numbers for everything that a snapshot of these disks will need. The targets must exist. */
export function planSnapshot(state: DomainState, request: SnapshotRequest): SnapshotPlan {
  const { id, checkpoint, scratchLimitBytes, quiesce } = request;
  const chosen = state.disks.filter(({ target }) => request.targets.includes(target));
  return {
    id,
    domain: state.domain,
    disks: chosen.map((disk, index) => ({
      target: disk.target,
      format: disk.format,
      sizeBytes: disk.sizeBytes,
      ...scratchPlace(request, disk.target),
      nodes: snapshotNodes(id, index),
      previousBitmaps: disk.checkpoints
        .filter((bitmap) => bitmap.recording && !isUnusable(bitmap))
        .map(({ bitmap }) => bitmap),
    })),
    ...(scratchLimitBytes === undefined ? {} : { scratchLimitBytes }),
    ...(checkpoint === undefined
      ? {}
      : { checkpoint: { ...checkpoint, order: nextOrder(state.disks.map((disk) => disk.checkpoints)) } }),
    ...(quiesce === undefined ? {} : { quiesce }),
  };
}

/**
 * A file of the caller's choice gets a name of ours first: by that, whoever undoes the snapshot can tell it from a file that
 * somebody else has put there, however far a killed process had come.
 */
function scratchPlace(
  { id, scratchDir, scratchFiles }: SnapshotRequest,
  target: string,
): Pick<PlannedDisk, "scratchPath" | "scratchFile"> {
  const scratchFile = scratchFiles?.get(target);
  if (scratchFile === undefined) return { scratchPath: `${scratchDir}/${id}-${target}.qcow2` };
  return {
    scratchPath: posix.join(posix.dirname(scratchFile), `.fleece-${id}-${target}.qcow2`),
    scratchFile,
  };
}
