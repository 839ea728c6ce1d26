import { describe, expect, it } from "vitest";
import { NO_LIMITS } from "../../../src/model/backup-limits.js";
import type { RunRecord } from "../../../src/model/run-record.js";
import { jitterOf, Schedule } from "../../../src/model/schedule.js";
import { FleeceError, type ErrorCode } from "../../../src/shared/errors.js";
import { JobWorld, nightly, turn, until } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** A winter's night in Berlin, a minute before the job. */
const BEFORE = "2026-11-15T01:29:00Z";
const MOMENT = Date.parse("2026-11-15T01:30:00Z");

async function world(now = BEFORE, domains?: readonly string[]): Promise<JobWorld> {
  const { path } = await temporaryDirectory();
  return new JobWorld(path, now, domains);
}

/** Holds the domain's backups at their first point until it is let go. */
function hold(of: JobWorld, domain = "web01"): { letGo(): void; readonly reached: Promise<void> } {
  let letGo = (): void => undefined;
  let reach = (): void => undefined;
  const free = new Promise<void>((resolve) => (letGo = resolve));
  const reached = new Promise<void>((resolve) => (reach = resolve));
  of.domain(domain).gate = async (point) => {
    if (!point.startsWith("open: after")) return;
    reach();
    await free;
  };
  return {
    reached,
    letGo: () => {
      of.domain(domain).gate = () => undefined;
      letGo();
    },
  };
}

/** The next `times` backups of the domain fail so. */
function failing(of: JobWorld, code: ErrorCode, times: number, domain = "web01"): void {
  let left = times;
  of.domain(domain).gate = (point) => {
    if (point === "open: before" && left-- > 0) throw new FleeceError(code, `Made to fail: ${code}`);
  };
}

const states = (records: readonly RunRecord[]): readonly string[] =>
  records.map(({ state, trigger }) => `${trigger} ${state}`);

