import { describe, expect, it } from "vitest";
import type { RunRecord } from "../../../src/model/run-record.js";
import { DAY_MS, halfPastTwo, plusDays, YEAR } from "./calendar.js";
import { Random } from "./random.js";
import { type Traces, YearWorld } from "./year-world.js";

/** `npm run test:year` lives through all of 2027; `npm test` through some nights of it. */
const IS_WHOLE = process.env["FLEECE_YEAR"] === "whole";
const SEED = Number(process.env["FLEECE_YEAR_SEED"] ?? 2027);
/** After how many nights everything is restored. */
const RESTORE_EVERY = IS_WHOLE ? 15 : 6;
/** Which night the last one is compared with. */
const REFERENCE_NIGHT = IS_WHOLE ? 30 : 8;

const HOUR_MS = DAY_MS / 24;

type Event = keyof typeof EVENTS;

interface Night {
  readonly date: string;
  readonly event: Event;
}

const SOME_NIGHTS: readonly Night[] = [
  { date: `${YEAR}-03-26`, event: "quiet" },
  { date: `${YEAR}-03-27`, event: "kill QEMU" },
  { date: `${YEAR}-03-28`, event: "add disk" },
  { date: `${YEAR}-03-29`, event: "kill agent" },
  { date: `${YEAR}-03-30`, event: "resize disk" },
  { date: `${YEAR}-03-31`, event: "full file system" },
  { date: `${YEAR}-10-29`, event: "downtime" },
  { date: `${YEAR}-10-30`, event: "cut off" },
  { date: `${YEAR}-10-31`, event: "domain off" },
  { date: `${YEAR}-11-01`, event: "clock back" },
  { date: `${YEAR}-11-02`, event: "clock forward" },
  { date: `${YEAR}-11-03`, event: "reserve" },
];

/** Every other night has its event, on average; each kind comes once in the first weeks. */
function allNights(random: Random): readonly Night[] {
  const kinds = Object.keys(EVENTS) as Event[];
  const first = [...kinds];
  const nights: Night[] = [];
  for (let date = `${YEAR}-01-01`; date <= `${YEAR}-12-31`; date = plusDays(date, 1)) {
    const hasEvent = nights.length > 2 && random.below(2) === 0;
    const event = hasEvent ? (first.shift() ?? random.of(kinds)) : "quiet";
    if (event === "downtime") date = plusDays(date, 7);
    nights.push({ date, event });
  }
  return nights;
}

/** Nights whose repository was on a file system that was full. */
let fullNights = 0;
let canFill = false;

/** What is done on the day before the night and in it. */
const EVENTS = {
  quiet: run,
  "kill QEMU": async (world: YearWorld, date: string) => {
    await world.killQemu();
    await run(world, date);
  },
  "restart QEMU": async (world: YearWorld, date: string) => {
    await world.restartQemu();
    await world.writes();
    await run(world, date);
  },
  "domain off": async (world: YearWorld, date: string) => {
    await world.shutDown();
    await run(world, date);
    await world.powerOn();
  },
  "restart agent": async (world: YearWorld, date: string) => {
    await world.stopAgent();
    await world.startAgent();
    await run(world, date);
  },
  "kill agent": async (world: YearWorld, date: string) => {
    await cutOff(world, date, () => world.killedAgent(halfPastTwo(date)));
  },
  "cut off": async (world: YearWorld, date: string) => {
    await cutOff(world, date, () => world.cutOff(halfPastTwo(date)));
  },
  "add disk": async (world: YearWorld, date: string) => {
    await world.addDisk();
    await world.writes();
    await run(world, date);
  },
  "resize disk": async (world: YearWorld, date: string) => {
    await world.resizeDisk();
    await run(world, date);
  },
  reserve: async (world: YearWorld, date: string) => {
    await world.setReserve("100T");
    await fail(world, date);
    await world.setReserve("1M");
  },
  "full file system": async (world: YearWorld, date: string) => {
    if (!(await world.fillRepository())) return run(world, date);
    fullNights++;
    await fail(world, date);
    await world.emptyRepository();
  },
  downtime: async (world: YearWorld, date: string) => {
    await world.stopAgent();
    world.skipTo(halfPastTwo(date) + 12 * HOUR_MS);
    const known = await world.recordIds();
    await world.startAgent();
    const [record, ...more] = await world.runsSince(known);
    expect(more).toEqual([]);
    if (world.isHandled(halfPastTwo(date))) {
      expect(record).toBeUndefined();
      return;
    }
    let missedCount = 0;
    while (!world.isHandled(halfPastTwo(plusDays(date, -1 - missedCount)))) missedCount++;
    expect(record).toMatchObject({ trigger: "catch-up", scheduledMs: halfPastTwo(date), missedCount });
    await world.expectBackedUp(recordOf(record));
  },
  /** Two days back: what has run does not run again, but somebody may run it. */
  "clock back": async (world: YearWorld, date: string) => {
    await run(world, date);
    await world.setClock(halfPastTwo(plusDays(date, -2)) + HOUR_MS);
    for (const again of [plusDays(date, -1), date]) {
      await world.passUntil(halfPastTwo(again) - HOUR_MS);
      await world.writes();
      await run(world, again);
      await world.writes();
      await world.expectBackedUp(await world.requestRun());
      await world.check();
    }
  },
  /** Three days ahead, and after one run back again. */
  "clock forward": async (world: YearWorld, date: string) => {
    const before = world.clock.now();
    const newest = halfPastTwo(plusDays(date, 2));
    const isHandled = world.isHandled(newest);
    const [record, ...more] = await world.setClock(before + 3 * DAY_MS);
    expect(more).toEqual([]);
    if (isHandled) expect(record).toBeUndefined();
    else {
      expect(record).toMatchObject({ trigger: "catch-up", scheduledMs: newest });
      await world.expectBackedUp(recordOf(record));
      await world.check();
    }
    expect(await world.setClock(before)).toEqual([]);
    await world.writes();
    await run(world, date);
  },
  protect: async (world: YearWorld, date: string) => {
    await world.protectOne();
    await run(world, date);
  },
} as const;

