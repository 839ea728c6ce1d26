import type { IntactEntry } from "../../model/backup.js";
import type { Job } from "../../model/job.js";
import { PASSING_ERRORS, retryPauseMs } from "../../model/retry.js";
import type { DomainRun, RunBootTest, RunRecord, RunTrigger, RunTrouble } from "../../model/run-record.js";
import { endedRun, endedWell, notesOf, runStateOf } from "../../model/run-record.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import { timedId } from "../../shared/ids.js";
import type { BackupProgress } from "../backup-run.js";
import { runBackup } from "../backup-run.js";
import type { ServiceContext } from "../context.js";
import { RunPace } from "../pace.js";
import { runHooks } from "./hooks.js";
import type { Places } from "./places.js";
import { sendReports } from "./reports.js";
import { backupKey, type RunLog } from "./run-log.js";
import type { DoneBackup, RunStep } from "./run-step.js";
import { verifyOldest } from "./verify-steps.js";

/** What one run is to do. */
export interface RunOrder {
  readonly job: Job;
  readonly trigger: RunTrigger;
  readonly scheduledMs?: number;
  readonly missedCount?: number;
  /** Those of the job that are to be backed up; left out: all. */
  readonly domains?: readonly string[];
  /** When the run must have ended. */
  readonly endMs?: number;
  readonly retries: number;
  /** The key of the request that asks for it. */
  readonly request?: string;
  readonly onProgress?: (domain: string, progress: BackupProgress) => void;
}

export interface RunParts {
  readonly context: ServiceContext;
  readonly log: RunLog;
  readonly places: Places;
  readonly steps: readonly RunStep[];
}

/** What came of a domain beside its backup. */
interface FollowUp {
  /** What somebody should read. */
  readonly notes: readonly string[];
  readonly failure?: RunTrouble;
}

/** The clock may be set: the end of the window is looked for again after so long. */
const LOOK_MS = 10_000;

/** One run of a job. Its record is durable before anything is done, and at each change of what a domain is at. */
export class JobRun {
  readonly #order: RunOrder;
  readonly #parts: RunParts;
  readonly #stop = new AbortController();
  /** Of all domains together. */
  readonly #pace: RunPace;
  #record: RunRecord;

