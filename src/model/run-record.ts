import type { ErrorCode } from "../shared/errors.js";
import type { BackupLevel, IntactEntry } from "./backup.js";
import type { JobKind } from "./job.js";

/**
 * What is known of one run of a job. `complete-with-notes`: every domain has its backup, and somebody should read why it is
 * not as wanted; of a job that verifies, backups were. `failed`: a domain has none, or a backup of it was found damaged. `interrupted`: cancelled, or the process that ran it ended.
 */
export type RunState = "running" | "complete" | "complete-with-notes" | "failed" | "interrupted";

/** `waiting`: for one of the places of those that are backed up at once. */
export type DomainRunState = "waiting" | RunState;

/**
 * What a domain that is running is at. `pause`: until the next try. `after-backup`: steps that follow on its backup.
 * `verification`: of the backups that it has, by a job that does nothing else.
 */
export type RunPhase = "backup" | "pause" | "after-backup" | "verification";

/** `catch-up`: for a moment that was missed or a run that was cut off. `request`: somebody asked for it. */
export type RunTrigger = "schedule" | "catch-up" | "request";

export interface RunTrouble {
  readonly code: ErrorCode;
  readonly message: string;
}

/** A backup of the domain that was read, after the new one was complete or by a job of its own. */
export interface RunVerification {
  readonly backup: string;
  readonly durationMs: number;
  /** What is wrong with it; undefined: it is sound. */
  readonly damage?: string | undefined;
}

export interface DomainRun {
  readonly domain: string;
  readonly state: DomainRunState;
  readonly phase?: RunPhase | undefined;
  /** Tries that were begun. */
  readonly attempts: number;
  readonly startedAtMs?: number | undefined;
  readonly finishedAtMs?: number | undefined;
  /** As decided by the newest try, with its reason. */
  readonly level?: BackupLevel | undefined;
  readonly reason?: string | undefined;
  readonly backup?: IntactEntry | undefined;
  /** Of the newest try, if it failed. */
  readonly error?: RunTrouble | undefined;
  readonly notes: readonly string[];
  readonly verifications?: readonly RunVerification[] | undefined;
  /** A sample found a change that bitmaps had not recorded: earlier backups may lack it. */
  readonly missedChange?: boolean | undefined;
  /** Ids of the backups that were copied to the second repository, oldest first. */
  readonly copies?: readonly string[] | undefined;
  readonly bootTest?: RunBootTest | undefined;
}

/** A machine that was booted on the disks of the new backup. */
export interface RunBootTest {
  readonly durationMs: number;
  /** Why it did not come up; undefined: it did. */
  readonly failure?: string | undefined;
}

/** A process, told apart from all others before and after it. */
export interface RunOwner {
  readonly pid: number;
  readonly startTicks: number;
  /** The id of the host's boot. */
  readonly hostStart: string;
}

export interface RunRecord {
  readonly schemaVersion: 1;
  /** Sorts by the time at which the run began. */
  readonly id: string;
  readonly job: string;
  /** Left out: `backup`. */
  readonly kind?: JobKind | undefined;
  readonly repository: string;
  readonly trigger: RunTrigger;
  /** The moment of the schedule that it is for; a run by request has none. */
  readonly scheduledMs?: number | undefined;
  /** Moments before that one which were missed and are not made up for. */
  readonly missedCount: number;
  readonly startedAtMs: number;
  /** Undefined while it runs, and when nobody was there to see its end. */
  readonly finishedAtMs?: number | undefined;
  readonly state: RunState;
  /** Why it failed or was interrupted. */
  readonly error?: RunTrouble | undefined;
  /** Somebody wanted it to end: it is not made up for. */
  readonly cancelled?: boolean | undefined;
  /** The key of the request that it was made for, if that had an id. */
  readonly request?: string | undefined;
  readonly owner: RunOwner;
  readonly domains: readonly DomainRun[];
  /** Of what came after its end. */
  readonly notes?: readonly string[] | undefined;
  /** Nobody is known to have been told of its end. */
  readonly reportDue?: boolean | undefined;
}

