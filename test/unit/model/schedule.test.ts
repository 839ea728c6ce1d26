import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { retryPauseMs } from "../../../src/model/retry.js";
import { jitterOf, nextTimeOfDay, Schedule, scheduleProblem } from "../../../src/model/schedule.js";
import { isTimeZone, wallClock } from "../../../src/model/time-zone.js";

const MINUTE = 60_000;
const DAY = 86_400_000;
const at = (text: string): number => Date.parse(text);
const texts = (moments: readonly number[]): readonly string[] =>
  moments.map((moment) => new Date(moment).toISOString().replace(".000Z", "Z"));

describe("Schedule.next", () => {
  const next = (expression: string, zone: string, from: string, count: number): readonly string[] =>
    texts(new Schedule(expression, zone).next(at(from), count));

  it("runs a time that the change to summer time skips at the first instant after the gap", () => {
    // 2026-03-29: 02:00 to 03:00 does not exist in Berlin.
    expect(next("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3)).toEqual([
      "2026-03-28T01:30:00Z",
      "2026-03-29T01:00:00Z",
      "2026-03-30T00:30:00Z",
    ]);
    // 2026-03-08 in New York.
    expect(next("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2)).toEqual([
      "2026-03-08T07:00:00Z",
      "2026-03-09T06:30:00Z",
    ]);
  });

  it("makes one run of several times in one gap, and of the time at its end", () => {
    expect(next("*/20 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 4)).toEqual([
      "2026-03-29T01:00:00Z",
      "2026-03-29T01:20:00Z",
      "2026-03-29T01:40:00Z",
      "2026-03-30T00:00:00Z",
    ]);
  });

  it("runs a time that exists twice once, the first time", () => {
    // 2026-10-25: 02:00 to 03:00 comes twice in Berlin.
    expect(next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2)).toEqual([
      "2026-10-25T00:30:00Z",
      "2026-10-26T01:30:00Z",
    ]);
    // 2026-11-01 in New York.
    expect(next("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2)).toEqual([
      "2026-11-01T05:30:00Z",
      "2026-11-02T06:30:00Z",
    ]);
  });

  it("knows changes of half an hour, as on Lord Howe", () => {
    // 2026-10-04: 02:00 to 02:30 is skipped; 2026-04-05: 01:30 to 02:00 comes twice.
    expect(next("15 2 * * *", "Australia/Lord_Howe", "2026-10-02T16:00:00Z", 2)).toEqual([
      "2026-10-03T15:30:00Z",
      "2026-10-04T15:15:00Z",
    ]);
    expect(next("45 1 * * *", "Australia/Lord_Howe", "2026-04-03T20:00:00Z", 2)).toEqual([
      "2026-04-04T14:45:00Z",
      "2026-04-05T15:15:00Z",
    ]);
  });

  it("knows a day that a zone has left out", () => {
    // Samoa had no 30 December 2011.
    expect(next("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 3)).toEqual([
      "2011-12-29T22:00:00Z",
      "2011-12-30T10:00:00Z",
      "2011-12-30T22:00:00Z",
    ]);
  });

  it("understands seconds, names, last days and weekdays", () => {
    expect(next("*/30 * * * * *", "UTC", "2026-01-01T00:00:00Z", 2)).toEqual([
      "2026-01-01T00:00:30Z",
      "2026-01-01T00:01:00Z",
    ]);
    expect(next("0 3 L * *", "UTC", "2026-02-01T00:00:00Z", 2)).toEqual([
      "2026-02-28T03:00:00Z",
      "2026-03-31T03:00:00Z",
    ]);
    expect(next("0 3 * * sun", "UTC", "2026-11-21T00:00:00Z", 1)).toEqual(["2026-11-22T03:00:00Z"]);
    expect(next("0 0 29 2 0", "UTC", "2026-01-01T00:00:00Z", 2)).toEqual([
      "2032-02-29T00:00:00Z",
      "2060-02-29T00:00:00Z",
    ]);
  });
});

