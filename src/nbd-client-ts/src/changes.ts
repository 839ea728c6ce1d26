import { NbdError } from "./errors.js";
import type { MappedExtent } from "./extents.js";

/** A run of bytes as a backup looks at it. */
export interface ChangeExtent {
  readonly offset: number;
  readonly length: number;
  /** Dirty in the bitmap; without a bitmap, everything is. */
  readonly changed: boolean;
  /** Reads as zeroes, and need not be read: `base:allocation` says so. */
  readonly zero: boolean;
}

export interface ChangesOptions {
  /** Full name of the context with the changes, such as `qemu:dirty-bitmap:NAME`. Default: everything is changed. */
  readonly bitmapContext?: string;
  /** Default `base:allocation`. */
  readonly allocationContext?: string;
}

const DIRTY = 1;
const ZERO = 2;

/**
 * Joins a bitmap of changes and the allocation: changed data must be copied, what is changed and zero must become zero
 * in the copy, the rest stays. Keeps order, has no gaps, and neighbours differ. Memory: one extent.
 */
export async function* changes(
  extents: AsyncIterable<MappedExtent> | Iterable<MappedExtent>,
  options: ChangesOptions = {},
): AsyncGenerator<ChangeExtent, void, undefined> {
  const { bitmapContext, allocationContext = "base:allocation" } = options;
  let held: ChangeExtent | undefined;
  for await (const { offset, length, flags } of extents) {
    const changed = bitmapContext === undefined || (statusIn(flags, bitmapContext) & DIRTY) !== 0;
    const zero = (statusIn(flags, allocationContext) & ZERO) !== 0;
    if (held?.changed === changed && held.zero === zero) {
      held = { ...held, length: held.length + length };
      continue;
    }
    if (held !== undefined) yield held;
    held = { offset, length, changed, zero };
  }
  if (held !== undefined) yield held;
}

/** A missing context must not pass for "unchanged": that would leave changes out of a backup. */
function statusIn(flags: MappedExtent["flags"], context: string): number {
  const status = flags[context];
  if (status !== undefined) return status;
  throw new NbdError(
    "INVALID_ARGUMENT",
    `Expected extents with the status of ${context}, got ${Object.keys(flags).join(", ")}`,
  );
}
