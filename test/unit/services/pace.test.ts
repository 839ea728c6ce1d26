import { describe, expect, it } from "vitest";
import { type BackupLimits, NO_LIMITS } from "../../../src/model/backup-limits.js";
import type { WriteFigures } from "../../../src/model/guest-pace.js";
import type { BlockDriver } from "../../../src/ports/block-driver.js";
import { BackupPace, type PaceReport, type ReadPace, RunPace } from "../../../src/services/pace.js";
import { ManualClock } from "../../support/manual-clock.js";

const KIB = 1024;
const MIB = 1024 * KIB;
const BLOCK = 64 * KIB;
const READS = 8;
const never = new AbortController().signal;

function start(limits: Partial<BackupLimits>, now = "2026-01-15T07:59:50Z") {
  const clock = new ManualClock(Date.parse(now));
  const run = new RunPace({ ...NO_LIMITS, ...limits }, clock);
  const reports: PaceReport[] = [];
  const backup = () =>
    new BackupPace(run, { readsAtOnce: READS, onReport: (report) => void reports.push(report) });
  return { clock, run, backup, reports };
}

/** Reads without an end, with as many requests at once as a pull has; `total` is what has been let through. */
function readOn(pace: BackupPace, how: { readonly reads?: boolean; readonly stored?: number } = {}) {
  const stop = new AbortController();
  const reader = { bytes: 0, ended: Promise.resolve(), stop };
  const lane = async (read: ReadPace): Promise<void> => {
    while (!stop.signal.aborted) {
      const bytes = read.pieceBytes(2 * MIB);
      expect(bytes % BLOCK).toBe(0);
      await read.beforeRead(bytes, stop.signal);
      reader.bytes += bytes;
      read.wrote(bytes * (how.stored ?? 0));
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  reader.ended = pace
    .reading({ reads: how.reads ?? true }, (read) =>
      Promise.all(Array.from({ length: READS }, () => lane(read))),
    )
    .then(
      () => undefined,
      () => undefined,
    );
  return reader;
}

/** Lets time pass, and everybody do what can be done by then; resolves with what was read in each interval. */
async function readIn(
  clock: ManualClock,
  readers: readonly { readonly bytes: number }[],
  intervals: number,
  lengthMs = 1000,
): Promise<number[]> {
  const sums: number[] = [];
  const sum = (): number => readers.reduce((bytes, reader) => bytes + reader.bytes, 0);
  for (let interval = 0; interval < intervals; interval++) {
    const before = sum();
    for (let passedMs = 0; passedMs < lengthMs; passedMs += STEP_MS) {
      await clock.advance(STEP_MS);
      for (let turn = 0; turn < 6; turn++) await new Promise((resolve) => setImmediate(resolve));
    }
    sums.push(sum() - before);
  }
  return sums;
}

const STEP_MS = 5;

function expectNear(bytes: number, wanted: number, slack = 0.15): void {
  expect(bytes / wanted).toBeGreaterThan(1 - slack);
  expect(bytes / wanted).toBeLessThan(1 + slack);
}

describe("a read limit", () => {
  it("is kept in every second and every part of one, also at first", async () => {
    const { clock, backup } = start({ readBytesPerSecond: 8 * MIB });
    const pace = backup();
    const reader = readOn(pace);
    await new Promise((resolve) => setImmediate(resolve));
    expect(reader.bytes).toBeLessThanOrEqual(2 * MIB);
    for (const bytes of await readIn(clock, [reader], 10, 100)) expect(bytes).toBeLessThanOrEqual(1.25 * MIB);
    for (const bytes of await readIn(clock, [reader], 5)) expectNear(bytes, 8 * MIB, 0.05);
    reader.stop.abort();
    await reader.ended;
    expectNear(pace.waits.readLimit, 6000);
    expect(pace.waits).toMatchObject({ writeLimit: 0, guestLatency: 0 });
  });

  it("is one for all disks of all domains of a run", async () => {
    const { clock, backup } = start({ readBytesPerSecond: 8 * MIB });
    const [one, other] = [backup(), backup()];
    const readers = [readOn(one), readOn(one), readOn(other)];
    for (const bytes of (await readIn(clock, readers, 4)).slice(1)) expectNear(bytes, 8 * MIB);
    for (const { bytes } of readers) expect(bytes).toBeGreaterThan(4 * MIB);
    for (const reader of readers) reader.stop.abort();
    await Promise.all(readers.map(({ ended }) => ended));
    // Two disks that wait at the same time wait once.
    expectNear(one.waits.readLimit, 4000);
  });

  it("changes at the hour while it is read", async () => {
    const hours = [{ fromMinute: 480, untilMinute: 1080, readBytesPerSecond: 2 * MIB }];
    const { clock, backup, reports } = start({ readBytesPerSecond: 16 * MIB, hours });
    const reader = readOn(backup());
    const seconds = await readIn(clock, [reader], 20);
    for (const bytes of seconds.slice(1, 9)) expectNear(bytes, 16 * MIB);
    for (const bytes of seconds.slice(13)) expectNear(bytes, 2 * MIB);
    // What was let through at the old rate is paid at the new one.
    expect(seconds.slice(10).reduce((sum, bytes) => sum + bytes, 0)).toBeLessThan(24 * MIB);
    expect(new Set(reports.map(({ readBytesPerSecond }) => readBytesPerSecond))).toEqual(
      new Set([16 * MIB, 2 * MIB]),
    );
    reader.stop.abort();
    await reader.ended;
  });

  it("does not concern what is read from elsewhere, and shares with copies that QEMU makes", async () => {
    const { clock, backup } = start({ readBytesPerSecond: 8 * MIB });
    const pace = backup();
    const staged = readOn(pace, { reads: false });
    await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
    expect(staged.bytes).toBeGreaterThan(16 * MIB);
    staged.stop.abort();
    await Promise.allSettled([staged.ended]);
    const copy = pace.copying({ writes: false });
    expect(copy.speed()).toBe(8 * MIB);
    const reader = readOn(backup());
    expect(copy.speed()).toBe(4 * MIB);
    for (const bytes of (await readIn(clock, [reader], 4)).slice(1)) expectNear(bytes, 4 * MIB);
    copy[Symbol.dispose]();
    for (const bytes of (await readIn(clock, [reader], 4)).slice(1)) expectNear(bytes, 8 * MIB);
    reader.stop.abort();
    await reader.ended;
  });
});

describe("a write limit", () => {
  it("counts what is stored, whatever is read", async () => {
    const { clock, backup } = start({ writeBytesPerSecond: 4 * MIB });
    const pace = backup();
    const reader = readOn(pace, { stored: 0.5 });
    await new Promise((resolve) => setImmediate(resolve));
    expect(reader.bytes).toBeLessThanOrEqual(4 * MIB);
    for (const bytes of (await readIn(clock, [reader], 6)).slice(1)) expectNear(bytes, 8 * MIB);
    reader.stop.abort();
    await reader.ended;
    expect(pace.waits.writeLimit).toBeGreaterThan(4000);
    expect(pace.waits.readLimit).toBe(0);
  });
});

describe("a copy that QEMU makes", () => {
  it("gets the lower of both rates, and counts as waiting while it keeps to it", async () => {
    const { clock, backup } = start({ readBytesPerSecond: 16 * MIB, writeBytesPerSecond: 6 * MIB });
    const pace = backup();
    using copy = pace.copying({ writes: true });
    using other = pace.copying({ writes: false });
    expect([copy.speed(), other.speed()]).toEqual([6 * MIB, 8 * MIB]);
    await clock.advance(1000);
    copy.copied(6 * MIB);
    await clock.advance(1000);
    copy.copied(7 * MIB);
    expect(pace.waits).toEqual({ readLimit: 0, writeLimit: 1000, guestLatency: 0 });
  });

  it("has no limit where there is none", () => {
    const { backup } = start({});
    using copy = backup().copying({ writes: true });
    expect(copy.speed()).toBe(Infinity);
  });
});

describe("the guest's writes", () => {
  it("slow reads down while they take too long, and speed them up again", async () => {
    const { clock, backup, reports } = start({ readBytesPerSecond: 64 * MIB, guestLatencyMs: 20 });
    const pace = backup();
    let figures: WriteFigures = { operations: 0, totalMs: 0 };
    const driver = {
      guestWrites: () => Promise.resolve(new Map([["vda", figures]])),
    } as Partial<BlockDriver>;
    const look = async (meanMs: number) => {
      figures = { operations: figures.operations + 10, totalMs: figures.totalMs + 10 * meanMs };
      await pace.lookAtGuest(driver as BlockDriver, ["vda"], never);
    };
    const reader = readOn(pace);
    await look(1);
    const rates: number[] = [];
    for (const meanMs of [1, 30, 30, 30, 30, 30, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]) {
      const [bytes = 0] = await readIn(clock, [reader], 1);
      rates.push(bytes);
      await look(meanMs);
    }
    // Half of what was read, until the floor of 4 MiB/s. What was under way in the first slow second comes on top.
    for (const [second, mib] of [64, 64, 32 + 16, 16, 8, 4, 4].entries()) {
      expectNear(rates[second] ?? 0, mib * MIB);
    }
    expect(rates.slice(7).every((rate, at) => rate >= (rates[at + 6] ?? 0) * 0.9)).toBe(true);
    expectNear(rates.at(-1) ?? 0, 64 * MIB);
    const told = reports.map(({ guestBytesPerSecond }) => guestBytesPerSecond);
    expect(Math.min(...told.map((rate) => rate ?? Infinity))).toBe(4 * MIB);
    expect(told.at(-1)).toBeUndefined();
    expect(pace.waits.guestLatency).toBeGreaterThan(4000);
    reader.stop.abort();
    await reader.ended;
  });

  it("are not asked about without a bound", async () => {
    const { backup } = start({});
    await backup().lookAtGuest({} as BlockDriver, ["vda"], never);
  });
});
