import { describe, expect, it } from "vitest";
import { type LayerBitmap, mergedBitmaps } from "../../../src/model/merged-bitmaps.js";

const cp = (order: number): string => `fleece:1:${order}:1:cp${order}`;
const bitmap = (name: string, state: Partial<LayerBitmap> = {}): LayerBitmap => ({
  ...{ name, granularityBytes: 65_536, recording: false, inconsistent: false },
  ...state,
});
const on = { recording: true };
const broken = { inconsistent: true };

describe("mergedBitmaps", () => {
  it("adds what the lower layer lacks, and silences what the merge itself would record", () => {
    const layers = {
      lower: [bitmap(cp(1)), bitmap(cp(2), on)],
      upper: [bitmap(cp(2)), bitmap(cp(3), on)],
      expected: [cp(1), cp(2)],
    };
    expect(mergedBitmaps("commit", layers)).toEqual({
      disabled: [cp(2)],
      removed: [],
      carried: [
        { name: cp(2), enable: false },
        { name: cp(3), add: 65_536, enable: true },
      ],
    });
    expect(mergedBitmaps("stream", layers)).toEqual({
      disabled: [],
      removed: [],
      carried: [
        { name: cp(1), add: 65_536, enable: false },
        { name: cp(2), enable: false },
      ],
    });
  });

  it("lets the base record the merge where the upper layer did not track its changes", () => {
    const layers = { lower: [bitmap(cp(1), on)], upper: [bitmap(cp(1), broken)], expected: [cp(1)] };
    expect(mergedBitmaps("commit", layers)).toEqual({ disabled: [], removed: [], carried: [] });
  });

  it.each([
    ["is missing below", { lower: [bitmap(cp(1))], upper: [bitmap(cp(2)), bitmap(cp(3), on)] }],
    [
      "is inconsistent below",
      { lower: [bitmap(cp(1)), bitmap(cp(2), broken)], upper: [bitmap(cp(2)), bitmap(cp(3), on)] },
    ],
  ])("keeps no checkpoint from before a part that %s", (_, { lower, upper }) => {
    const layers = { lower, upper, expected: [cp(1), cp(2)] };
    const committed = mergedBitmaps("commit", layers);
    expect(committed.removed).toEqual(lower.map(({ name }) => name));
    expect(committed.carried.map(({ name }) => name)).toEqual([cp(3)]);
    const streamed = mergedBitmaps("stream", layers);
    expect(streamed).toMatchObject({ removed: [cp(2)], carried: [] });
  });

  it.each(["commit", "stream"] as const)(
    "keeps no checkpoint whose changes went untracked above: %s",
    (how) => {
      const layers =
        how === "commit"
          ? { lower: [bitmap(cp(1))], upper: [bitmap(cp(2), broken), bitmap(cp(3), on)], expected: [cp(1)] }
          : { lower: [bitmap(cp(1), on)], upper: [bitmap(cp(3), on)], expected: [cp(1)] };
      const { removed, carried } = mergedBitmaps(how, layers);
      expect(removed).toEqual(how === "commit" ? [cp(1)] : []);
      expect(carried.map(({ name }) => name)).toEqual(how === "commit" ? [cp(3)] : []);
    },
  );
});
