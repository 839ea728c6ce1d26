import type { Job, JobLimits } from "../../src/model/job.js";
import type { RunRecord } from "../../src/model/run-record.js";
import { Schedule } from "../../src/model/schedule.js";
import type { BackupRepository } from "../../src/ports/repository.js";
import type { ServiceContext } from "../../src/services/context.js";
import { JobRunner } from "../../src/services/jobs/job-runner.js";
import type { RunStep } from "../../src/services/jobs/run-step.js";
import { keepSchedule } from "../../src/services/jobs/scheduler.js";
import { FleeceError } from "../../src/shared/errors.js";
import { FakeWorld, type FakeProcess } from "./fake-agent.js";
import { FakeDomain } from "./fake-domain.js";
import { FakeRepository } from "./fake-repository.js";
import { ManualClock } from "./manual-clock.js";

const DISKS = [{ target: "vda", sizeBytes: 3 * 65_536 }];

/** A clock on the wall that may be set, beside the time that passes. */
class WallClock extends ManualClock {
  offsetMs = 0;
  /** How long pauses were that anybody has begun. */
  readonly pausesMs: number[] = [];
  /** When who sleeps will wake, by `monotonicMs`. */
  readonly #wakings = new Map<AbortSignal, number>();

  override now(): number {
    return super.now() + this.offsetMs;
  }

  override async sleep(ms: number, signal: AbortSignal): Promise<void> {
    this.pausesMs.push(ms);
    this.#wakings.set(signal, this.monotonicMs() + ms);
    await super.sleep(ms, signal).finally(() => this.#wakings.delete(signal));
  }

  /** How long who sleeps with this signal still will; undefined if nobody does. */
  sleepLeftMs(signal: AbortSignal): number | undefined {
    const wakesAtMs = this.#wakings.get(signal);
    return wakesAtMs === undefined ? undefined : wakesAtMs - this.monotonicMs();
  }
}

/** Domains in memory, a repository for all of them, a real state directory, and a clock that the test moves. */
export class JobWorld {
  readonly clock: WallClock;
  readonly domains: ReadonlyMap<string, FakeDomain>;
  readonly #world: FakeWorld;
  readonly #repositories = new Map<string, FakeRepository>();

  constructor(directory: string, now: string, domains: readonly string[] = ["web01"]) {
    this.#world = new FakeWorld(directory, { disks: DISKS });
    this.clock = new WallClock(Date.parse(now));
    const { host } = this.#world.domain;
    this.domains = new Map(domains.map((name) => [name, new FakeDomain(DISKS, { name, host })]));
    for (const [name, domain] of this.domains) {
      domain.write("vda", 0, 65_536, 7);
      this.#repositories.set(name, new FakeRepository(domain));
    }
  }

  get log(): readonly string[] {
    return this.#world.log;
  }

  domain(name = "web01"): FakeDomain {
    const found = this.domains.get(name);
    if (found !== undefined) return found;
    throw new Error(`There is no domain ${name}`);
  }

  /** Backups that are damaged from now on. */
  rot(isRotten: (id: string) => boolean, domain = "web01"): void {
    const repository = this.#repositories.get(domain);
    if (repository !== undefined) repository.isRotten = isRotten;
  }

