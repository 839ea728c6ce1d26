import type { NbdError } from "./errors.js";
import type { Negotiated } from "./handshake.js";
import type { Session } from "./session.js";

/** One connection to an export with what was negotiated on it: ids of contexts are valid only there. */
export interface Lane {
  readonly session: Session;
  readonly negotiated: Negotiated;
}

/** Key of the lanes of an export object, for this package only. */
export const LANES = Symbol("lanes");

export function leastBusy(lanes: readonly [Lane, ...Lane[]]): Lane {
  if (lanes.length === 1) return lanes[0];
  return lanes.reduce((best, lane) => (lane.session.load < best.session.load ? lane : best));
}

/**
 * Resolves when all connections are over, with the first error of any. They end together: what one has written is
 * safe only after a flush, and who would know what the lost one still had to do.
 */
export async function untilAllClosed(lanes: readonly Lane[]): Promise<NbdError | undefined> {
  let first: NbdError | undefined;
  const ends = lanes.map(async ({ session }) => {
    const error = await session.closed;
    first ??= error;
    for (const other of lanes) {
      if (error === undefined) void other.session.close();
      else other.session.destroy(error);
    }
  });
  await Promise.all(ends);
  return first;
}
