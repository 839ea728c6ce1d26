import { NbdError } from "./errors.js";
import type { Extent } from "./status-collector.js";

/** A run of bytes whose status is the same in every metadata context: `flags["base:allocation"]`, and so on. */
export interface MappedExtent {
  readonly offset: number;
  readonly length: number;
  readonly flags: Readonly<Record<string, number>>;
}

/** One BLOCK_STATUS request: for each context extents from `offset` on, in order, without gaps. */
export type StatusQuery = (offset: number, length: number) => Promise<ReadonlyMap<string, readonly Extent[]>>;

export interface WalkRange {
  readonly offset: number;
  readonly length: number;
  /** Queries start at multiples of this. */
  readonly alignmentBytes: number;
  /** The end of the export: the only place where a query may end unaligned. */
  readonly exportBytes: number;
  /** At most this is asked for at once, so that memory stays bounded. A multiple of `alignmentBytes`. */
  readonly queryBytes: number;
}

/**
 * Walks a range in order and without gaps. A server may answer for less than was asked, for more, differently far in
 * each context, and split what is alike; the walk goes on from the first byte that some context left open:
 *
 *     asked     |----------------------|
 *     context a |-----|--------|              short
 *     context b |-----------------------------|   long
 *     yielded   |-----|--------|~             next query from ~
 */
export async function* walkExtents(query: StatusQuery, range: WalkRange): AsyncGenerator<MappedExtent> {
  const end = range.offset + range.length;
  let held: MappedExtent | undefined;
  let position = range.offset;
  while (position < end) {
    const before = position;
    const from = position - (position % range.alignmentBytes);
    const reply = await query(from, queryEnd(from, end, range) - from);
    for (const extent of alignContexts(reply, position, end)) {
      position = extent.offset + extent.length;
      if (held === undefined) held = extent;
      else if (sameFlags(held.flags, extent.flags)) held = { ...held, length: held.length + extent.length };
      else {
        yield held;
        held = extent;
      }
    }
    if (position === before) throw noProgress(position);
  }
  if (held !== undefined) yield held;
}

function queryEnd(from: number, end: number, range: WalkRange): number {
  const aligned = Math.ceil(end / range.alignmentBytes) * range.alignmentBytes;
  return Math.min(aligned, range.exportBytes, from + range.queryBytes);
}

/** Cuts the contexts of one reply at all their boundaries, within [start, end), as far as every context reaches. */
export function* alignContexts(
  reply: ReadonlyMap<string, readonly Extent[]>,
  start: number,
  end: number,
): Generator<MappedExtent> {
  const cursors = [...reply].map(([name, extents]) => ({ name, extents, index: 0 }));
  let position = start;
  while (position < end && cursors.length > 0) {
    let next = end;
    const flags: Record<string, number> = {};
    for (const cursor of cursors) {
      const extent = extentAt(cursor, position);
      if (extent === undefined) return;
      flags[cursor.name] = extent.flags;
      next = Math.min(next, extent.offset + extent.length);
    }
    yield { offset: position, length: next - position, flags };
    position = next;
  }
}

function extentAt(
  cursor: { extents: readonly Extent[]; index: number },
  position: number,
): Extent | undefined {
  for (;;) {
    const extent = cursor.extents[cursor.index];
    if (extent === undefined || extent.offset + extent.length > position) return extent;
    cursor.index += 1;
  }
}

function sameFlags(a: MappedExtent["flags"], b: MappedExtent["flags"]): boolean {
  return Object.entries(a).every(([name, value]) => b[name] === value);
}

function noProgress(position: number): NbdError {
  return new NbdError(
    "BAD_BLOCK_STATUS",
    `Expected the status of the bytes from ${position} on, the server gave none`,
  );
}
