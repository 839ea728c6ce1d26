import { type BackupLimits, isLimited } from "../model/backup-limits.js";
import type { DomainRun, RunRecord, RunTrouble } from "../model/run-record.js";
import type { ServiceContext } from "../services/context.js";
import { requireJob } from "../services/jobs/job-runner.js";
import {
  domainStatuses,
  type DomainStatus,
  type JobOverview,
  jobOverviews,
} from "../services/jobs/job-status.js";
import { FleeceError } from "../shared/errors.js";
import { backupMessage, LEVELS, progressMessage } from "./backups.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type {
  BackupLimits as BackupLimitsMessage,
  Job,
  JobHistoryResponse,
  JobRun,
  JobRunDomain,
  JobTrouble,
  ListJobsResponse,
  Status,
  StatusDomain,
} from "./messages.js";
import { page } from "./page.js";
import { timestampFromMs, type Timestamp } from "./timestamp.js";

const STATES = {
  waiting: "WAITING",
  running: "RUNNING",
  complete: "COMPLETE",
  "complete-with-notes": "COMPLETE_WITH_NOTES",
  failed: "FAILED",
  interrupted: "INTERRUPTED",
} as const;
const TRIGGERS = { schedule: "SCHEDULE", "catch-up": "CATCH_UP", request: "REQUEST" } as const;
const PHASES = {
  backup: "BACKUP",
  pause: "PAUSE",
  "after-backup": "AFTER_BACKUP",
  verification: "VERIFICATION",
} as const;
const KINDS = { backup: "BACKUP", verify: "VERIFY" } as const;

export async function listJobsHandler(
  context: ServiceContext,
  paging: CallRequest<"Jobs.List">,
): Promise<ListJobsResponse> {
  const jobs = await jobOverviews(context);
  const { items, nextPageToken } = page(jobs, paging, ["jobs"], (overview) => [jobs.indexOf(overview)]);
  return { jobs: items.map((item) => jobMessage(item, context)), nextPageToken };
}

/** A repeat after a kill gets the record of the run that was killed. */
export async function runJobHandler(
  context: ServiceContext,
  { job: name }: CallRequest<"Jobs.Run">,
  { signal, onProgress, requestKey }: CallOptions,
): Promise<JobRun> {
  const { runner } = context.jobs;
  const job = requireJob(context, name);
  const earlier =
    requestKey === undefined
      ? undefined
      : (await runner.log.summaries(name)).find(({ request }) => request === requestKey);
  const record = earlier && (await runner.log.read(earlier));
  if (record !== undefined) return runMessage(record);
  const { run, ended } = await runner.start(context, {
    job,
    trigger: "request",
    retries: 0,
    ...(requestKey === undefined ? {} : { request: requestKey }),
    ...(onProgress === undefined
      ? {}
      : { onProgress: (domain, progress) => onProgress({ ...progressMessage(progress), domain }) }),
  });
  const abort = (): void =>
    run.abort(new FleeceError("INTERRUPTED", "Whoever asked for the run gave it up"), { cancelled: true });
  signal?.addEventListener("abort", abort, { once: true });
  if (signal?.aborted === true) abort();
  const result = await ended;
  signal?.throwIfAborted();
  return runMessage(result);
}

export async function cancelJobHandler(
  context: ServiceContext,
  { job: name }: CallRequest<"Jobs.Cancel">,
): Promise<JobRun> {
  const job = requireJob(context, name);
  return runMessage(await context.jobs.runner.cancel(job.name, context.client.name));
}

export async function jobHistoryHandler(
  { jobs: { runner } }: ServiceContext,
  { job, ...paging }: CallRequest<"Jobs.History">,
): Promise<JobHistoryResponse> {
  const summaries = await runner.log.summaries(job);
  const { items, nextPageToken } = page(summaries, paging, ["runs", job ?? null], ({ startedAtMs, id }) => [
    -startedAtMs,
    id,
  ]);
  const records = await Promise.all(items.map((summary) => runner.log.read(summary)));
  return { runs: records.filter((record) => record !== undefined).map(runMessage), nextPageToken };
}

export async function statusHandler(context: ServiceContext): Promise<Status> {
  return { domains: (await domainStatuses(context)).map(statusMessage) };
}

