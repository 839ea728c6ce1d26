import type { BlockdevRef } from "./nodes.js";

export type JobType =
  | "commit"
  | "stream"
  | "mirror"
  | "backup"
  | "create"
  | "amend"
  | "snapshot-load"
  | "snapshot-save"
  | "snapshot-delete";

export type JobStatus =
  | "undefined"
  | "created"
  | "running"
  | "paused"
  | "ready"
  | "standby"
  | "waiting"
  | "pending"
  | "aborting"
  | "concluded"
  | "null";

export interface JobInfo {
  id: string;
  type: JobType;
  status: JobStatus;
  /** In a unit of the job's own; `total-progress` may grow while it runs. */
  "current-progress": number;
  "total-progress": number;
  /** QEMU's words, once the job has failed or was cancelled. */
  error?: string;
}

export interface BlockJobInfo {
  type: JobType;
  /** The job's id, whatever the member's name says. */
  device: string;
  len: number;
  offset: number;
  busy: boolean;
  paused: boolean;
  /** Bytes per second; 0 means without limit. */
  speed: number;
  "io-status": "ok" | "failed" | "nospace";
  ready: boolean;
  status: JobStatus;
  "auto-finalize": boolean;
  "auto-dismiss": boolean;
  error?: string;
}

export type OnIoError = "report" | "ignore" | "enospc" | "stop" | "auto";

export interface BlockdevBackup {
  /** The default is the device's name; nodes have none, so there it is required. */
  "job-id"?: string;
  /** A node or device to read from. */
  device: string;
  /** An existing node to write to. */
  target: string;
  sync: "top" | "full" | "none" | "incremental" | "bitmap";
  bitmap?: string;
  "bitmap-mode"?: "on-success" | "never" | "always";
  /** Bytes per second; 0 means without limit. */
  speed?: number;
  compress?: boolean;
  "on-source-error"?: OnIoError;
  "on-target-error"?: OnIoError;
  "auto-finalize"?: boolean;
  "auto-dismiss"?: boolean;
  "filter-node-name"?: string;
  "x-perf"?: { "use-copy-range"?: boolean; "max-workers"?: number; "max-chunk"?: number };
}

export interface BlockStream {
  "job-id"?: string;
  /** An existing node; what its backing files hold down to the base is copied into it. */
  device: string;
  /** Its new backing file, a node of its chain; without one it has none. */
  "base-node"?: string;
  /** What the device's header is to name as its backing file. */
  "backing-file"?: string;
  "auto-finalize"?: boolean;
  "auto-dismiss"?: boolean;
}

export interface BlockCommit {
  "job-id"?: string;
  /** An existing node: the uppermost image of the chain. */
  device: string;
  /** Where the content goes. */
  "base-node"?: string;
  /** The uppermost image whose content goes there; default: the device, and then the job has to be completed. */
  "top-node"?: string;
  /** What the header of the image above `top-node` is to name as its backing file. */
  "backing-file"?: string;
  "auto-finalize"?: boolean;
  "auto-dismiss"?: boolean;
}

/** Of internal snapshots; dismissing the job is up to whoever started it. */
export interface SnapshotJob {
  "job-id": string;
  tag: string;
  /** Node names of qcow2 images, of all writable disks. */
  devices: string[];
}

type Preallocation = "off" | "metadata" | "falloc" | "full";

export interface CreateFile {
  driver: "file";
  filename: string;
  /** Bytes, as in the other kinds. */
  size: number;
  preallocation?: Preallocation;
  nocow?: boolean;
  "extent-size-hint"?: number;
}

export interface CreateQcow2 {
  driver: "qcow2";
  /** An existing node; it is overwritten. */
  file: BlockdevRef;
  size: number;
  "data-file"?: BlockdevRef;
  "data-file-raw"?: boolean;
  "extended-l2"?: boolean;
  version?: "v2" | "v3";
  "backing-file"?: string;
  "backing-fmt"?: "qcow2" | "raw";
  /** Bytes. */
  "cluster-size"?: number;
  preallocation?: Preallocation;
  "lazy-refcounts"?: boolean;
  "refcount-bits"?: number;
  "compression-type"?: "zlib" | "zstd";
}

export interface BlockdevCreate {
  "job-id": string;
  options: CreateFile | CreateQcow2;
}
