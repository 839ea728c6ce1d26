import { describe, expect, it } from "vitest";
import { type BackupLimits, ratesAt } from "../../../src/model/backup-limits.js";

const MIB = 2 ** 20;

const byDay: BackupLimits = {
  readBytesPerSecond: 100 * MIB,
  hours: [
    { fromMinute: 22 * 60, untilMinute: 6 * 60, writeBytesPerSecond: 50 * MIB },
    { fromMinute: 8 * 60, untilMinute: 18 * 60, readBytesPerSecond: 20 * MIB },
    { fromMinute: 12 * 60, untilMinute: 13 * 60, readBytesPerSecond: MIB, writeBytesPerSecond: 5 * MIB },
  ],
  timeZone: "Europe/Berlin",
};

describe("ratesAt", () => {
  it.each([
    ["2026-01-15T07:59:59+01:00", 100, Infinity],
    ["2026-01-15T08:00:00+01:00", 20, Infinity],
    ["2026-01-15T12:30:00+01:00", 20, 5],
    ["2026-01-15T17:59:59+01:00", 20, Infinity],
    ["2026-01-15T18:00:00+01:00", 100, Infinity],
    ["2026-01-15T22:00:00+01:00", 100, 50],
    ["2026-01-16T00:00:00+01:00", 100, 50],
    ["2026-01-16T05:59:59+01:00", 100, 50],
    ["2026-01-16T06:00:00+01:00", 100, Infinity],
    // The same hours by the zone's clocks in summer.
    ["2026-07-15T08:00:00+02:00", 20, Infinity],
    ["2026-07-15T07:59:59+02:00", 100, Infinity],
  ])("at %s: read %d, write %d MiB/s", (time, read, write) => {
    expect(ratesAt(byDay, Date.parse(time))).toEqual({
      readBytesPerSecond: read * MIB,
      writeBytesPerSecond: write * MIB,
    });
  });
});