describe("a scheduled run", () => {
  it("is recorded as running before its backup is taken, and then with all that was read and stored", async () => {
    const at = await world();
    const agent = await at.process([nightly()]).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    const onlooker = at.process([nightly()]);
    at.domain().gate = () => held.reached;
    expect(await onlooker.records()).toMatchObject([
      {
        state: "running",
        trigger: "schedule",
        scheduledMs: MOMENT,
        missedCount: 0,
        domains: [{ domain: "web01", state: "running", phase: "backup", attempts: 1 }],
      },
    ]);
    held.letGo();
    await agent.idle();
    const [record, ...more] = await onlooker.records();
    expect(more).toEqual([]);
    expect(record).toMatchObject({
      state: "complete",
      finishedAtMs: at.clock.now(),
      domains: [
        {
          state: "complete",
          level: "full",
          reason: expect.stringMatching(/./) as string,
          backup: {
            manifest: {
              level: "full",
              consistency: "crash",
              disks: [{ target: "vda", readBytes: 65_536, storedBytes: 65_536 }],
            },
          },
        },
      ],
    });
    expect(record?.domains[0]?.phase).toBeUndefined();
    await agent.pass(10 * MINUTE);
    expect(await agent.records()).toHaveLength(1);
  });

  it("begins after its jitter, which a restart does not change", async () => {
    const at = await world();
    const job = nightly({ jitterMs: 10 * MINUTE });
    const delay = jitterOf("nightly", MOMENT, 10 * MINUTE);
    const first = await at.process([job]).schedule();
    await first.pass(MINUTE + delay - SECOND);
    expect(await first.records()).toEqual([]);
    await first.die();
    const second = await at.process([job]).schedule();
    expect(await second.records()).toEqual([]);
    await second.pass(SECOND);
    await second.idle();
    expect(await second.records()).toMatchObject([{ scheduledMs: MOMENT, startedAtMs: MOMENT + delay }]);
  });

  it("tries again after a minute and then two, for an error that may pass", async () => {
    const at = await world();
    const agent = await at.process([nightly()]).schedule();
    failing(at, "DOMAIN_UNREACHABLE", 2);
    await agent.pass(MINUTE);
    const phase = async (): Promise<string | undefined> => (await agent.records())[0]?.domains[0]?.phase;
    await until(() => at.clock.pausesMs.includes(MINUTE));
    await agent.pass(59 * SECOND);
    expect(await phase()).toBe("pause");
    await agent.pass(SECOND);
    await until(() => at.clock.pausesMs.includes(2 * MINUTE));
    await agent.pass(2 * MINUTE);
    await agent.idle();
    expect(await agent.records()).toMatchObject([
      {
        state: "complete-with-notes",
        domains: [
          {
            attempts: 3,
            notes: [
              "try 1 failed: Made to fail: DOMAIN_UNREACHABLE (DOMAIN_UNREACHABLE)",
              "try 2 failed: Made to fail: DOMAIN_UNREACHABLE (DOMAIN_UNREACHABLE)",
            ],
          },
        ],
      },
    ]);
  });

  it.each([
    ["PERMISSION_DENIED" as const, 3, 1],
    ["DOMAIN_UNREACHABLE" as const, 0, 1],
  ])("fails by %s with %i retries after %i try", async (code, retries, attempts) => {
    const at = await world();
    const agent = await at.process([nightly({ retries })]).schedule();
    failing(at, code, 10);
    await agent.pass(MINUTE);
    await agent.idle();
    expect(await agent.records()).toMatchObject([
      { state: "failed", error: { code }, domains: [{ state: "failed", attempts, error: { code } }] },
    ]);
  });

  it("gives up at the end of its window what has not ended, and undoes it", async () => {
    const at = await world(BEFORE, ["web01", "db01"]);
    const job = nightly({ notAfter: "03:00", domains: ["web01", "db01"] });
    const agent = await at.process([job], { limits: { domains: 1 } }).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    await agent.pass(30 * MINUTE);
    held.letGo();
    await agent.idle();
    const error = {
      code: "WINDOW_ENDED",
      message: expect.stringContaining("not after 03:00 (Europe/Berlin)") as string,
    };
    expect(await agent.records()).toMatchObject([
      {
        state: "failed",
        error,
        domains: [
          { state: "failed", error, attempts: 1 },
          { state: "failed", error, attempts: 0 },
        ],
      },
    ]);
    expect(await at.backups()).toBe(0);
    expect(await at.traces()).toEqual({ journal: [], files: [], directories: [] });
  });

  it("does not pause for another try beyond its window", async () => {
    const at = await world();
    const agent = await at.process([nightly({ notAfter: "02:31" })]).schedule();
    failing(at, "DOMAIN_UNREACHABLE", 10);
    await agent.pass(MINUTE);
    await agent.idle();
    expect(await agent.records()).toMatchObject([{ state: "failed", error: { code: "DOMAIN_UNREACHABLE" } }]);
  });

  it("has the notes of the steps that follow, and a step that fails costs no backup", async () => {
    const at = await world();
    const steps = [
      { name: "count", perform: () => Promise.resolve(["one"]) },
      { name: "prune", perform: () => Promise.reject(new FleeceError("REPOSITORY_BUSY", "Somebody writes")) },
    ];
    const agent = await at.process([nightly()], { steps }).schedule();
    await agent.pass(MINUTE);
    await agent.idle();
    expect(await agent.records()).toMatchObject([
      {
        state: "complete-with-notes",
        domains: [{ notes: ["one", "prune failed: Somebody writes (REPOSITORY_BUSY)"] }],
      },
    ]);
  });

  it("goes on when its record cannot be written, which is told truly, and written later", async () => {
    const at = await world();
    const { context } = at.process([]);
    let isFull = true;
    const store = Object.create(context.store, {
      writeNote: {
        value: (...args: Parameters<typeof context.store.writeNote>) =>
          isFull && args[0] === "runs"
            ? Promise.reject(new FleeceError("NO_SPACE", "Full"))
            : context.store.writeNote(...args),
      },
    }) as typeof context.store;
    const { JobRunner } = await import("../../../src/services/jobs/job-runner.js");
    const runner = new JobRunner({ ...context, store });
    const order = { job: nightly(), trigger: "request", retries: 0 } as const;
    const { ended } = await runner.start({ ...context, store, jobs: { ...context.jobs, runner } }, order);
    expect((await ended).state).toBe("complete");
    expect(await at.process([]).records()).toEqual([]);
    expect((await runner.log.summaries())[0]?.state).toBe("complete");
    isFull = false;
    await runner.log.flush();
    expect(states(await at.process([]).records())).toEqual(["request complete"]);
  });
});

