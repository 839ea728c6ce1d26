import { describe, expect, it } from "vitest";
import { durationOption } from "../../../src/cli/duration-option.js";

describe("durationOption", () => {
  it.each([
    ["1s", 1000],
    ["90s", 90_000],
    ["30m", 1_800_000],
    ["1.5h", 5_400_000],
    ["2d", 172_800_000],
    ["0s", 0],
    ["0.001s", 1],
  ])("reads %s as %i ms", (text, ms) => {
    expect(durationOption(text)).toBe(ms);
  });

  it.each([
    "",
    "30",
    "m",
    "30 m",
    "-1s",
    "+1s",
    "1e3s",
    "1h30m",
    "30M",
    "5ms",
    "5w",
    "0x1s",
    ".5s",
    "1.s",
    "Infinitys",
  ])("refuses %j and names the units", (text) => {
    expect(() => durationOption(text)).toThrow(/Expected a number with a unit, s, m, h or d/);
  });
});
