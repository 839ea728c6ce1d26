import type { BitmapRef } from "./bitmaps.js";

/** A socket to listen on, nested, as `nbd-server-start` takes it. */
export type SocketAddressLegacy =
  | { type: "unix"; data: { path: string } }
  /** `port` is decimal text. */
  | { type: "inet"; data: { host: string; port: string } };

export interface NbdServerStart {
  addr: SocketAddressLegacy;
  "tls-creds"?: string;
  "tls-authz"?: string;
  /** 0 means without limit. */
  "max-connections"?: number;
}

export interface BlockExportAdd {
  type: "nbd";
  id: string;
  "node-name": string;
  /** The name that NBD clients ask for; the default is the node's. */
  name?: string;
  description?: string;
  writable?: boolean;
  writethrough?: boolean;
  iothread?: string;
  "fixed-iothread"?: boolean;
  /** Each is offered as metadata context `qemu:dirty-bitmap:<name>`, and busy as long as the export lives. */
  bitmaps?: (string | BitmapRef)[];
  /** Offers the metadata context `qemu:allocation-depth`. */
  "allocation-depth"?: boolean;
}

export interface BlockExportDel {
  id: string;
  /** `safe`, the default, fails while a client is connected. */
  mode?: "safe" | "hard";
}

export interface BlockExportInfo {
  id: string;
  type: "nbd" | "vhost-user-blk" | "fuse" | "vduse-blk";
  "node-name": string;
  "shutting-down": boolean;
}
