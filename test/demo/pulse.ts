import { formatDuration } from "../../src/shared/units.js";
import type { GuestVm } from "../guest/guest-vm.js";

/** When the guest did its steps: each of them writes, so a stall of its disk shows as a gap. */
export class Pulse {
  readonly #beats: { readonly count: number; readonly atMs: number }[] = [];

  constructor(guest: GuestVm) {
    guest.onLine((line) => {
      const count = /^WORK (\d+) /.exec(line)?.[1];
      if (count !== undefined) this.#beats.push({ count: Number(count), atMs: performance.now() });
    });
  }

  /** The number of the guest's last step. */
  get count(): number {
    return this.#beats.at(-1)?.count ?? 0;
  }

  /** What the guest did since `startMs` (of `performance.now()`), in words. */
  since(startMs: number): string {
    const times = [
      startMs,
      ...this.#beats.map(({ atMs }) => atMs).filter((atMs) => atMs > startMs),
      performance.now(),
    ];
    const gaps = times.slice(1).map((atMs, index) => atMs - (times[index] ?? atMs));
    return `${times.length - 2} steps, longest wait ${formatDuration(Math.max(...gaps))}`;
  }
}
