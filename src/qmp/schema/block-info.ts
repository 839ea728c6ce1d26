import type { BitmapInfo } from "./bitmaps.js";

export interface Qcow2Info {
  compat: string;
  "data-file"?: string;
  "data-file-raw"?: boolean;
  "extended-l2"?: boolean;
  "lazy-refcounts"?: boolean;
  corrupt?: boolean;
  "refcount-bits": number;
  bitmaps?: { name: string; granularity: number; flags: ("in-use" | "auto")[] }[];
  "compression-type": "zlib" | "zstd";
}

/** An internal snapshot of an image. */
export interface ImageSnapshotInfo {
  id: string;
  name: string;
  /** Bytes. */
  "vm-state-size": number;
  "date-sec": number;
  "date-nsec": number;
  "vm-clock-sec": number;
  "vm-clock-nsec": number;
  icount?: number;
}

export interface ImageInfo {
  filename: string;
  format: string;
  "dirty-flag"?: boolean;
  /** Bytes on the host. */
  "actual-size"?: number;
  /** Bytes the guest sees. */
  "virtual-size": number;
  /** Bytes. */
  "cluster-size"?: number;
  encrypted?: boolean;
  compressed?: boolean;
  "backing-filename"?: string;
  "full-backing-filename"?: string;
  "backing-filename-format"?: string;
  snapshots?: ImageSnapshotInfo[];
  /** Absent with `flat`. */
  "backing-image"?: ImageInfo;
  "format-specific"?:
    | { type: "qcow2"; data: Qcow2Info }
    | { type: "vmdk" | "luks" | "rbd" | "file"; data: Readonly<Record<string, unknown>> };
}

/** A block node. Throttling limits, which nobody here needs, are left out. */
export interface BlockNodeInfo {
  file: string;
  "node-name"?: string;
  ro: boolean;
  drv: string;
  backing_file?: string;
  backing_file_depth: number;
  encrypted: boolean;
  detect_zeroes: "off" | "on" | "unmap";
  image: ImageInfo;
  cache: { writeback: boolean; direct: boolean; "no-flush": boolean };
  write_threshold: number;
  "dirty-bitmaps"?: BitmapInfo[];
}

/** A guest device's block backend. */
export interface BlockBackendInfo {
  /** Empty unless made with `-drive id=…`. */
  device: string;
  /** The device's id or QOM path; a virtio-blk disk reports its `…/virtio-backend` child. */
  qdev?: string;
  type: string;
  removable: boolean;
  locked: boolean;
  /** Absent if the drive holds no medium. */
  inserted?: BlockNodeInfo;
  tray_open?: boolean;
  "io-status"?: "ok" | "failed" | "nospace";
}

type Permission = "consistent-read" | "write" | "write-unchanged" | "resize";

/** Who uses which node, with which permissions. Of use where `query-named-block-nodes` does not show children. */
export interface BlockGraph {
  nodes: { id: number; type: "block-backend" | "block-job" | "block-driver"; name: string }[];
  edges: { parent: number; child: number; name: string; perm: Permission[]; "shared-perm": Permission[] }[];
}

/** Of a device, or with `query-nodes` of a node; counters, which nobody here needs, are left out. */
export interface BlockStats {
  "node-name"?: string;
  /** As in `query-block`; unset for nodes. */
  qdev?: string;
  stats: BlockDeviceStats;
  /** Of the node below. */
  parent?: BlockStats;
}

export interface BlockDeviceStats {
  /** The end of the furthest write so far, in bytes; failed ones count too. */
  wr_highest_offset: number;
  /** Writes that have ended well, and the time that they took together; they are counted when they end. */
  wr_operations: number;
  wr_total_time_ns: number;
}
