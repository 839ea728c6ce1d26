import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  FREE_PACE,
  type GuestLook,
  type GuestPace,
  LEAST_BYTES_PER_SECOND,
  nextPace,
  worstMeanMs,
} from "../../../src/model/guest-pace.js";

const MIB = 2 ** 20;

const well: GuestLook = { meanWriteMs: 1, boundMs: 20, readBytesPerSecond: 100 * MIB };
const ill: GuestLook = { ...well, meanWriteMs: 21 };
const silent: GuestLook = { ...well, meanWriteMs: undefined };

function after(pace: GuestPace, ...looks: readonly GuestLook[]): readonly number[] {
  const rates: number[] = [];
  for (const look of looks) {
    pace = nextPace(pace, look);
    rates.push(pace.bytesPerSecond / MIB);
  }
  return rates;
}

describe("nextPace", () => {
  it("halves what was read, look by look, down to a floor", () => {
    expect(after(FREE_PACE, ill, ill, ill, ill, ill, ill)).toEqual([50, 25, 12.5, 6.25, 4, 4]);
  });

  it("gives a quarter more with each look, and lets go at the speed of before", () => {
    expect(after(FREE_PACE, ill, well, well, well, well)).toEqual([50, 62.5, 78.125, 97.65625, Infinity]);
  });

  it("counts a mean at the bound as well", () => {
    expect(after(FREE_PACE, { ...ill, meanWriteMs: 20 })).toEqual([Infinity]);
  });

  it("waits for six silent looks: writes that hang do not end", () => {
    const slow = nextPace(FREE_PACE, ill);
    expect(after(slow, silent, silent, silent, silent, silent, silent, silent)).toEqual([
      ...[50, 50, 50, 50, 50],
      62.5,
      78.125,
    ]);
    expect(after(slow, silent, silent, silent, silent, silent, ill, silent)).toEqual([
      ...[50, 50, 50, 50, 50],
      ...[25, 25],
    ]);
  });

  it("never is below the floor, never above the half of what is too much, and free at last if the guest is well", () => {
    const look = fc.record({
      meanWriteMs: fc.option(fc.double({ min: 0, max: 100, noNaN: true }), { nil: undefined }),
      boundMs: fc.constant(20),
      readBytesPerSecond: fc.double({ min: 0, max: 2 ** 33, noNaN: true }),
    });
    fc.assert(
      fc.property(fc.array(look), (looks) => {
        let pace = FREE_PACE;
        for (const each of looks) {
          const before = pace;
          pace = nextPace(pace, each);
          expect(pace.bytesPerSecond).toBeGreaterThanOrEqual(LEAST_BYTES_PER_SECOND);
          if ((each.meanWriteMs ?? 0) <= 20) continue;
          const had = before.bytesPerSecond === Infinity ? each.readBytesPerSecond : before.bytesPerSecond;
          expect(pace.bytesPerSecond).toBe(Math.max(LEAST_BYTES_PER_SECOND, had / 2));
        }
        for (let looksLeft = 60; looksLeft > 0; looksLeft--) pace = nextPace(pace, well);
        expect(pace.bytesPerSecond).toBe(Infinity);
      }),
    );
  });
});

describe("worstMeanMs", () => {
  const figures = (entries: Record<string, readonly [number, number]>) =>
    new Map(
      Object.entries(entries).map(([target, [operations, totalMs]]) => [target, { operations, totalMs }]),
    );

  it("is that of the disk whose writes took longest", () => {
    const before = figures({ vda: [100, 1000], vdb: [5, 5] });
    expect(worstMeanMs(before, figures({ vda: [110, 1020], vdb: [7, 85] }))).toBe(40);
  });

  it("is unknown without a write, for a new device, and for one that counts anew", () => {
    const before = figures({ vda: [100, 1000], vdb: [100, 1000] });
    expect(worstMeanMs(before, figures({ vda: [100, 1000], vdb: [3, 900], vdc: [1, 900] }))).toBeUndefined();
  });
});
