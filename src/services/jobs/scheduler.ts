import type { Job } from "../../model/job.js";
import { endedWell, type RunRecord } from "../../model/run-record.js";
import { jitterOf, nextTimeOfDay } from "../../model/schedule.js";
import { errorMessage } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import type { RunOrder } from "./job-run.js";
import { sendReports } from "./reports.js";
import type { RunSummary } from "./run-log.js";

/** How often each job is looked at: so soon it is noticed that the clock was set. A moment that comes earlier is waited for. */
const LOOK_MS = 10_000;

/** A run that begins later than this after its moment makes up for a missed one. */
const LATE_MS = 60_000;

/** Runs the jobs of the configuration when they are due, until the signal fires. What runs then goes on: see `JobRunner.close`. */
export async function keepSchedule(context: ServiceContext, signal: AbortSignal): Promise<void> {
  const { list, runner } = context.jobs;
  const { log } = context;
  const watches = list.map((job) => new Watch(context, job));
  let isSettled = false;
  let reports: Promise<unknown> = Promise.resolve();
  while (!signal.aborted) {
    let waitMs = LOOK_MS;
    let runs: readonly RunSummary[] = [];
    try {
      // First of all: a run that was cut off is made up for.
      if (!isSettled) reports = reportDue(context, await runner.log.settle(context.repositories), signal);
      isSettled = true;
      await runner.log.flush();
      runs = await runner.log.summaries();
    } catch (error) {
      log.warn({}, `Cannot look after the runs of jobs: ${errorMessage(error)}`);
      await pause(context, waitMs, signal);
      continue;
    }
    for (const watch of watches) {
      try {
        waitMs = Math.min(waitMs, await watch.look(runs));
      } catch (error) {
        log.warn({ job: watch.name }, `Cannot look after the job: ${errorMessage(error)}`);
      }
    }
    await pause(context, waitMs, signal);
  }
  await reports;
}

/** What began longer ago is no news, though nobody may have been told of it: a host may be off over holidays, not for ever. */
const NEWS_MS = 7 * 24 * 3_600_000;

/** Tells of the runs of killed processes, which may not have done so themselves. What the signal cuts off stays due. Never fails. */
async function reportDue(
  context: ServiceContext,
  records: readonly RunRecord[],
  signal: AbortSignal,
): Promise<void> {
  const { list, runner } = context.jobs;
  for (const record of records) {
    const job = list.find(({ name }) => name === record.job);
    if (job === undefined || context.clock.now() - record.startedAtMs > NEWS_MS) continue;
    const notes = await sendReports(context, job, record, { isBrief: false, signal });
    if (signal.aborted) return;
    await runner.log.save({ ...record, reportDue: undefined, ...(notes.length === 0 ? {} : { notes }) });
  }
}

/** Only the signal ends a pause early. */
async function pause({ clock }: ServiceContext, ms: number, signal: AbortSignal): Promise<void> {
  await clock.sleep(Math.max(1, ms), signal).catch(() => undefined);
}

/** What is remembered of a job's schedule: moments up to `handledMs` have been run, or left out. */
interface JobNote {
  readonly schemaVersion: 1;
  readonly schedule: string;
  readonly timeZone: string;
  readonly handledMs: number;
}

/** One job. */
class Watch {
  readonly #context: ServiceContext;
  readonly #job: Job;
  #handledMs: number | undefined;

  constructor(context: ServiceContext, job: Job) {
    this.#context = context;
    this.#job = job;
  }

  get name(): string {
    return this.#job.name;
  }

