import { NbdError } from "./errors.js";
import type { Extent } from "./status-collector.js";

/** A run of bytes whose status is the same in every metadata context: `flags["base:allocation"]`, and so on. */
export interface MappedExtent {
  readonly offset: number;
  readonly length: number;
  readonly flags: Readonly<Record<string, number>>;
}

/** One BLOCK_STATUS request: for each context extents from `offset` on, in order, without gaps. */
export type StatusQuery = (offset: number, length: number) => Promise<ReadonlyMap<string, Iterable<Extent>>>;

export interface WalkRange {
  readonly offset: number;
  readonly length: number;
  /** Queries start at multiples of this. */
  readonly alignmentBytes: number;
  /** The end of the export: the only place where a query may end unaligned. */
  readonly exportBytes: number;
  /** This is asked for at once, at first and where the map is dense. A multiple of `alignmentBytes`. */
  readonly queryBytes: number;
  /** Where the map is sparse, up to this is, so that time follows the extents and not the size. Default: `queryBytes`. */
  readonly widestQueryBytes?: number;
}

/** A reply with no more extents than this comes from a part of the map where a longer query stays cheap. */
const SPARSE_EXTENTS = 1024;

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
  let queryBytes = range.queryBytes;
  while (position < end) {
    const before = position;
    const from = position - (position % range.alignmentBytes);
    const reply = await query(from, queryEnd(from, end, range, queryBytes) - from);
    let count = 0;
    for (const extent of alignContexts(reply, position, end)) {
      count += 1;
      position = extent.offset + extent.length;
      if (held === undefined) held = extent;
      else if (sameFlags(held.flags, extent.flags)) held = { ...held, length: held.length + extent.length };
      else {
        yield held;
        held = extent;
      }
    }
    if (position === before) throw noProgress(position);
    const wider = Math.min(queryBytes * 2, range.widestQueryBytes ?? range.queryBytes);
    queryBytes = count <= SPARSE_EXTENTS ? wider : range.queryBytes;
  }
  if (held !== undefined) yield held;
}

function queryEnd(from: number, end: number, range: WalkRange, queryBytes: number): number {
  const aligned = Math.ceil(end / range.alignmentBytes) * range.alignmentBytes;
  return Math.min(aligned, range.exportBytes, from + queryBytes);
}

/** Cuts the contexts of one reply at all their boundaries, within [start, end), as far as every context reaches. */
export function* alignContexts(
  reply: ReadonlyMap<string, Iterable<Extent>>,
  start: number,
  end: number,
): Generator<MappedExtent> {
  const cursors = [...reply].map(([name, extents]) => new Cursor(name, extents));
  let position = start;
  while (position < end && cursors.length > 0) {
    let next = end;
    const flags: Record<string, number> = {};
    for (const cursor of cursors) {
      const extent = cursor.extentAt(position);
      if (extent === undefined) return;
      flags[cursor.name] = extent.flags;
      next = Math.min(next, extent.offset + extent.length);
    }
    yield { offset: position, length: next - position, flags };
    position = next;
  }
}

/** Looks at one context's extents in order, one at a time: there may be a million. */
class Cursor {
  readonly name: string;
  readonly #extents: Iterator<Extent>;
  #current: Extent | undefined;

  constructor(name: string, extents: Iterable<Extent>) {
    this.name = name;
    this.#extents = extents[Symbol.iterator]();
    this.#advance();
  }

  /** `position` must not go back. */
  extentAt(position: number): Extent | undefined {
    while (this.#current !== undefined && this.#current.offset + this.#current.length <= position) {
      this.#advance();
    }
    return this.#current;
  }

  #advance(): void {
    const step = this.#extents.next();
    this.#current = step.done === true ? undefined : step.value;
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