function jobMessage(
  { job, nextRunsMs, lastRun, lastSuccessMs }: JobOverview,
  { limits: defaults }: ServiceContext,
): Job {
  const {
    name,
    schedule,
    domains,
    repository,
    copyTo,
    level,
    quiesce,
    notAfter,
    jitterMs,
    retries,
    catchUp,
  } = job;
  return {
    name,
    schedule: schedule.expression,
    timeZone: schedule.timeZone,
    domains,
    repository,
    level: level === undefined ? "LEVEL_UNSPECIFIED" : LEVELS[level],
    quiesce,
    notAfter,
    jitterMs,
    retries,
    catchUp,
    kind: KINDS[job.kind],
    nextRuns: nextRunsMs.map(timestampFromMs),
    lastRun: lastRun === undefined ? null : runMessage(lastRun),
    lastSuccess: moment(lastSuccessMs),
    copyTo,
    limits: limitsMessage(job.limits ?? defaults),
  };
}

function limitsMessage(limits: BackupLimits): BackupLimitsMessage | null {
  if (!isLimited(limits)) return null;
  const { readBytesPerSecond, writeBytesPerSecond, hours, timeZone, guestLatencyMs } = limits;
  return {
    readBytesPerSecond,
    writeBytesPerSecond,
    hours: hours.map(({ fromMinute, untilMinute, ...rates }) => ({
      from: timeOfDay(fromMinute),
      until: timeOfDay(untilMinute),
      readBytesPerSecond: rates.readBytesPerSecond,
      writeBytesPerSecond: rates.writeBytesPerSecond,
    })),
    timeZone,
    guestLatencyMs,
  };
}

function timeOfDay(minute: number): string {
  return [Math.floor(minute / 60), minute % 60].map((part) => String(part).padStart(2, "0")).join(":");
}

export function runMessage(record: RunRecord): JobRun {
  const { id, job, state, trigger, scheduledMs, missedCount, startedAtMs, finishedAtMs } = record;
  return {
    id,
    job,
    state: STATES[state],
    trigger: TRIGGERS[trigger],
    scheduledTime: moment(scheduledMs),
    missedCount,
    startTime: timestampFromMs(startedAtMs),
    endTime: moment(finishedAtMs),
    error: troubleMessage(record.error),
    repository: record.repository,
    domains: record.domains.map(domainMessage),
    cancelled: record.cancelled === true,
    notes: record.notes ?? [],
    kind: KINDS[record.kind ?? "backup"],
  };
}

function domainMessage(part: DomainRun): JobRunDomain {
  const { domain, state, phase, attempts, startedAtMs, finishedAtMs, level, reason, backup, notes } = part;
  return {
    domain,
    state: STATES[state],
    phase: phase === undefined ? "PHASE_UNSPECIFIED" : PHASES[phase],
    attempts,
    startTime: moment(startedAtMs),
    endTime: moment(finishedAtMs),
    level: level === undefined ? "LEVEL_UNSPECIFIED" : LEVELS[level],
    reason: reason ?? "",
    backup: backup === undefined ? null : backupMessage(backup),
    error: troubleMessage(part.error),
    notes,
    copies: part.copies ?? [],
    verifications: (part.verifications ?? []).map(({ backup: id, durationMs, damage }) => ({
      backup: id,
      durationMs,
      damage,
    })),
    bootTest: part.bootTest === undefined ? null : { ...part.bootTest },
  };
}

function statusMessage({ domain, lastBackup, next, last, trouble }: DomainStatus): StatusDomain {
  return {
    domain,
    lastBackup: lastBackup === undefined ? null : backupMessage(lastBackup),
    nextRun: moment(next?.timeMs),
    nextJob: next?.job ?? "",
    lastState: last === undefined ? "STATE_UNSPECIFIED" : STATES[last.part.state],
    lastJob: last?.job ?? "",
    lastTime: moment(last?.part.finishedAtMs ?? last?.part.startedAtMs),
    trouble,
  };
}

function troubleMessage(trouble: RunTrouble | undefined): JobTrouble | null {
  return trouble === undefined ? null : { code: trouble.code, message: trouble.message };
}

function moment(timeMs: number | undefined): Timestamp | null {
  return timeMs === undefined ? null : timestampFromMs(timeMs);
}
