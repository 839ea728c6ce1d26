import type { KnownFile } from "../model/layer-plan.js";

/** Files of domain snapshots, beside what QEMU does with them. */
export interface SnapshotFiles {
  /** Idempotent. Durable when it resolves. */
  remove(file: string): Promise<void>;
  /** Removes a directory if it is empty. Idempotent. */
  removeDirectory(directory: string): Promise<void>;
  exists(path: string): Promise<boolean>;
  /** A new directory, mode 0700. Fails with ALREADY_EXISTS. */
  makeDirectory(directory: string): Promise<void>;
  /** The new name must be free. Durable. */
  rename(from: string, to: string): Promise<void>;
  /** A new file, mode 0600, sharing its blocks where the file system can. Durable; after a failure nothing is left. */
  copy(from: string, to: string, options: CopyFileOptions): Promise<void>;
  /** An empty qcow2 overlay, mode 0600. Durable. */
  createOverlay(
    overlay: string,
    base: KnownFile & { readonly sizeBytes: number },
    signal?: AbortSignal,
  ): Promise<void>;
  /** An independent image with the content of an internal snapshot. */
  extractSnapshot(image: string, snapshot: string, to: string, signal?: AbortSignal): Promise<void>;
}

export interface CopyFileOptions {
  /** Hexadecimal; checked against what was copied. DAMAGED if it differs. */
  readonly sha256: string;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number) => void) | undefined;
}
