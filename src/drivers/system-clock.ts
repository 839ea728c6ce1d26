import { setTimeout as delay } from "node:timers/promises";
import type { Clock } from "../ports/clock.js";

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep: (ms, signal) => delay(ms, undefined, { signal }),
};
