/**
 * Content is read, compared and digested in blocks of this size: the granularity of our bitmaps and the cluster size of
 * our images, so that a changed block is read once, whole, and lands in one cluster.
 */
export const BLOCK_SIZE = 65536;

/** A stretch of a disk as a server reports it. `changed` is true everywhere when no checkpoint is asked about. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly changed: boolean;
  /** Reads as zeroes: never written, discarded, or written as zeroes. */
  readonly zero: boolean;
}

/** A stretch of whole blocks (the disk's end may cut the last) that a pull has to deal with. */
export interface BlockRun {
  readonly offset: number;
  readonly length: number;
  readonly kind: "data" | "zero";
}

/**
 * Turns extents of any boundaries into runs of whole blocks. A block counts as changed if any part of it changed, and as
 * zero only if all of it is zero: reading a little too much is always right, reading too little never.
 * Changed zeroes are kept as such: leaving them out would bring old data back on restore.
 *
 * Extents must come in order and without gaps; unchanged blocks yield nothing. Adjacent runs of a kind are joined.
 */
export async function* blockRuns(
  extents: AsyncIterable<Extent>,
  sizeBytes: number,
  blockSize: number = BLOCK_SIZE,
): AsyncGenerator<BlockRun> {
  let pending: BlockRun | undefined;
  let block: { index: number; changed: boolean; zero: boolean } | undefined;

  const join = (offset: number, length: number, kind: BlockRun["kind"]): BlockRun | undefined => {
    if (pending?.kind === kind && pending.offset + pending.length === offset) {
      pending = { ...pending, length: pending.length + length };
      return undefined;
    }
    const finished = pending;
    pending = { offset, length, kind };
    return finished;
  };
  const closeBlock = (): BlockRun | undefined => {
    const open = block;
    block = undefined;
    if (open === undefined || !open.changed) return undefined;
    const offset = open.index * blockSize;
    return join(offset, Math.min(blockSize, sizeBytes - offset), open.zero ? "zero" : "data");
  };

  for await (const extent of extents) {
    let { offset } = extent;
    const end = Math.min(extent.offset + extent.length, sizeBytes);
    while (offset < end) {
      const index = Math.floor(offset / blockSize);
      if (block !== undefined && block.index !== index) {
        const finished = closeBlock();
        if (finished !== undefined) yield finished;
      }
      if (block === undefined && offset % blockSize === 0 && end - offset >= blockSize) {
        const length = Math.floor((end - offset) / blockSize) * blockSize;
        const finished = extent.changed ? join(offset, length, extent.zero ? "zero" : "data") : undefined;
        if (finished !== undefined) yield finished;
        offset += length;
        continue;
      }
      block ??= { index, changed: false, zero: true };
      block.changed ||= extent.changed;
      block.zero &&= extent.zero;
      offset = Math.min(end, (index + 1) * blockSize);
    }
  }
  const last = closeBlock();
  if (last !== undefined) yield last;
  if (pending !== undefined) yield pending;
}

/** Cuts a run into pieces of at most `maxBytes`, which must be a multiple of the block size; a function is asked before each. */
export function* pieces(run: BlockRun, maxBytes: number | (() => number)): Generator<BlockRun> {
  const end = run.offset + run.length;
  for (let { offset } = run; offset < end;) {
    const length = Math.min(typeof maxBytes === "number" ? maxBytes : maxBytes(), end - offset);
    yield { ...run, offset, length };
    offset += length;
  }
}
