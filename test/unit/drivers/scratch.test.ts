import { describe, expect, it } from "vitest";
import { isWorthReleasing } from "../../../src/drivers/running/scratch.js";
import { snapshotNodes } from "../../../src/model/snapshot-plan.js";
import { GIB, MIB, TIB } from "../../../src/shared/units.js";

describe("isWorthReleasing", () => {
  it.each([
    [10 * TIB, undefined, true],
    [100 * GIB, GIB, true],
    [TIB, 512 * MIB, true],
    [TIB + GIB, 512 * MIB, false],
  ])("for a disk of %d bytes with a limit of %d is %s", (sizeBytes, limitBytes, expected) => {
    const nodes = snapshotNodes("abcdefgh", 0);
    const place = { target: "vda", format: "qcow2", scratchPath: "/s", previousBitmaps: [] } as const;
    expect(isWorthReleasing({ ...place, nodes, sizeBytes }, limitBytes)).toBe(expected);
  });
});
