import type { DiskFormat } from "./snapshot-plan.js";

/**
 * What a device has while QEMU saves memory and must not have the device's images open: a node that fails every request. The
 * rest is what it takes to open the images again. Plain JSON: the journal keeps it.
 */
export interface StandIn {
  readonly node: string;
  readonly sizeBytes: number;
  /** Object path of the device. */
  readonly qomPath: string;
  readonly iothread?: string;
  /** The lowest image first. */
  readonly layers: readonly StoodInLayer[];
}

export interface StoodInLayer {
  readonly node: string;
  /** Its name when it is open again: another one if QEMU had made it up, for nobody may give such names. */
  readonly nextNode: string;
  readonly driver: Exclude<DiskFormat, "raw">;
  readonly file: StoodInFile;
  readonly readOnly: boolean;
  readonly cache: { readonly direct: boolean; readonly "no-flush": boolean };
  readonly detectZeroes: "off" | "on" | "unmap";
  /** Those that are lost when the image is closed. */
  readonly bitmaps: readonly StoodInBitmap[];
}

export interface StoodInFile {
  readonly driver: "file" | "host_device";
  readonly filename: string;
  readonly node: string;
  /** Not set: QEMU makes one up. */
  readonly nextNode?: string;
}

export interface StoodInBitmap {
  readonly name: string;
  readonly granularityBytes: number;
  readonly recording: boolean;
}
