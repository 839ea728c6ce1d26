import type { ImageFormat, ExportAddress } from "../model/snapshot-plan.js";
import type { Secret } from "../shared/secret.js";
import type { BlockWriter } from "./block-io.js";

export interface NewImage {
  readonly target: string;
  /** Absolute; must not exist. */
  readonly path: string;
  readonly format: ImageFormat;
  readonly sizeBytes: number;
  /** As it is written into a qcow2 header, relative to the image; always qcow2. */
  readonly backing?: string;
  /** Others write to it too, by its `address`. What they write is looked through for blocks of zeroes, which take no space. */
  readonly pushed?: boolean;
  /** What is written is compressed; only in qcow2, and no block may be written twice. */
  readonly compressed?: boolean;
  /** What is written is encrypted; only in qcow2, and not compressed. */
  readonly luks?: Luks | undefined;
}

export interface Luks {
  readonly passphrase: Secret;
  /** An image whose LUKS header, and with it the key of the content, is taken; left out: a new one is made. */
  readonly headerOf?: string | undefined;
}

export interface OpenImages extends AsyncDisposable {
  writer(target: string): BlockWriter;
  /** The image as an export that can be written and read; in one with a backing file, what was written counts as changed. */
  address(target: string): ExportAddress;
  /** The same error, or QEMU_FAILED with the daemon's last words if its end is the cause. */
  explain(error: unknown): Promise<unknown>;
  /** Closes the images and makes them durable. */
  finish(): Promise<void>;
  /** Ends the daemon that serves them. Idempotent; leaves the files. */
  close(): Promise<void>;
}

/** Creates images (mode 0600) and opens them for writing through a storage daemon of ours. */
export interface ImageFactory {
  create(images: readonly NewImage[], signal?: AbortSignal): Promise<OpenImages>;
}