describe("the schedule after a pause", () => {
  it("makes up once for the newest of the moments that were missed", async () => {
    const at = await world("2026-11-12T12:00:00Z");
    await (await at.process([nightly()]).schedule()).die();
    await at.clock.advance(3 * 24 * HOUR);
    const agent = await at.process([nightly()]).schedule();
    await agent.idle();
    await agent.pass(HOUR);
    expect(await agent.records()).toMatchObject([
      { trigger: "catch-up", state: "complete", scheduledMs: MOMENT, missedCount: 2 },
    ]);
  });

  it("says of a moment whose window has passed that it has failed, and takes no backup by day", async () => {
    const at = await world("2026-11-14T12:00:00Z");
    const job = nightly({ notAfter: "06:00" });
    await (await at.process([job]).schedule()).die();
    await at.clock.advance(24 * HOUR);
    const agent = await at.process([job]).schedule();
    await agent.idle();
    expect(await agent.records()).toMatchObject([
      { trigger: "catch-up", state: "failed", error: { code: "WINDOW_ENDED" } },
    ]);
    expect(await at.backups()).toBe(0);
  });

  it("leaves missed moments out if it is told to, but not one that is a little late", async () => {
    const at = await world("2026-11-14T12:00:00Z");
    const job = nightly({ catchUp: false });
    await (await at.process([job]).schedule()).die();
    await at.clock.advance(24 * HOUR);
    const agent = await at.process([job]).schedule();
    expect(await agent.records()).toEqual([]);
    await agent.pass(13 * HOUR + 30 * MINUTE + 20 * SECOND);
    await agent.idle();
    expect(states(await agent.records())).toEqual(["schedule complete"]);
  });

  it("finds nothing missed by a job that is new or has another schedule", async () => {
    const at = await world("2026-11-14T12:00:00Z");
    await (await at.process([nightly()]).schedule()).die();
    const other = nightly({ schedule: new Schedule("0 10 * * *", "Europe/Berlin") });
    const agent = await at.process([other, nightly({ name: "new" })]).schedule();
    await agent.pass(10 * SECOND);
    expect(await agent.records()).toEqual([]);
    expect(await agent.records("new")).toEqual([]);
  });
});

describe("the schedule when the clock is set", () => {
  it("runs no moment twice after it was set back", async () => {
    const at = await world();
    const agent = await at.process([nightly()]).schedule();
    await agent.pass(MINUTE);
    await agent.idle();
    at.set("2026-11-15T01:00:00Z");
    await agent.pass(10 * SECOND);
    await agent.pass(HOUR);
    await agent.idle();
    expect(await agent.records()).toMatchObject([{ scheduledMs: MOMENT }]);
    await agent.pass(24 * HOUR);
    await agent.idle();
    expect((await agent.records()).map(({ scheduledMs }) => scheduledMs)).toEqual([
      MOMENT + 24 * HOUR,
      MOMENT,
    ]);
  });

  it("runs each night again when a clock that was years ahead is set right", async () => {
    const at = await world("2036-11-14T12:00:00Z");
    const agent = await at.process([nightly()]).schedule();
    await agent.pass(14 * HOUR);
    await agent.idle();
    expect(await agent.records()).toHaveLength(1);
    at.set(BEFORE);
    await agent.pass(10 * SECOND);
    await agent.pass(50 * SECOND);
    await agent.idle();
    expect((await agent.records()).map(({ scheduledMs }) => scheduledMs)).toContain(MOMENT);
  });

  it("makes up once for what it was set over", async () => {
    const at = await world("2026-11-10T12:00:00Z");
    const agent = await at.process([nightly()]).schedule();
    at.set("2026-11-15T12:00:00Z");
    await agent.pass(10 * SECOND);
    await agent.idle();
    await agent.pass(HOUR);
    expect(await agent.records()).toMatchObject([
      { trigger: "catch-up", scheduledMs: MOMENT, missedCount: 4 },
    ]);
  });

  it("runs a night whose hour the clocks skip, and one whose hour they repeat, once each", async () => {
    const at = await world("2026-03-28T23:00:00Z");
    const agent = await at.process([nightly()]).schedule();
    for (let minute = 0; minute < 240; minute += 10) {
      await agent.pass(10 * MINUTE);
      await agent.idle();
    }
    at.set("2026-10-24T23:00:00Z");
    await agent.pass(10 * SECOND);
    await agent.idle();
    const made = (await agent.records()).length;
    for (let minute = 0; minute < 240; minute += 10) {
      await agent.pass(10 * MINUTE);
      await agent.idle();
    }
    const moments = (await agent.records()).map(({ scheduledMs }) =>
      new Date(scheduledMs ?? 0).toISOString(),
    );
    expect(moments[moments.length - 1]).toBe("2026-03-29T01:00:00.000Z");
    expect(moments).toHaveLength(made + 1);
    expect(moments[0]).toBe("2026-10-25T00:30:00.000Z");
  });
});