/** The night's moment comes. It has a run, unless the clock has been ahead. */
async function run(world: YearWorld, date: string): Promise<void> {
  const scheduledMs = halfPastTwo(date);
  const isHandled = world.isHandled(scheduledMs);
  const [record, ...more] = await world.passUntil(scheduledMs + 500);
  expect(more).toEqual([]);
  if (isHandled) {
    expect(record).toBeUndefined();
    return;
  }
  expect(record).toMatchObject({ trigger: "schedule", scheduledMs, missedCount: 0 });
  await world.expectBackedUp(recordOf(record));
}

async function fail(world: YearWorld, date: string): Promise<void> {
  const scheduledMs = halfPastTwo(date);
  const isHandled = world.isHandled(scheduledMs);
  const [record, ...more] = await world.passUntil(scheduledMs + 500);
  expect(more).toEqual([]);
  if (isHandled) expect(record).toBeUndefined();
  else world.expectFailed(recordOf(record), "NO_SPACE");
}

/** What had not been done of the run is made up for by the next agent. */
async function cutOff(world: YearWorld, date: string, cut: () => Promise<void>): Promise<void> {
  if (world.isHandled(halfPastTwo(date))) return run(world, date);
  const known = await world.recordIds();
  await cut();
  await world.startAgent();
  const records = await world.runsSince(known);
  const [first, again, ...more] = records.toReversed();
  expect(more).toEqual([]);
  expect(first).toMatchObject({ trigger: "schedule", scheduledMs: halfPastTwo(date) });
  await world.expectCutOff(recordOf(first));
  if (first?.state === "interrupted") {
    expect(again).toMatchObject({ trigger: "catch-up", scheduledMs: halfPastTwo(date) });
    await world.expectBackedUp(recordOf(again));
  } else expect(again).toBeUndefined();
}

function recordOf(record: RunRecord | undefined): RunRecord {
  if (record === undefined) throw new Error("Expected a run, there was none");
  return record;
}

describe("A year of nights, against a naive model", () => {
  it(
    IS_WHOLE
      ? "of 2027: what must be kept is kept and restores exactly, and nothing grows"
      : "some of 2027: what must be kept is kept and restores exactly, and nothing grows",
    async () => {
      const random = new Random(SEED);
      const nights = IS_WHOLE ? allNights(random) : SOME_NIGHTS;
      const world = await YearWorld.create(halfPastTwo(nights[0]?.date ?? "") - 12 * HOUR_MS, random);
      canFill = world.canFill;
      let reference: Traces | undefined;
      try {
        for (const [index, { date, event }] of nights.entries()) {
          world.history.push(`${index + 1}. ${date}: ${event}`);
          if (IS_WHOLE) process.stdout.write(`${index + 1}. ${date}: ${event}\n`);
          if (event !== "downtime") {
            expect(await world.passUntil(halfPastTwo(date) - 8 * HOUR_MS)).toEqual([]);
          }
          await world.writes();
          await EVENTS[event](world, date);
          await world.check();
          const isLast = index === nights.length - 1;
          if (isLast || (index + 1) % RESTORE_EVERY === 0) await world.checkRestores();
          if (index + 1 === REFERENCE_NIGHT) reference = await world.traces();
        }
        expect(await world.traces()).toEqual(reference);
      } catch (error) {
        const last = world.history.slice(-80).join("\n");
        throw new Error(`With FLEECE_YEAR_SEED=${SEED}, at the end of:\n${last}`, { cause: error });
      }
    },
    IS_WHOLE ? 7_200_000 : 600_000,
  );

  it("some of them with a full file system", (context) => {
    if (!canFill) context.skip("mounting a tmpfs is refused here");
    expect(fullNights).toBeGreaterThan(0);
  });
});
