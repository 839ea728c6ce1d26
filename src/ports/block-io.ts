import type { Extent } from "../model/extents.js";
import type { ExportAddress } from "../model/snapshot-plan.js";

/** A disk that stands still and can be read at any offset. Many reads may be in flight. */
export interface BlockReader extends AsyncDisposable {
  readonly sizeBytes: number;
  /** All extents in order, without gaps. `changed` is true throughout if the export offers no changes. */
  extents(signal?: AbortSignal): AsyncIterable<Extent>;
  /**
   * Exactly `length` bytes, or an error: SNAPSHOT_BROKEN when the frozen content is gone, else NBD_FAILED. They come in
   * `into`, if the caller has memory of that length; after an error it must not be used again.
   */
  read(offset: number, length: number, signal?: AbortSignal, into?: Uint8Array): Promise<Uint8Array>;
  /**
   * Gives content up that will not be read again, so that it takes no scratch space any more; what it reads as afterwards
   * is undefined. Parts of blocks are kept. Only a saving: does nothing where it cannot be done, and never fails.
   */
  release(offset: number, length: number, signal?: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** An image that is being written. Writes may be in flight side by side if they do not overlap. */
export interface BlockWriter extends AsyncDisposable {
  readonly sizeBytes: number;
  write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void>;
  /** Makes the range read as zeroes, also over a backing file, without storing them. */
  writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void>;
  flush(signal?: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

export interface ReaderFactory {
  open(address: ExportAddress, signal?: AbortSignal): Promise<BlockReader>;
}