describe("a run whose process is killed", () => {
  it("is interrupted for whoever looks, and made up for once, for the domains that were not done", async () => {
    const at = await world(BEFORE, ["web01", "db01"]);
    const job = nightly({ domains: ["web01", "db01"] });
    const first = await at.process([job]).schedule();
    const held = hold(at, "db01");
    await first.pass(MINUTE);
    await held.reached;
    const onlooker = at.process([job]);
    await until(async () => (await onlooker.records())[0]?.domains[0]?.state === "complete");
    await first.die();
    expect(await onlooker.records()).toMatchObject([
      {
        state: "interrupted",
        error: { code: "INTERRUPTED" },
        domains: [{ state: "complete" }, { state: "interrupted" }],
      },
    ]);
    at.domain("db01").gate = () => undefined;
    await at.clock.advance(SECOND);
    const second = await at.process([job]).schedule();
    await second.idle();
    await second.pass(HOUR);
    const [again, cut, ...more] = await second.records();
    expect(more).toEqual([]);
    expect(cut).toMatchObject({ state: "interrupted" });
    expect(again).toMatchObject({
      trigger: "catch-up",
      state: "complete",
      scheduledMs: MOMENT,
      domains: [{ domain: "db01" }],
    });
    expect(again?.domains).toHaveLength(1);
    expect([await at.backups("web01"), await at.backups("db01")]).toEqual([1, 1]);
  });

  it("is not made up for a second time", async () => {
    const at = await world();
    for (let kill = 0; kill < 2; kill++) {
      await at.clock.advance(SECOND);
      const agent = await at.process([nightly()]).schedule();
      const held = hold(at);
      await agent.pass(MINUTE);
      await held.reached;
      await agent.die();
      at.domain().gate = () => undefined;
    }
    const agent = await at.process([nightly()]).schedule();
    await agent.pass(HOUR);
    await agent.idle();
    expect(states(await agent.records())).toEqual(["catch-up interrupted", "schedule interrupted"]);
  });

  it("is complete if its backup was published before it could say so", async () => {
    const at = await world();
    const agent = await at.process([nightly()]).schedule();
    let isPublished = false;
    at.domain().gate = async () => {
      isPublished ||= (await at.backups()) === 1;
      if (isPublished) await new Promise(() => undefined);
    };
    await agent.pass(MINUTE);
    await until(() => isPublished);
    await agent.die();
    at.domain().gate = () => undefined;
    const next = await at.process([nightly()]).schedule();
    await next.pass(HOUR);
    await next.idle();
    expect(await next.records()).toMatchObject([
      {
        state: "complete-with-notes",
        domains: [{ notes: ["the process ended right after the backup was published"] }],
      },
    ]);
  });
});

