import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { Clock } from "../ports/clock.js";

let hostStart: string | undefined;

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonicMs: () => performance.now(),
  hostTime: () => {
    hostStart ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    return { start: hostStart, ms: Number(process.hrtime.bigint() / 1_000_000n) };
  },
  sleep: (ms, signal) => delay(ms, undefined, { signal }),
};
