import type { Job, JobLimits } from "../../model/job.js";
import { checkName } from "../../model/names.js";
import type { RunRecord } from "../../model/run-record.js";
import { FleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import { JobRun, type RunOrder } from "./job-run.js";
import { Places } from "./places.js";
import { RunLog, type RunLogParts } from "./run-log.js";
import type { RunStep } from "./run-step.js";

/** What a context knows of jobs. */
export interface Jobs {
  /** In the order of the configuration. */
  readonly list: readonly Job[];
  readonly limits: JobLimits;
  /** One for all contexts of a process: what runs outlives a reload. */
  readonly runner: JobRunner;
  /** A run as programs are told of it: the JSON form of the message `JobRun`. */
  readonly toJson: (record: RunRecord) => Promise<string>;
}

interface ActiveRun {
  readonly run: JobRun;
  readonly ended: Promise<RunRecord>;
}

/** Fails with INVALID_NAME or JOB_NOT_FOUND. */
export function requireJob({ jobs }: Pick<ServiceContext, "jobs">, name: string): Job {
  checkName("job", name);
  const found = jobs.list.find((job) => job.name === name);
  if (found !== undefined) return found;
  const names = jobs.list.map((job) => job.name).join(", ");
  throw new FleeceError(
    "JOB_NOT_FOUND",
    `The configuration has no job ${name}; it has ${names === "" ? "none" : names}`,
    { facts: { job: name } },
  );
}

/** The runs of one process: one of each job at a time, within the limits of all. */
export class JobRunner {
  readonly log: RunLog;
  readonly #steps: readonly RunStep[];
  readonly #places = new Places();
  readonly #active = new Map<string, ActiveRun>();
  #closed = false;

  constructor(parts: RunLogParts, steps: readonly RunStep[] = []) {
    this.log = new RunLog(parts);
    this.#steps = steps;
  }

  isRunning(job: string): boolean {
    return this.#active.has(job);
  }

  /** Resolves when the run's record is durable. `ended` never fails. Fails with JOB_BUSY, or with INTERRUPTED after `close`. */
  async start(
    context: ServiceContext,
    order: RunOrder,
  ): Promise<{ readonly run: JobRun; readonly ended: Promise<RunRecord> }> {
    const { name } = order.job;
    const other = this.#active.get(name);
    if (this.#closed) throw new FleeceError("INTERRUPTED", "The agent ends and begins no more runs of jobs");
    if (other !== undefined) {
      const { id } = other.run.record;
      throw new FleeceError("JOB_BUSY", `Job ${name} runs already: ${id}`, { facts: { job: name, run: id } });
    }
    this.#places.use(context.jobs.limits);
    const run = new JobRun(order, { context, log: this.log, places: this.#places, steps: this.#steps });
    const begun = run.begin();
    const ended = begun.then(() => run.perform()).finally(() => this.#active.delete(name));
    this.#active.set(name, { run, ended });
    await begun;
    return { run, ended };
  }

  /** Ends a run, and resolves with its record when all that it had begun is undone. Fails with RUN_NOT_FOUND. */
  async cancel(job: string, by: string): Promise<RunRecord> {
    const active = this.#active.get(job);
    if (active === undefined) {
      throw new FleeceError("RUN_NOT_FOUND", `Job ${job} has no run under way in this process`, {
        facts: { job },
      });
    }
    active.run.abort(new FleeceError("INTERRUPTED", `${by} cancelled the run`), { cancelled: true });
    return active.ended;
  }

  /** Begins no more runs, ends those there are, and resolves when all is undone. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    const runs = [...this.#active.values()];
    for (const { run } of runs)
      run.abort(new FleeceError("INTERRUPTED", "The agent ended while the job ran"));
    await Promise.all(runs.map(({ ended }) => ended));
  }
}