describe("JobRunner", () => {
  it("runs no job twice at a time, and what comes meanwhile once afterwards", async () => {
    const at = await world();
    const often = nightly({ schedule: new Schedule("*/10 * * * *", "UTC") });
    const agent = await at.process([often]).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    const order = { job: often, trigger: "request", retries: 0 } as const;
    await expect(agent.runner.start(agent.context, order)).rejects.toMatchObject({ code: "JOB_BUSY" });
    await agent.pass(25 * MINUTE);
    held.letGo();
    await agent.idle();
    await agent.pass(10 * SECOND);
    await agent.idle();
    expect(await agent.records()).toMatchObject([
      { trigger: "catch-up", scheduledMs: MOMENT + 20 * MINUTE, missedCount: 1 },
      { trigger: "schedule", scheduledMs: MOMENT },
    ]);
  });

  it("goes on with what runs when other jobs are taken over, and runs those", async () => {
    const at = await world(BEFORE, ["web01", "db01"]);
    const agent = await at.process([nightly()]).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    const schedule = new Schedule("31 2 * * *", "Europe/Berlin");
    await agent.reload([nightly(), nightly({ name: "later", schedule, domains: ["db01"] })]);
    await agent.pass(MINUTE);
    await until(() => !agent.runner.isRunning("later"));
    expect(states(await agent.records("later"))).toEqual(["schedule complete"]);
    expect(states(await agent.records())).toEqual(["schedule running"]);
    held.letGo();
    await agent.idle();
    await agent.pass(MINUTE);
    expect(states(await agent.records())).toEqual(["schedule complete"]);
  });

  it("ends a run that is cancelled, undoes it, and does not make up for it", async () => {
    const at = await world();
    const agent = await at.process([nightly()]).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    const cancelled = agent.runner.cancel("nightly", "local");
    held.letGo();
    expect(await cancelled).toMatchObject({
      state: "interrupted",
      cancelled: true,
      error: { code: "INTERRUPTED", message: "local cancelled the run" },
    });
    expect(await at.traces()).toEqual({ journal: [], files: [], directories: [] });
    await agent.die();
    const next = await at.process([nightly()]).schedule();
    await next.pass(HOUR);
    expect(states(await next.records())).toEqual(["schedule interrupted"]);
    await expect(next.runner.cancel("nightly", "local")).rejects.toMatchObject({ code: "RUN_NOT_FOUND" });
  });

  it("interrupts what runs when it is closed, and begins no more", async () => {
    const at = await world();
    const agent = await at.process([nightly()]).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    const closed = agent.runner.close();
    held.letGo();
    await closed;
    const [record] = await agent.records();
    expect([record?.state, record?.cancelled]).toEqual(["interrupted", undefined]);
    expect(await at.traces()).toEqual({ journal: [], files: [], directories: [] });
    const order = { job: nightly(), trigger: "request", retries: 0 } as const;
    await expect(agent.runner.start(agent.context, order)).rejects.toMatchObject({ code: "INTERRUPTED" });
  });

  it("backs a domain up for one job at a time; the other waits, and needs no second try", async () => {
    const at = await world();
    const agent = await at.process([nightly({ name: "a" }), nightly({ name: "b" })]).schedule();
    const held = hold(at);
    await agent.pass(MINUTE);
    await held.reached;
    const [other] = await agent.records("b");
    expect(other).toMatchObject({ state: "running", domains: [{ state: "waiting", attempts: 0 }] });
    held.letGo();
    await agent.idle();
    for (const job of ["a", "b"]) {
      expect(await agent.records(job)).toMatchObject([{ state: "complete", domains: [{ attempts: 1 }] }]);
    }
  });

  it("keeps to the limits with ten domains, also between jobs", async () => {
    const names = Array.from({ length: 10 }, (_, index) => `vm${index}`);
    const at = await world(BEFORE, names);
    const jobs = [
      nightly({ name: "a", domains: names }),
      nightly({ name: "b", domains: names.slice(0, 4), repository: "tape" }),
    ];
    const limits = { domains: 3, repositories: new Map([["tape", 1]]) };
    const agent = await at.process(jobs, { limits }).schedule();
    const active = new Set<string>();
    let most = 0;
    for (const name of names) {
      at.domain(name).gate = async (point) => {
        if (point !== "open: after") return;
        // A second backup of the domain would find its monitor in use.
        active.add(name);
        most = Math.max(most, active.size);
        await until(() => most >= 3);
        await turn();
        active.delete(name);
      };
    }
    const tapes: number[] = [];
    const watch = setInterval(() => {
      void agent.records("b").then(([record]) => {
        tapes.push(record?.domains.filter(({ state }) => state === "running").length ?? 0);
      });
    }, 2);
    await agent.pass(MINUTE);
    await agent.idle();
    clearInterval(watch);
    expect(most).toBe(3);
    expect(Math.max(...tapes)).toBe(1);
    expect((await agent.records("a"))[0]).toMatchObject({ state: "complete" });
    const [second] = await agent.records("b");
    expect(second?.domains.map(({ attempts }) => attempts)).toEqual([1, 1, 1, 1]);
    expect(second?.state).toMatch(/^complete/);
  });
});

describe("the limits of a job", () => {
  it("hold for all domains of a run together, in place of those of all backups", async () => {
    const at = await world(BEFORE, ["web01", "db01"]);
    at.domain("db01").write("vda", 0, 65_536, 8);
    const limits = { ...NO_LIMITS, readBytesPerSecond: 65_536 };
    const job = nightly({ domains: ["web01", "db01"], limits });
    const agent = at.process([job]);
    agent.context = { ...agent.context, limits: { ...NO_LIMITS, readBytesPerSecond: 1 } };
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    let record: RunRecord | undefined;
    void ended.then((result) => (record = result));
    await until(async () => {
      await at.clock.advance(10);
      return record !== undefined;
    });
    const waited = record?.domains.map(({ backup }) => backup?.manifest.waits?.readLimit ?? 0) ?? [];
    // One block each: the second pays for the first, too.
    expect(Math.max(...waited)).toBeGreaterThan(1000);
    expect(Math.max(...waited)).toBeLessThanOrEqual(2010);
    expect(record?.state).toBe("complete");
  });
});
