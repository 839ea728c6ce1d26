import { describe, expect, it } from "vitest";
import { leaseLeftMs, newLease } from "../../../src/model/lease.js";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const NOW_MS = 1_795_260_000_000;
const at = (nowMs: number, ms: number, start = "first") => ({ nowMs, host: { start, ms } });

/** For half an hour, from an hour after the start of the host. */
const lease = newLease(30 * MINUTE_MS, at(NOW_MS, HOUR_MS));

describe("a lease", () => {
  it("tells people when it ends", () => {
    expect(lease.leaseUntilMs).toBe(NOW_MS + 30 * MINUTE_MS);
  });

  it.each([
    ["goes right", 10 * MINUTE_MS],
    ["is set back by a year", 10 * MINUTE_MS - 365 * 24 * HOUR_MS],
    ["is set forward by a year", 10 * MINUTE_MS + 365 * 24 * HOUR_MS],
  ])("lasts as long as it says when the wall clock %s", (_, passedMs) => {
    expect(leaseLeftMs(lease, at(NOW_MS + passedMs, HOUR_MS + 10 * MINUTE_MS))).toBe(20 * MINUTE_MS);
    expect(leaseLeftMs(lease, at(NOW_MS + passedMs, HOUR_MS + 30 * MINUTE_MS))).toBe(0);
  });

  it("goes by the wall clock after a restart of the host", () => {
    expect(leaseLeftMs(lease, at(NOW_MS + 10 * MINUTE_MS, MINUTE_MS, "second"))).toBe(20 * MINUTE_MS);
    expect(leaseLeftMs(lease, at(NOW_MS + 31 * MINUTE_MS, MINUTE_MS, "second"))).toBe(-MINUTE_MS);
  });

  it.each([
    ["after a restart", "second"],
    ["with a host's clock that began anew without a restart", "first"],
  ])("is not eternal %s with a wall clock that was set back", (_, start) => {
    expect(leaseLeftMs(lease, at(NOW_MS - 24 * HOUR_MS, MINUTE_MS, start))).toBe(29 * MINUTE_MS);
    expect(leaseLeftMs(lease, at(NOW_MS - 24 * HOUR_MS, 30 * MINUTE_MS, start))).toBe(0);
  });

  it("goes by the wall clock if it is of an earlier version", () => {
    const { leaseHost: _, ...old } = lease;
    expect(leaseLeftMs(old, at(NOW_MS + 10 * MINUTE_MS, 0))).toBe(20 * MINUTE_MS);
  });
});
