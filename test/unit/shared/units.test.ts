import { describe, expect, it } from "vitest";
import { randomId, timedId } from "../../../src/shared/ids.js";
import { formatBytes, formatDuration, GIB, KIB, MIB, parseBytes, TIB } from "../../../src/shared/units.js";

describe("formatBytes", () => {
  it.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [KIB, "1 KiB"],
    [1536, "1.5 KiB"],
    [10 * MIB, "10 MiB"],
    [1.25 * GIB, "1.3 GiB"],
    [2000 * TIB, "2000 TiB"],
  ])("writes %d as %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  it.each([
    [MIB - 1, "1 MiB"],
    [GIB - 1, "1 GiB"],
    [TIB - 1, "1 TiB"],
  ])("rounds %d up into the next unit: %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));
});

describe("formatDuration", () => {
  it.each([
    [0, "0 ms"],
    [12.4, "12 ms"],
    [999.4, "999 ms"],
    [999.6, "1 s"],
    [1500, "1.5 s"],
    [59_940, "59.9 s"],
    [59_960, "1 min 0 s"],
    [60_000, "1 min 0 s"],
    [119_600, "2 min 0 s"],
    [3_599_600, "1 h 0 min"],
    [3_600_000, "1 h 0 min"],
    [5_430_000, "1 h 30 min"],
  ])("writes %d ms as %s", (ms, text) => expect(formatDuration(ms)).toBe(text));
});

describe("randomId", () => {
  it("has the length asked for, of letters and digits that cannot be confused", () => {
    for (let length = 0; length < 40; length++) {
      expect(randomId(length)).toMatch(new RegExp(`^[0-9a-hjkmnp-tv-z]{${length}}$`));
    }
  });

  it("does not repeat itself", () => {
    expect(new Set(Array.from({ length: 1000 }, () => randomId(8))).size).toBe(1000);
  });
});

describe("timedId", () => {
  it("begins with the time in UTC, to the second", () => {
    expect(timedId(Date.UTC(2026, 10, 21, 10, 53, 0, 999))).toMatch(/^20261121T105300Z-[0-9a-z]{6}$/);
  });

  it("sorts by time", () => {
    const ids = [0, 1e9, 1e12, 4e12].map((timeMs) => timedId(timeMs));
    expect(ids.toSorted()).toEqual(ids);
  });
});

describe("parseBytes", () => {
  it.each([
    ["0", 0],
    ["4096", 4096],
    ["64K", 64 * KIB],
    ["1.5G", 1.5 * GIB],
    ["2T", 2 * TIB],
  ])("reads %s", (text, bytes) => expect(parseBytes(text)).toBe(bytes));

  it.each(["", "G", "-1", "1e3", "10 G", "10g", "10GiB", "0.3", "9000000T"])("refuses %j", (text) =>
    expect(parseBytes(text)).toBeUndefined(),
  );
});