const ENDED_WELL: ReadonlySet<DomainRunState> = new Set(["complete", "complete-with-notes"]);

export function endedWell({ state }: Pick<DomainRun | RunRecord, "state">): boolean {
  return ENDED_WELL.has(state);
}

/** Whether somebody should hear of it who hears of failures alone. */
export function isAlarming(record: Pick<RunRecord, "state" | "domains">): boolean {
  return !endedWell(record) || record.domains.some(({ missedChange }) => missedChange === true);
}

/** Of a run whose domains have these states: the first of a list from what matters most. */
export function runStateOf(domains: readonly Pick<DomainRun, "state">[]): RunState {
  const states = new Set(domains.map(({ state }) => state));
  if (states.has("running") || states.has("waiting")) return "running";
  for (const state of ["interrupted", "failed", "complete-with-notes"] as const) {
    if (states.has(state)) return state;
  }
  return "complete";
}

/** The record of a run that ends: what has not ended in it ends as told. */
export function endedRun(
  record: RunRecord,
  unfinished: { readonly state: "failed" | "interrupted"; readonly error: RunTrouble },
  finishedAtMs?: number,
): RunRecord {
  const domains = record.domains.map((domain): DomainRun => {
    if (domain.state !== "running" && domain.state !== "waiting") return domain;
    return { ...domain, ...unfinished, phase: undefined, finishedAtMs };
  });
  const state = runStateOf(domains);
  const troubled = domains.find((domain) => domain.state === state && domain.error !== undefined);
  const error = state === "failed" || state === "interrupted" ? troubled?.error : undefined;
  const lastMs = Math.max(...domains.map((domain) => domain.finishedAtMs ?? 0));
  return {
    ...record,
    domains,
    state,
    finishedAtMs: finishedAtMs ?? (endedWell({ state }) ? lastMs : undefined),
    error,
  };
}

export const OWNER_GONE: RunTrouble = {
  code: "INTERRUPTED",
  message: "The process that ran it ended before it did; what it had begun is undone",
};

/** What of a backup somebody should read. */
export function notesOf({ manifest }: IntactEntry): readonly string[] {
  const { quiesceFailure, level, disks } = manifest;
  return [
    ...(quiesceFailure === undefined ? [] : [`the guest was not frozen as asked: ${quiesceFailure}`]),
    ...(level === "full" ? [] : disks.filter(({ mode }) => mode !== "changes")).map(
      ({ target, mode, reason }) =>
        `disk ${target} was ${mode === "compare" ? "read in full" : "stored whole"}: ${reason}`,
    ),
  ];
}

/** Ids tell seconds alone. */
export function newestFirst(
  a: Pick<RunRecord, "startedAtMs" | "id">,
  b: Pick<RunRecord, "startedAtMs" | "id">,
): number {
  return b.startedAtMs - a.startedAtMs || (a.id < b.id ? 1 : -1);
}

export interface KeptRecord extends Pick<RunRecord, "id" | "job" | "state" | "startedAtMs"> {
  readonly bytes: number;
}

export const RUNS_KEPT = { perJob: 100, bytes: 16 * 2 ** 20 };

/** Which records go, so that the others keep the bounds. What runs stays, and each job's newest good run, if they fit at all. */
export function recordsToForget<Kept extends KeptRecord>(
  records: readonly Kept[],
  bounds = RUNS_KEPT,
): readonly Kept[] {
  const sorted = records.toSorted(newestFirst);
  const isDear = (record: Kept): boolean =>
    record.state === "running" ||
    sorted.find((other) => other.job === record.job && endedWell(other)) === record;
  const perJob = new Map<string, number>();
  let bytes = sorted.filter(isDear).reduce((sum, record) => sum + record.bytes, 0);
  const forgotten: Kept[] = [];
  for (const record of sorted) {
    const count = (perJob.get(record.job) ?? 0) + 1;
    perJob.set(record.job, count);
    if (isDear(record)) continue;
    bytes += record.bytes;
    if (count > bounds.perJob || bytes > bounds.bytes) {
      bytes -= record.bytes;
      forgotten.push(record);
    }
  }
  return forgotten;
}
