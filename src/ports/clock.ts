import type { HostTime } from "../model/lease.js";

/** Time enters the program only here, so that tests can decide it. */
export interface Clock {
  /** Unix milliseconds. */
  now(): number;
  /** Milliseconds from an arbitrary start, never set back: for durations. */
  monotonicMs(): number;
  /** For what is counted across processes: the same in all of them, never set. */
  hostTime(): HostTime;
  /** Rejects as soon as the signal fires. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}
