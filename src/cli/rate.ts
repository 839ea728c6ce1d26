/** Long enough to stand still for the eye, short enough to follow a change. */
const WINDOW_MS = 3000;
/** Below this, a rate says more about the timer than about the work. */
const LEAST_MS = 500;

/** Bytes per second over the last seconds. */
export class Rate {
  #samples: { readonly timeMs: number; readonly bytes: number }[] = [];

  /** Takes the total so far, and returns the rate, or undefined while too little is known. */
  at(timeMs: number, bytes: number): number | undefined {
    const last = this.#samples.at(-1);
    if (last === undefined || timeMs - last.timeMs >= 100) this.#samples.push({ timeMs, bytes });
    while (this.#samples.length > 2 && timeMs - (this.#samples[0]?.timeMs ?? timeMs) > WINDOW_MS) {
      this.#samples.shift();
    }
    const first = this.#samples[0];
    if (first === undefined || timeMs - first.timeMs < LEAST_MS) return undefined;
    return Math.max(0, ((bytes - first.bytes) * 1000) / (timeMs - first.timeMs));
  }
}