/** Looks at every minute of the wall clock, as a person with a calendar would. */
function naive(
  minutes: ReadonlySet<number>,
  hours: ReadonlySet<number>,
  zone: string,
  fromMs: number,
  untilMs: number,
): readonly number[] {
  const matches = (wallMs: number): boolean =>
    minutes.has(Math.floor(wallMs / MINUTE) % 60) && hours.has(Math.floor(wallMs / (60 * MINUTE)) % 24);
  const found: number[] = [];
  // The latest that clocks have shown: what they show again counts no more.
  let shown = wallClock(zone, fromMs - 3 * 60 * MINUTE);
  for (let instant = fromMs - 3 * 60 * MINUTE; instant <= untilMs; instant += MINUTE) {
    const wall = wallClock(zone, instant);
    let isDue = false;
    for (; shown < wall; shown += MINUTE) isDue ||= matches(shown + MINUTE);
    if (isDue && instant > fromMs) found.push(instant);
  }
  return found;
}

/** Days on which clocks change, and some on which they do not. */
const DAYS = [
  ["Europe/Berlin", "2026-03-29"],
  ["Europe/Berlin", "2026-10-25"],
  ["America/New_York", "2026-03-08"],
  ["America/New_York", "2026-11-01"],
  ["Australia/Lord_Howe", "2026-04-05"],
  ["Australia/Lord_Howe", "2026-10-04"],
  ["Asia/Kathmandu", "2026-03-29"],
  ["UTC", "2026-02-28"],
] as const;

const cases = fc
  .record({
    day: fc.constantFrom(...DAYS),
    minutes: fc.uniqueArray(fc.integer({ min: 0, max: 59 }), { minLength: 1, maxLength: 4 }),
    // Clocks change at 1, 2 or 3.
    hours: fc.uniqueArray(fc.oneof(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 0, max: 23 })), {
      minLength: 1,
      maxLength: 6,
    }),
    offset: fc.integer({ min: -1440, max: 600 }),
  })
  .map(({ day: [zone, date], offset, ...fields }) => ({
    ...fields,
    zone,
    fromMs: at(`${date}T00:00:00Z`) + offset * MINUTE,
  }));

describe("Schedule, against a look at every minute", () => {
  const RUNS = { numRuns: 60 };

  it("names the same moments, also around changes of the clock", () => {
    fc.assert(
      fc.property(cases, ({ zone, minutes, hours, fromMs }) => {
        const expected = naive(new Set(minutes), new Set(hours), zone, fromMs, fromMs + 2 * DAY);
        const schedule = new Schedule(`${minutes.join()} ${hours.join()} * * *`, zone);
        expect(texts(schedule.next(fromMs, expected.length))).toEqual(texts(expected));
      }),
      RUNS,
    );
  });

  it("finds the newest moment that is due and counts the others", () => {
    const query = fc.record({
      handledAgo: fc.integer({ min: 0, max: 2880 }),
      delay: fc.integer({ min: 0, max: 90 }),
    });
    fc.assert(
      fc.property(cases, query, ({ zone, minutes, hours, fromMs: nowMs }, { handledAgo, delay }) => {
        const handledMs = nowMs - handledAgo * MINUTE;
        const moments = naive(new Set(minutes), new Set(hours), zone, handledMs, nowMs);
        const ripe = moments.filter((moment) => moment + delay * MINUTE <= nowMs);
        const newest = ripe.at(-1);
        const schedule = new Schedule(`${minutes.join()} ${hours.join()} * * *`, zone);
        expect(schedule.due({ handledMs, nowMs, delayOf: () => delay * MINUTE })).toEqual(
          newest === undefined ? undefined : { scheduledMs: newest, missedCount: ripe.length - 1 },
        );
      }),
      RUNS,
    );
  });
});