  constructor(order: RunOrder, parts: RunParts) {
    this.#order = order;
    this.#parts = parts;
    const { job, trigger, scheduledMs, missedCount = 0, request } = order;
    const { clock, limits } = parts.context;
    this.#pace = new RunPace(job.limits ?? limits, clock);
    const startedAtMs = clock.now();
    this.#record = {
      schemaVersion: 1,
      id: timedId(startedAtMs),
      job: job.name,
      ...(job.kind === "backup" ? {} : { kind: job.kind }),
      repository: job.repository,
      trigger,
      scheduledMs,
      missedCount,
      startedAtMs,
      state: "running",
      request,
      owner: parts.log.owner(),
      domains: (order.domains ?? job.domains).map((domain) => ({
        domain,
        state: "waiting",
        attempts: 0,
        notes: [],
      })),
    };
  }

  get record(): RunRecord {
    return this.#record;
  }

  /** Makes the run known. Never fails. */
  async begin(): Promise<void> {
    const { id, job, trigger } = this.#record;
    this.#parts.context.log.info({ job, run: id, trigger }, "A run of a job begins");
    await this.#parts.log.save(this.#record);
  }

  /** What runs is undone; what is complete stays. Somebody who `cancelled` it does not want it made up for. */
  abort(reason: FleeceError, { cancelled = false } = {}): void {
    if (this.#stop.signal.aborted) return;
    if (cancelled) this.#record = { ...this.#record, cancelled };
    this.#stop.abort(reason);
  }

  /** Resolves when all has ended. Never fails: what did is in the record. */
  async perform(): Promise<RunRecord> {
    const { context, log } = this.#parts;
    const done = new AbortController();
    const window = this.#watchWindow(done.signal);
    await Promise.all(this.#record.domains.map(({ domain }) => this.#backUp(domain)));
    done.abort();
    await window;
    const reason = this.#stop.signal.aborted ? troubleOf(this.#stop.signal.reason) : undefined;
    const ended = endedRun(
      this.#record,
      { state: "interrupted", error: reason ?? { code: "INTERNAL", message: "It did not end" } },
      context.clock.now(),
    );
    const isTold = this.#order.job.report !== undefined;
    // Whoever finds it due knows that we were killed before all were told.
    this.#record = isTold ? { ...ended, reportDue: true } : ended;
    await log.save(this.#record);
    await log.forget();
    context.meter.jobRunEnded(ended.job, ended.state);
    const facts = { job: ended.job, run: ended.id, state: ended.state, ...ended.error };
    if (endedWell(ended)) context.log.info(facts, "A run of a job has ended");
    else context.log.warn(facts, `A run of a job has not succeeded: ${ended.error?.message ?? ""}`);
    const isCancelled = reason?.code === "INTERRUPTED";
    if (!isTold) return ended;
    const notes = await sendReports(context, this.#order.job, ended, { isBrief: isCancelled });
    this.#record = notes.length === 0 ? ended : { ...ended, notes };
    await log.save(this.#record);
    return this.#record;
  }

  async #watchWindow(done: AbortSignal): Promise<void> {
    const { clock } = this.#parts.context;
    const { endMs, job } = this.#order;
    if (endMs === undefined) return;
    const signal = AbortSignal.any([done, this.#stop.signal]);
    while (!signal.aborted) {
      const leftMs = endMs - clock.now();
      if (leftMs <= 0) {
        const message = `Expected to end not after ${job.notAfter ?? ""} (${job.schedule.timeZone}); what had not ended then was undone`;
        this.#stop.abort(new FleeceError("WINDOW_ENDED", message));
        return;
      }
      // Only the signal ends a sleep early.
      await clock.sleep(Math.min(leftMs, LOOK_MS), signal).catch(() => undefined);
    }
  }

  /** Tries until it succeeds, or fails in a way that does not pass. */
  async #backUp(domain: string): Promise<void> {
    const { clock, log } = this.#parts.context;
    for (let attempts = 1; ; attempts++) {
      const error = await this.#attempt(domain, attempts);
      if (error === undefined) return;
      const trouble = troubleOf(error);
      const { signal } = this.#stop;
      const pauseMs = retryPauseMs(attempts);
      const isLate = clock.now() + pauseMs >= (this.#order.endMs ?? Infinity);
      const isLast = PASSING_ERRORS[trouble.code] === undefined || attempts > this.#order.retries || isLate;
      if (signal.aborted || isLast) {
        await this.#end(domain, signal.aborted ? this.#aborted() : { state: "failed", error: trouble });
        return;
      }
      const facts = { job: this.#record.job, run: this.#record.id, domain, code: trouble.code };
      log.warn(facts, `The backup is tried again in ${pauseMs / 1000} s: ${trouble.message}`);
      await this.#change(domain, {
        phase: "pause",
        error: trouble,
        notes: [...this.#of(domain).notes, `try ${attempts} failed: ${trouble.message} (${trouble.code})`],
      });
      await clock.sleep(pauseMs, signal).catch(() => undefined);
    }
  }

  #aborted(): Pick<DomainRun, "state" | "error"> {
    const error = troubleOf(this.#stop.signal.reason);
    return { state: error.code === "WINDOW_ENDED" ? "failed" : "interrupted", error };
  }

  /** Resolves with why the domain has no backup, or was not verified; undefined if all is done. */
  async #attempt(domain: string, attempts: number): Promise<unknown> {
    const { context, places } = this.#parts;
    const { job } = this.#order;
    const { signal } = this.#stop;
    const isBackup = job.kind === "backup";
    try {
      using _place = await places.take({ domain, repository: job.repository }, signal);
      const startedAtMs = this.#of(domain).startedAtMs ?? context.clock.now();
      await this.#change(domain, {
        state: "running",
        phase: isBackup ? "backup" : "verification",
        attempts,
        startedAtMs,
        error: undefined,
      });
      if (attempts === 1) await this.#hooksBefore(domain);
      const { notes: more, failure } = isBackup
        ? await this.#followUp(await this.#take(domain))
        : await this.#verify(domain);
      const { backup, notes: earlier } = this.#of(domain);
      const notes = [...earlier, ...(backup === undefined ? [] : notesOf(backup)), ...more];
      const state = notes.length === 0 ? "complete" : "complete-with-notes";
      await this.#end(domain, {
        notes,
        ...(failure === undefined ? { state } : { state: "failed", error: failure }),
      });
      return undefined;
    } catch (error) {
      return error;
    }
  }

  async #take(domain: string): Promise<IntactEntry> {
    const { job, onProgress } = this.#order;
    const entry = await runBackup(this.#parts.context, {
      domain,
      repository: job.repository,
      request: backupKey(this.#record),
      pace: this.#pace,
      signal: this.#stop.signal,
      ...(job.level === undefined ? {} : { level: job.level }),
      ...(job.quiesce === undefined ? {} : { quiesce: job.quiesce }),
      onProgress: (progress) => {
        if (progress.step === "started") {
          void this.#change(domain, { level: progress.level, reason: progress.reason });
        }
        onProgress?.(domain, progress);
      },
      onMissedChange: () => void this.#change(domain, { missedChange: true }),
      onDamagedParent: (note) => void this.#change(domain, { notes: [...this.#of(domain).notes, note] }),
    });
    await this.#change(domain, { phase: "after-backup", backup: entry });
    return entry;
  }

  /** What the end of the window leaves out has its turn in another run. */
  async #verify(domain: string): Promise<FollowUp> {
    const { repository, verify } = this.#order.job;
    const { signal } = this.#stop;
    const work = { domain, repository, budgetMs: verify?.budgetMs ?? 0, signal };
    try {
      return { notes: await verifyOldest(this.#parts.context, { ...work, ...this.#verified(domain) }) };
    } catch (error) {
      if (isFleeceError(error, "DAMAGED")) return { notes: [], failure: troubleOf(error) };
      if (!isFleeceError(error, "WINDOW_ENDED")) throw error;
      return { notes: ["the window ended before the budget did; the rest is verified another time"] };
    }
  }

  #verified(domain: string): Pick<DoneBackup, "onVerified"> {
    return {
      onVerified: (verification) => {
        const { verifications = [] } = this.#of(domain);
        void this.#change(domain, { verifications: [...verifications, verification] });
      },
    };
  }

  async #followUp(entry: IntactEntry): Promise<FollowUp> {
    const { context, steps } = this.#parts;
    const { domain } = entry;
    const onBooted = (bootTest: RunBootTest): void => void this.#change(domain, { bootTest });
    const onCopied = (backup: string): void => {
      const { copies = [] } = this.#of(domain);
      void this.#change(domain, { copies: [...copies, backup] });
    };
    const done = {
      job: this.#order.job,
      entry,
      signal: this.#stop.signal,
      ...this.#verified(domain),
      onBooted,
      onCopied,
    };
    const notes: string[] = [];
    for (const { name, perform } of steps) {
      try {
        notes.push(...(await perform(context, done)));
      } catch (error) {
        const trouble = troubleOf(error);
        if (isFleeceError(error, "DAMAGED", "BOOT_FAILED")) return { notes, failure: trouble };
        notes.push(`${name} failed: ${trouble.message} (${trouble.code})`);
      }
    }
    return { notes };
  }

  #of(domain: string): DomainRun {
    const found = this.#record.domains.find((listed) => listed.domain === domain);
    if (found !== undefined) return found;
    throw new FleeceError("INTERNAL", `Expected a domain of the run, got ${domain}`);
  }

  /** Fails with HOOK_FAILED if there is to be no backup. */
  async #hooksBefore(domain: string): Promise<void> {
    const { context } = this.#parts;
    const part = this.#of(domain);
    const place = { record: this.#record, part };
    const { notes, stop } = await runHooks(context, this.#order.job, "before", place, this.#stop.signal);
    await this.#change(domain, { notes: [...part.notes, ...notes] });
    if (stop) throw new FleeceError("HOOK_FAILED", notes.at(-1) ?? "");
  }

  async #end(domain: string, how: Partial<DomainRun>): Promise<void> {
    const { context } = this.#parts;
    const part = { ...this.#of(domain), ...how };
    const when = endedWell(part) ? "after" : "failed";
    // What somebody has prepared is to be put right also when the run was ended, but soon then.
    const isAborted = this.#stop.signal.aborted;
    const place = { record: this.#record, part };
    const ran = await runHooks(
      context,
      this.#order.job,
      when,
      place,
      undefined,
      isAborted ? LAST_HOOK_MS : undefined,
    );
    const state = part.state === "complete" && ran.notes.length > 0 ? "complete-with-notes" : part.state;
    const notes = [...part.notes, ...ran.notes];
    const finishedAtMs = context.clock.now();
    await this.#change(domain, { ...how, phase: undefined, finishedAtMs, state, notes });
  }

  async #change(domain: string, what: Partial<DomainRun>): Promise<void> {
    const domains = this.#record.domains.map((listed) =>
      listed.domain === domain ? { ...listed, ...what } : listed,
    );
    this.#record = { ...this.#record, domains };
    // The last one is told with the end of the run.
    if (runStateOf(domains) === "running") await this.#parts.log.save(this.#record);
  }
}

function troubleOf(error: unknown): RunTrouble {
  const code = isFleeceError(error) ? error.code : "INTERNAL";
  return { code, message: errorMessage(error).slice(0, LONGEST_MESSAGE) };
}

/** The agent may be about to end. */
const LAST_HOOK_MS = 10_000;

/** In characters: records are bounded. */
const LONGEST_MESSAGE = 2000;
