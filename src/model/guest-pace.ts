import { MIB } from "../shared/units.js";

/** What a guest's writes to one disk have come to since its device was made. Failed ones are left out. */
export interface WriteFigures {
  readonly operations: number;
  /** From the guest's request to its answer, all of them together. */
  readonly totalMs: number;
}

/** How fast a backup may read, so that its guest's writes do not suffer. */
export interface GuestPace {
  /** `Infinity` as long as they do not. */
  readonly bytesPerSecond: number;
  /** What was read in a second before it was slowed: at this it is let go again. */
  readonly freeBytesPerSecond: number;
  /** Looks in a row in which no write ended. */
  readonly silentLooks: number;
}

export const FREE_PACE: GuestPace = { bytesPerSecond: Infinity, freeBytesPerSecond: 0, silentLooks: 0 };

/** Slower than this a backup does not get: it has to end some day, and costs the guest something until it does. */
export const LEAST_BYTES_PER_SECOND = 4 * MIB;

/** How much of its speed a backup gets back with each look that finds the guest well. */
const GROWTH = 1.25;

/**
 * Writes that hang do not end, and QEMU counts only those that have. So silence says nothing at first; after so many looks
 * the guest has nothing to write: by default a write waits for scratch space for 4 s at most.
 */
const SILENT_LOOKS = 6;

export interface GuestLook {
  /** Of the writes that ended since the last look, for the disk that had it worst; undefined if none ended. */
  readonly meanWriteMs: number | undefined;
  readonly boundMs: number;
  /** What the backup has read in a second since the last look. */
  readonly readBytesPerSecond: number;
}

/** Halved where writes take too long, and given back by and by, until it is as fast as it was. */
export function nextPace(pace: GuestPace, look: GuestLook): GuestPace {
  const { meanWriteMs, boundMs, readBytesPerSecond } = look;
  const silentLooks = meanWriteMs === undefined ? pace.silentLooks + 1 : 0;
  if (meanWriteMs !== undefined && meanWriteMs > boundMs)
    return { ...slower(pace, readBytesPerSecond), silentLooks };
  if (pace.bytesPerSecond === Infinity || (silentLooks > 0 && silentLooks < SILENT_LOOKS)) {
    return { ...pace, silentLooks };
  }
  const bytesPerSecond = pace.bytesPerSecond * GROWTH;
  return bytesPerSecond >= pace.freeBytesPerSecond
    ? { ...FREE_PACE, silentLooks }
    : { ...pace, bytesPerSecond, silentLooks };
}

function slower(pace: GuestPace, readBytesPerSecond: number): Omit<GuestPace, "silentLooks"> {
  const isFree = pace.bytesPerSecond === Infinity;
  const before = isFree ? readBytesPerSecond : pace.bytesPerSecond;
  return {
    bytesPerSecond: Math.max(LEAST_BYTES_PER_SECOND, before / 2),
    freeBytesPerSecond: isFree
      ? Math.max(readBytesPerSecond, 2 * LEAST_BYTES_PER_SECOND)
      : pace.freeBytesPerSecond,
  };
}

/** Of the disk whose writes took longest on average; undefined if no write ended between the two. */
export function worstMeanMs(
  before: ReadonlyMap<string, WriteFigures>,
  after: ReadonlyMap<string, WriteFigures>,
): number | undefined {
  const means = [...after].flatMap(([target, { operations, totalMs }]) => {
    const earlier = before.get(target);
    // A device that is plugged in anew counts from nothing.
    if (earlier === undefined || operations <= earlier.operations) return [];
    return [(totalMs - earlier.totalMs) / (operations - earlier.operations)];
  });
  return means.length === 0 ? undefined : Math.max(...means);
}
