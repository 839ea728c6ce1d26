import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { parseTimeText } from "../../../src/model/time-text.js";

describe("parseTimeText", () => {
  const before = process.env["TZ"];

  beforeEach(() => void (process.env["TZ"] = "Europe/Berlin"));
  afterEach(() => {
    if (before === undefined) delete process.env["TZ"];
    else process.env["TZ"] = before;
  });

  it.each([
    ["2026-11-20T03:00:00Z", "2026-11-20T03:00:00.000Z"],
    ["2026-11-20 03:00:00.25+05:30", "2026-11-19T21:30:00.250Z"],
    ["2026-11-20T03:00:00.123456789-01:00", "2026-11-20T04:00:00.123Z"],
    ["2026-11-20", "2026-11-19T23:00:00.000Z"],
    ["2026-11-20 03:00", "2026-11-20T02:00:00.000Z"],
    [" 2026-07-20 03:00:59 ", "2026-07-20T01:00:59.000Z"],
    // Clocks are put back: it comes twice, and is the first.
    ["2026-10-25 02:30", "2026-10-25T00:30:00.000Z"],
    ["2026-10-25 02:30+01:00", "2026-10-25T01:30:00.000Z"],
  ])("reads %s as %s", (text, moment) => {
    expect(new Date(parseTimeText(text)).toISOString()).toBe(moment);
  });

  it.each([
    ["yesterday", /Expected a moment as RFC 3339 .* or YYYY-MM-DD.*, got "yesterday"/],
    ["2026-11-20 3:00", /Expected a moment/],
    ["2026-11-20Z", /Expected a moment/],
    ["2026-02-30", /Expected a date and time that exist/],
    ["2026-11-20 24:00", /Expected a date and time that exist/],
    ["2026-11-20T03:00:00+24:00", /Expected an offset/],
    ["2026-03-29 02:30", /Expected a time that exists in Europe\/Berlin.* put forward/],
  ])("refuses %s and says what it expected", (text, message) => {
    expect(() => parseTimeText(text)).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
    expect(() => parseTimeText(text)).toThrow(message);
  });
});