  /** Begins what is due, and resolves with the time until there may be something to begin, in milliseconds. */
  async look(runs: readonly RunSummary[]): Promise<number> {
    const { clock, jobs, log } = this.#context;
    const { name, schedule, catchUp } = this.#job;
    // What comes meanwhile is missed, and made up for afterwards.
    if (jobs.runner.isRunning(name)) return LOOK_MS;
    const handledMs = await this.#handled();
    const history = runs.filter((run) => run.job === name).filter(isScheduled);
    const nowMs = clock.now();
    const due = schedule.due({
      handledMs,
      nowMs,
      handled: new Set(history.map(({ scheduledMs }) => scheduledMs)),
      delayOf: (scheduledMs) => this.#delay(scheduledMs),
    });
    if (due !== undefined) {
      const lateMs = nowMs - due.scheduledMs - this.#delay(due.scheduledMs);
      if (lateMs <= LATE_MS || catchUp) {
        await this.#start({ ...due, trigger: lateMs > LATE_MS ? "catch-up" : "schedule" });
      } else {
        const moment = new Date(due.scheduledMs).toISOString();
        log.warn({ job: name, moment }, "A run of a job was missed and is not made up for, as configured");
      }
      await this.#note(due.scheduledMs);
      return 0;
    }
    const again = catchUp ? await this.#cutOff(history) : undefined;
    if (again !== undefined) {
      await this.#start(again);
      return 0;
    }
    const waits = schedule
      .between(nowMs - this.#job.jitterMs, nowMs + LOOK_MS)
      .map((moment) => moment + this.#delay(moment) - nowMs);
    return Math.min(LOOK_MS, ...waits.filter((waitMs) => waitMs > 0));
  }

  /** What is missing of the newest moment, if its only run was cut off. */
  async #cutOff(
    history: readonly ScheduledRun[],
  ): Promise<(Pick<RunOrder, "trigger" | "domains"> & { readonly scheduledMs: number }) | undefined> {
    const newestMs = Math.max(...history.map(({ scheduledMs }) => scheduledMs));
    const [run, ...more] = history.filter(({ scheduledMs }) => scheduledMs === newestMs);
    if (run?.state !== "interrupted" || run.cancelled === true || more.length > 0) return undefined;
    const record = await this.#context.jobs.runner.log.read(run);
    const domains = record?.domains.filter((domain) => !endedWell(domain)).map(({ domain }) => domain) ?? [];
    const left = domains.filter((domain) => this.#job.domains.includes(domain));
    return left.length === 0 ? undefined : { trigger: "catch-up", scheduledMs: newestMs, domains: left };
  }

  async #start(
    order: Omit<RunOrder, "job" | "retries" | "endMs"> & { readonly scheduledMs: number },
  ): Promise<void> {
    const { notAfter, schedule, retries } = this.#job;
    const endMs =
      notAfter === undefined ? undefined : nextTimeOfDay(notAfter, schedule.timeZone, order.scheduledMs);
    await this.#context.jobs.runner.start(this.#context, {
      ...order,
      job: this.#job,
      retries,
      ...(endMs === undefined ? {} : { endMs }),
    });
  }

  #delay(scheduledMs: number): number {
    return jitterOf(this.#job.name, scheduledMs, this.#job.jitterMs);
  }

  /** A job that is new or has another schedule has missed nothing. When the clock is set back, moments are ahead again. */
  async #handled(): Promise<number> {
    const { store, clock } = this.#context;
    const { name, schedule } = this.#job;
    const nowMs = clock.now();
    if (this.#handledMs === undefined) {
      const note = await store.readNote("jobs", name);
      const isSame =
        isJobNote(note) && note.schedule === schedule.expression && note.timeZone === schedule.timeZone;
      this.#handledMs = isSame ? note.handledMs : undefined;
    }
    if (this.#handledMs === undefined || this.#handledMs > nowMs) await this.#note(nowMs);
    return this.#handledMs ?? nowMs;
  }

  async #note(handledMs: number): Promise<void> {
    const { expression, timeZone } = this.#job.schedule;
    const note: JobNote = { schemaVersion: 1, schedule: expression, timeZone, handledMs };
    this.#handledMs = handledMs;
    await this.#context.store.writeNote("jobs", this.#job.name, note);
  }
}

type ScheduledRun = RunSummary & { readonly scheduledMs: number };

function isScheduled(run: RunSummary): run is ScheduledRun {
  return run.scheduledMs !== undefined;
}

function isJobNote(note: unknown): note is JobNote {
  return typeof note === "object" && note !== null && "schemaVersion" in note && note.schemaVersion === 1;
}
