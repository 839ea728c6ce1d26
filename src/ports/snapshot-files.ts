import type { SnapshotMemory } from "../model/domain-snapshot.js";
import type { LayerBitmap, NewFile, Place } from "../model/domain-snapshot-plan.js";
import type { DiskFormat } from "../model/snapshot-plan.js";

/** Files of domain snapshots, beside what QEMU does with them. What is made or removed is durable when the promise resolves. */
export interface SnapshotFiles {
  /** A link counts, wherever it leads. */
  exists(path: string): Promise<boolean>;
  /** Undefined if there is no such directory. */
  place(directory: string): Promise<Place | undefined>;
  /** Of mode 0700; its parent exists. Fails with ALREADY_EXISTS. */
  makeDirectory(directory: string): Promise<void>;
  /** Removes a directory if it is empty. Idempotent. */
  removeDirectory(directory: string): Promise<void>;
  /** Idempotent. */
  remove(file: string): Promise<void>;
  /** The new name must be free. */
  rename(from: string, to: string): Promise<void>;
  /** Lets a file go by its own name alone. Idempotent. */
  dropFirstName(file: NewFile): Promise<void>;

  /** An empty qcow2 image over another one, mode 0600. Fails with ALREADY_EXISTS. */
  createOverlay(overlay: NewOverlay, signal?: AbortSignal): Promise<void>;
  /** Fails with DAMAGED if a file of the chain is missing or is not what it was. */
  checkImage(image: KnownImage & { readonly target: string }, signal?: AbortSignal): Promise<void>;
  /** An independent image with the content of an internal snapshot. */
  extractSnapshot(image: string, snapshot: string, to: string, signal?: AbortSignal): Promise<void>;

  /** Reads all of it. Fails with DAMAGED. */
  checkMemory(memory: ExternalMemory, options: DigestOptions): Promise<void>;
  /** Makes a file durable and digests it: SHA-256, hexadecimal. Fails with DAMAGED if it has another size. */
  sealMemory(file: string, sizeBytes: number, options?: DigestOptions): Promise<string>;
  /**
   * To a new file, mode 0600, sharing its blocks where the file system can. Fails with DAMAGED if what was copied is not what was
   * saved; after a failure nothing is left.
   */
  copyMemory(memory: ExternalMemory, to: string, options: DigestOptions): Promise<void>;
}

export type ExternalMemory = SnapshotMemory & { readonly kind: "external" };

export interface KnownImage {
  readonly file: string;
  readonly format: DiskFormat;
  readonly sizeBytes: number;
}

export interface NewOverlay {
  readonly path: string;
  readonly base: KnownImage;
  /** Recorded from the start: of checkpoints whose changes go on here. */
  readonly bitmaps?: readonly Pick<LayerBitmap, "bitmap" | "granularityBytes">[];
  /** Whose QEMU will open it; default: this user's. */
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined;
}

export interface DigestOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number) => void) | undefined;
}