  async backups(domain = "web01"): Promise<number> {
    return ((await this.#repositories.get(domain)?.list()) ?? []).length;
  }

  /** What is left of operations on the domains. */
  async traces(): Promise<unknown> {
    const { journal } = Object(await this.#world.traces()) as { journal: unknown };
    const { files, directories } = this.#world.domain.host;
    return { journal, files: [...files], directories: [...directories] };
  }

  set(time: string): void {
    this.clock.offsetMs += Date.parse(time) - this.clock.now();
  }

  /** A process of ours with these jobs; the schedule runs if it is told to. */
  process(
    jobs: readonly Job[],
    options: { readonly limits?: Partial<JobLimits>; readonly steps?: readonly RunStep[] } = {},
  ): JobProcess {
    return new JobProcess(this, this.#world.process(), jobs, options);
  }

  surroundings(): Pick<ServiceContext, "drivers" | "readers" | "repositories" | "domains"> {
    const of = (domain: string): FakeRepository => {
      const found = this.#repositories.get(domain);
      if (found !== undefined) return found;
      throw new Error(`There is no domain ${domain}`);
    };
    const all = (): readonly FakeRepository[] => [...this.#repositories.values()];
    const repository = (name: string): BackupRepository => ({
      name,
      reserveBytes: 0,
      checkWritable: () => Promise.resolve(),
      checkKey: () => Promise.resolve(false),
      freeBytes: () => Promise.resolve(2 ** 40),
      list: async (domain) =>
        domain === undefined
          ? (await Promise.all(all().map((each) => each.list()))).flat()
          : of(domain).list(domain),
      has: (domain, id) => of(domain).has(domain, id),
      lock: (domain) => of(domain).lock(domain),
      begin: (request, undo, signal) => of(request.domain).begin(request, undo, signal),
      open: (entry, how) => of(entry.domain).open(entry, how),
      remove: (entry) => of(entry.domain).remove(entry),
      merge: (entry) => of(entry.domain).merge(entry),
      finishMerges: (domain) => of(domain).finishMerges(),
      protect: (entry, isProtected) => of(entry.domain).protect(entry, isProtected),
    });
    return {
      drivers: { open: (domain, signal) => this.domain(domain).open(domain, signal) },
      readers: {
        open: async (address, signal) => {
          for (const domain of this.domains.values()) {
            const reader = await domain.readers.open(address, signal).catch(() => undefined);
            if (reader !== undefined) return reader;
          }
          throw new FleeceError("NBD_FAILED", `Nothing is exported as ${address.exportName}`);
        },
      },
      repositories: new Map(["default", "tape"].map((name) => [name, repository(name)])),
      domains: [...this.domains.keys()],
    };
  }

  dropLocks(): void {
    for (const repository of this.#repositories.values()) repository.dropLocks();
  }
}

/** One process: its runs, and its look at the schedule. */
export class JobProcess {
  context: ServiceContext;
  readonly runner: JobRunner;
  readonly #world: JobWorld;
  readonly #process: FakeProcess;
  #stop = new AbortController();
  #schedule: Promise<void> = Promise.resolve();

  constructor(
    world: JobWorld,
    process: FakeProcess,
    list: readonly Job[],
    options: { readonly limits?: Partial<JobLimits>; readonly steps?: readonly RunStep[] },
  ) {
    this.#world = world;
    this.#process = process;
    const context = { ...process.context, ...world.surroundings(), clock: world.clock };
    this.runner = new JobRunner(context, options.steps);
    const limits = { domains: 2, repositories: new Map<string, number>(), ...options.limits };
    this.context = { ...context, jobs: { ...process.context.jobs, list, limits, runner: this.runner } };
  }

  /** Resolves after the first look. */
  async schedule(): Promise<this> {
    this.#schedule = keepSchedule(this.context, this.#stop.signal);
    await this.#asleep();
    return this;
  }

  /** Takes other jobs over, as after SIGHUP. */
  async reload(list: readonly Job[]): Promise<void> {
    this.#stop.abort();
    await this.#schedule;
    this.#stop = new AbortController();
    this.context = { ...this.context, jobs: { ...this.context.jobs, list } };
    await this.schedule();
  }

  /** Time passes, and the schedule is looked at whenever it wants to; in a long time only near its end. */
  async pass(ms: number): Promise<void> {
    const { clock } = this.#world;
    const endMs = clock.monotonicMs() + ms;
    if (ms >= LONG_MS) await clock.advance(ms - LAST_MS);
    for (;;) {
      const waitMs = await this.#asleep();
      const leftMs = endMs - clock.monotonicMs();
      if (leftMs <= 0) return;
      await clock.advance(Math.max(0, Math.min(leftMs, waitMs)));
    }
  }

  /** Resolves when the schedule has been looked at, with how long it is left alone. */
  async #asleep(): Promise<number> {
    const { signal } = this.#stop;
    await until(() => this.#world.clock.sleepLeftMs(signal) !== undefined);
    return this.#world.clock.sleepLeftMs(signal) ?? 0;
  }

  /** Resolves when no job runs. */
  async idle(): Promise<void> {
    while (this.context.jobs.list.some(({ name }) => this.runner.isRunning(name))) await turn();
  }

  /** Newest first. */
  async records(job = "nightly"): Promise<readonly RunRecord[]> {
    const records = await Promise.all(
      (await this.runner.log.summaries(job)).map((one) => this.runner.log.read(one)),
    );
    return records.filter((record) => record !== undefined);
  }

  /** As a kill does; code that runs must be held by the test. */
  async die(): Promise<void> {
    this.#stop.abort();
    await this.#schedule;
    for (const domain of this.#world.domains.values()) domain.disconnect();
    this.#world.dropLocks();
    await this.#process.die();
  }
}

/** Longer times are not looked at but for their last seconds. */
const LONG_MS = 10 * 60_000;
const LAST_MS = 10_000;

/** One turn of the event loop, with what files take. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1));
}

/** Resolves when it is so. */
export async function until(isSo: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await isSo())) await turn();
}

export function nightly(changes: Partial<Job> = {}): Job {
  return {
    name: "nightly",
    kind: "backup",
    schedule: new Schedule("30 2 * * *", "Europe/Berlin"),
    domains: ["web01"],
    repository: "default",
    copyTo: undefined,
    level: undefined,
    quiesce: undefined,
    notAfter: undefined,
    jitterMs: 0,
    retries: 3,
    catchUp: true,
    verify: undefined,
    bootTest: undefined,
    hooks: [],
    report: undefined,
    ...changes,
  };
}
