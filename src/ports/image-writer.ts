import type { DiskFormat } from "../model/snapshot-plan.js";
import type { BlockWriter } from "./block-io.js";

export interface NewImage {
  readonly target: string;
  /** Absolute; must not exist. */
  readonly path: string;
  readonly format: DiskFormat;
  readonly sizeBytes: number;
  /** As it is written into a qcow2 header, relative to the image; always qcow2. */
  readonly backing?: string;
}

export interface OpenImages extends AsyncDisposable {
  writer(target: string): BlockWriter;
  /** Closes the images and makes them durable. */
  finish(): Promise<void>;
  /** Ends the daemon that serves them. Idempotent; leaves the files. */
  close(): Promise<void>;
}

/** Creates images (mode 0600) and opens them for writing through a storage daemon of ours. */
export interface ImageFactory {
  create(images: readonly NewImage[], signal?: AbortSignal): Promise<OpenImages>;
}
