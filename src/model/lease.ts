/**
 * For how long a block snapshot lives unless it is renewed. Counted by the host's clock since its start, which nobody can
 * set: the wall clock may be set forward or back without a lease ending early or late.
 */
export interface Lease {
  readonly leaseMs: number;
  /** When it ends, by the wall clock as it was at the start of the lease: for people, and after a restart of the host. */
  readonly leaseUntilMs: number;
  /** When it ends, by the host's clock; records of earlier versions lack it. */
  readonly leaseHost?: { readonly start: string; readonly untilMs: number };
}

export interface LeaseTime {
  /** Unix milliseconds. */
  readonly nowMs: number;
  readonly host: HostTime;
}

/** Time since the start of the host. */
export interface HostTime {
  /** Another one after each start. */
  readonly start: string;
  readonly ms: number;
}

export function newLease(leaseMs: number, { nowMs, host }: LeaseTime): Lease {
  const { start, ms } = host;
  return { leaseMs, leaseUntilMs: nowMs + leaseMs, leaseHost: { start, untilMs: ms + leaseMs } };
}

/**
 * Negative or 0 once it has ended. After a restart of the host only the wall clock can tell; it may be wrong, so that the
 * lease lasts its own length since that start at most. By the wall clock alone for a record of an earlier version.
 */
export function leaseLeftMs({ leaseMs, leaseUntilMs, leaseHost }: Lease, { nowMs, host }: LeaseTime): number {
  const byWallClockMs = leaseUntilMs - nowMs;
  if (leaseHost === undefined) return byWallClockMs;
  const leftMs = leaseHost.untilMs - host.ms;
  // More than all of it is left only by a clock that is not the one it was counted by.
  if (leaseHost.start === host.start && leftMs <= leaseMs) return leftMs;
  return Math.min(byWallClockMs, leaseMs - host.ms);
}