describe("Schedule.due", () => {
  const nightly = new Schedule("30 2 * * *", "Europe/Berlin");

  it("names only the newest of the moments that were missed", () => {
    expect(nightly.due({ handledMs: at("2026-11-10T12:00:00Z"), nowMs: at("2026-11-15T12:00:00Z") })).toEqual(
      {
        scheduledMs: at("2026-11-15T01:30:00Z"),
        missedCount: 4,
      },
    );
  });

  it("has nothing to say before the next moment, nor when the clock has been set back", () => {
    const handledMs = at("2026-11-15T01:30:00Z");
    expect(nightly.due({ handledMs, nowMs: at("2026-11-16T01:29:59Z") })).toBeUndefined();
    expect(nightly.due({ handledMs, nowMs: at("2026-11-14T12:00:00Z") })).toBeUndefined();
  });

  it("leaves out moments that have run before the clock was set back", () => {
    const ran = new Set([at("2026-11-15T01:30:00Z")]);
    const query = { handledMs: at("2026-11-14T12:00:00Z"), handled: ran };
    expect(nightly.due({ ...query, nowMs: at("2026-11-15T02:00:00Z") })).toBeUndefined();
    expect(nightly.due({ ...query, nowMs: at("2026-11-16T02:00:00Z") })).toEqual({
      scheduledMs: at("2026-11-16T01:30:00Z"),
      missedCount: 0,
    });
  });

  it("counts no more than a thousand", () => {
    const often = new Schedule("* * * * *", "UTC");
    expect(often.due({ handledMs: 0, nowMs: at("2026-01-01T00:00:00Z") })?.missedCount).toBe(1000);
  });
});

describe("scheduleProblem", () => {
  it.each(["30 2 * * *", "0 22-23 ? * mon-fri", "@daily", "*/5 * * * * *", "0 3 29 2 0"])(
    "accepts %j",
    (expression) => {
      expect(scheduleProblem(expression)).toBeUndefined();
    },
  );

  it.each([
    ["61 * * * *", "minute"],
    ["* * * *", "5 or 6 fields"],
    ["0 0 31 2 *", "dayOfMonth"],
    ["nightly", ""],
    ["", ""],
    ["0 0 29 2 1#1", "it never comes"],
  ])("says what is wrong with %j", (expression, words) => {
    expect(scheduleProblem(expression)).toContain(words);
  });
});

describe("nextTimeOfDay", () => {
  it("is the next one by the clocks of the zone, and the end of the gap that skips it", () => {
    const end = (from: string, time = "06:00"): readonly string[] =>
      texts([nextTimeOfDay(time, "Europe/Berlin", at(from))]);
    expect(end("2026-07-01T00:30:00Z")).toEqual(["2026-07-01T04:00:00Z"]);
    expect(end("2026-07-01T21:30:00Z")).toEqual(["2026-07-02T04:00:00Z"]);
    expect(end("2026-07-01T04:00:00Z")).toEqual(["2026-07-02T04:00:00Z"]);
    expect(end("2026-03-29T00:00:00Z", "02:15")).toEqual(["2026-03-29T01:00:00Z"]);
  });
});

describe("jitterOf", () => {
  it("stays below its bound, is always the same, and differs between jobs and moments", () => {
    const moments = Array.from({ length: 200 }, (_, index) => index * DAY);
    const of = (job: string) => moments.map((moment) => jitterOf(job, moment, 600_000));
    expect(of("a")).toEqual(of("a"));
    for (const jitter of of("a")) {
      expect(jitter).toBeGreaterThanOrEqual(0);
      expect(jitter).toBeLessThan(600_000);
    }
    expect(new Set(of("a")).size).toBeGreaterThan(190);
    expect(of("a").filter((jitter, index) => jitter === of("b")[index]).length).toBeLessThan(5);
    const mean = of("a").reduce((sum, jitter) => sum + jitter, 0) / 200;
    expect(Math.abs(mean - 300_000)).toBeLessThan(60_000);
    expect(jitterOf("a", 1, 0)).toBe(0);
  });
});

describe("retryPauseMs", () => {
  it("doubles from a minute to half an hour", () => {
    expect([1, 2, 3, 4, 5, 6, 7, 20].map((failures) => retryPauseMs(failures) / MINUTE)).toEqual([
      1, 2, 4, 8, 16, 30, 30, 30,
    ]);
  });
});

describe("isTimeZone", () => {
  it("knows names of zones, and no others", () => {
    expect(["UTC", "Europe/Berlin", "Mars/Olympus", ""].map(isTimeZone)).toEqual([true, true, false, false]);
  });
});
