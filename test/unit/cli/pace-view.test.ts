import { describe, expect, it } from "vitest";
import { limitsInWords, paceInWords, waitsInWords } from "../../../src/cli/pace-view.js";

const MIB = 2 ** 20;
const none = { readBytesPerSecond: undefined, writeBytesPerSecond: undefined };

describe("waitsInWords", () => {
  it("names what was waited for, and is silent otherwise", () => {
    expect(waitsInWords({ readLimitMs: 1500, writeLimitMs: 0, guestLatencyMs: 90_000 })).toBe(
      "1.5 s for the read limit, 1 min 30 s for the guest's writes",
    );
    expect(waitsInWords({ readLimitMs: 0, writeLimitMs: 0, guestLatencyMs: 0 })).toBeUndefined();
    expect(waitsInWords(null)).toBeUndefined();
  });
});

describe("paceInWords", () => {
  it("tells what holds a backup back now, and did so far", () => {
    const waits = { readLimitMs: 0, writeLimitMs: 2000, guestLatencyMs: 0 };
    const pace = { ...none, writeBytesPerSecond: 10 * MIB, guestBytesPerSecond: 4 * MIB, waits };
    expect(paceInWords(pace)).toBe(
      "write 10 MiB/s, read 4 MiB/s for the guest's writes, waited 2 s for the write limit",
    );
    expect(paceInWords({ ...none, guestBytesPerSecond: undefined, waits })).toBe(
      "no limit now, waited 2 s for the write limit",
    );
  });
});

describe("limitsInWords", () => {
  it("has the hours with their zone", () => {
    const hours = [
      { ...none, from: "08:00", until: "18:00", readBytesPerSecond: 20 * MIB, writeBytesPerSecond: MIB },
    ];
    const limits = {
      ...none,
      readBytesPerSecond: 100 * MIB,
      hours,
      timeZone: "Europe/Berlin",
      guestLatencyMs: 20,
    };
    expect(limitsInWords(limits)).toBe(
      "read 100 MiB/s, from 08:00 until 18:00 read 20 MiB/s and write 1 MiB/s (Europe/Berlin), guest's writes within 20 ms",
    );
  });
});
