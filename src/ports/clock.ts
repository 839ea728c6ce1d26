/** Time enters the program only here, so that tests can decide it. */
export interface Clock {
  /** Unix milliseconds. */
  now(): number;
  /** Milliseconds from an arbitrary start, never set back: for durations. */
  monotonicMs(): number;
  /** Rejects as soon as the signal fires. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}
