/** Block nodes as `blockdev-add` takes them. Member names, here and in this whole folder, are QMP's own. */

export type OnOffAuto = "on" | "off" | "auto";

/** A node by name, or described in place (it then belongs to its parent). */
export type BlockdevRef = string | BlockdevOptions;

export interface BlockdevCommon {
  /** At most 31 bytes. */
  "node-name"?: string;
  discard?: "ignore" | "unmap";
  cache?: { direct?: boolean; "no-flush"?: boolean };
  "read-only"?: boolean;
  "auto-read-only"?: boolean;
  "force-share"?: boolean;
  "detect-zeroes"?: "off" | "on" | "unmap";
}

export interface BlockdevFile extends BlockdevCommon {
  driver: "file" | "host_device";
  filename: string;
  locking?: OnOffAuto;
  aio?: "threads" | "native" | "io_uring";
  "drop-cache"?: boolean;
}

export interface BlockdevQcow2 extends BlockdevCommon {
  driver: "qcow2";
  file: BlockdevRef;
  /** The id of a `secret` object. */
  encrypt?: { format: "luks"; "key-secret": string };
  /** `null` opens the image without the backing file that its header names. */
  backing?: BlockdevRef | null;
  "lazy-refcounts"?: boolean;
  "pass-discard-request"?: boolean;
  "pass-discard-snapshot"?: boolean;
  "pass-discard-other"?: boolean;
  /** Bytes, as are the other cache sizes. */
  "cache-size"?: number;
  "l2-cache-size"?: number;
  "l2-cache-entry-size"?: number;
  "refcount-cache-size"?: number;
  /** Seconds. */
  "cache-clean-interval"?: number;
  "data-file"?: BlockdevRef;
}

export interface BlockdevRaw extends BlockdevCommon {
  driver: "raw";
  file: BlockdevRef;
  /** Bytes, as is `size`. */
  offset?: number;
  size?: number;
}

/** Image formats of other programs. */
export interface BlockdevForeign extends BlockdevCommon {
  driver: "vpc" | "vhdx" | "vmdk" | "vdi";
  file: BlockdevRef;
  /** Of `vmdk` alone. */
  backing?: BlockdevRef | null;
}

export interface BlockdevCopyBeforeWrite extends BlockdevCommon {
  driver: "copy-before-write";
  file: BlockdevRef;
  target: BlockdevRef;
  bitmap?: { node: string; name: string };
  "on-cbw-error"?: "break-guest-write" | "break-snapshot";
  /** Seconds; 0 waits for ever. Before QEMU 9.1 only 0 to 4 mean what they say: more overflows 32 bits. */
  "cbw-timeout"?: number;
}

export interface BlockdevSnapshotAccess extends BlockdevCommon {
  driver: "snapshot-access";
  /** A copy-before-write node. */
  file: BlockdevRef;
}

/** Writes whole clusters compressed, each of them once at most: an image's format must know how. */
export interface BlockdevCompress extends BlockdevCommon {
  driver: "compress";
  file: BlockdevRef;
}

export interface BlockdevNbd extends BlockdevCommon {
  driver: "nbd";
  server: SocketAddress;
  export?: string;
  "tls-creds"?: string;
  "tls-hostname"?: string;
  "x-dirty-bitmap"?: string;
  /** Seconds, as is `open-timeout`. */
  "reconnect-delay"?: number;
  "open-timeout"?: number;
}

export interface BlockdevNullCo extends BlockdevCommon {
  driver: "null-co";
  /** Bytes. */
  size?: number;
  "latency-ns"?: number;
  "read-zeroes"?: boolean;
}

export interface BlockdevBlkdebug extends BlockdevCommon {
  driver: "blkdebug";
  image: BlockdevRef;
  /** What other users of the child may not do. */
  "unshare-child-perms"?: ("consistent-read" | "write" | "write-unchanged" | "resize")[];
  /** With event `none` from the start on, always. */
  "inject-error"?: {
    event: "none";
    iotype: "read" | "write" | "write-zeroes" | "discard" | "flush" | "block-status";
    errno: number;
  }[];
}

export type BlockdevOptions =
  | BlockdevFile
  | BlockdevQcow2
  | BlockdevRaw
  | BlockdevForeign
  | BlockdevCopyBeforeWrite
  | BlockdevSnapshotAccess
  | BlockdevCompress
  | BlockdevNbd
  | BlockdevNullCo
  | BlockdevBlkdebug;

/** A socket, flat, as `nbd` nodes take it. */
export type SocketAddress =
  | { type: "unix"; path: string }
  /** `port` is decimal text. */
  | { type: "inet"; host: string; port: string };
