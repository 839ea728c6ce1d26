import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TokenBucket } from "../../../src/shared/token-bucket.js";
import { ManualClock } from "../../support/manual-clock.js";

describe("TokenBucket.spend", () => {
  it("lets a burst pass, then tells how long the debt takes", async () => {
    const clock = new ManualClock();
    const bucket = new TokenBucket(1000, clock);
    expect(bucket.spend(250)).toBe(0);
    expect(bucket.spend(100)).toBe(100);
    expect(bucket.spend(100)).toBe(200);
    await clock.advance(200);
    expect(bucket.spend(0)).toBe(0);
    await clock.advance(3_600_000);
    expect(bucket.spend(350)).toBe(100);
  });

  it("keeps to the rate however spenders that obey it come", async () => {
    const bytes = fc.integer({ min: 1, max: 5000 });
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(bytes, fc.nat(50)), { minLength: 1 }), async (spends) => {
        const clock = new ManualClock(0);
        const bucket = new TokenBucket(10_000, clock);
        let total = 0;
        for (const [spent, pauseMs] of spends) {
          const waitMs = bucket.spend(spent);
          await clock.advance(waitMs + pauseMs);
          total += spent;
          expect(total).toBeLessThanOrEqual(2500 + clock.now() * 10 + 1e-6);
        }
      }),
    );
  });

  it("goes on with another rate from the moment at which that changes, debts included", async () => {
    const clock = new ManualClock();
    const bucket = new TokenBucket(1000, clock);
    expect(bucket.spend(750)).toBe(500);
    await clock.advance(100);
    bucket.bytesPerSecond = 200;
    expect(bucket.debtMs()).toBe(2000);
    await clock.advance(2000);
    expect(bucket.debtMs()).toBe(0);
    await clock.advance(3_600_000);
    expect(bucket.spend(60)).toBe(50);
  });

  it("has no debts while there is no limit, and no store of it afterwards", async () => {
    const clock = new ManualClock();
    const bucket = new TokenBucket(1000, clock);
    expect(bucket.spend(10_000)).toBeGreaterThan(0);
    bucket.bytesPerSecond = Infinity;
    expect([bucket.debtMs(), bucket.spend(2 ** 40)]).toEqual([0, 0]);
    await clock.advance(1000);
    bucket.bytesPerSecond = 1000;
    expect(bucket.spend(100)).toBe(100);
  });
});
