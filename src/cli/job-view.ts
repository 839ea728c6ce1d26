import type { Job, JobHistoryResponse, JobRun, JobRunDomain, ListJobsResponse } from "../api/messages.js";
import { timestampToMs } from "../api/timestamp.js";
import { formatBytes, formatDuration } from "../shared/units.js";
import { CONSISTENCY, milliseconds } from "./backup-view.js";
import { facts, formatTime, plural, table } from "./layout.js";
import { limitsInWords } from "./pace-view.js";
import { printable } from "./printable.js";

export function jobList({ jobs }: ListJobsResponse, terminal: boolean): string {
  if (jobs.length === 0) return "No jobs in the configuration\n";
  const overview = table(
    jobs,
    [
      { head: "JOB", cell: ({ name }) => name },
      { head: "DOES", cell: ({ kind }) => words(kind) },
      { head: "SCHEDULE", cell: ({ schedule, timeZone }) => `${schedule} (${timeZone})` },
      { head: "DOMAINS", cell: ({ domains }) => String(domains.length), align: "right" },
      { head: "LAST RUN", cell: ({ lastRun }) => (lastRun === null ? "-" : formatTime(lastRun.startTime)) },
      { head: "STATE", cell: ({ lastRun }) => (lastRun === null ? "-" : stateOf(lastRun)) },
      { head: "LAST SUCCESS", cell: ({ lastSuccess }) => formatTime(lastSuccess) },
    ],
    terminal,
  );
  const limits = jobs.flatMap(({ name, limits: of }) =>
    of === null ? [] : [`${printable(name)} is limited: ${printable(limitsInWords(of))}\n`],
  );
  return `${overview}\n${jobs.map(nextRuns).join("")}${limits.length === 0 ? "" : `\n${limits.join("")}`}`;
}

function nextRuns({ name, nextRuns: moments }: Job): string {
  return `${printable(name)} runs next:\n${moments.map((moment) => `  ${formatTime(moment)}\n`).join("")}`;
}

export function jobHistory({ runs }: JobHistoryResponse, terminal: boolean): string {
  if (runs.length === 0) return "No runs\n";
  const overview = table(
    runs,
    [
      { head: "RUN", cell: ({ id }) => id },
      { head: "JOB", cell: ({ job }) => job },
      { head: "STATE", cell: stateOf },
      { head: "WHY", cell: ({ trigger }) => words(trigger) },
      { head: "STARTED", cell: ({ startTime }) => formatTime(startTime) },
      { head: "TOOK", cell: (run) => tookOf(run) ?? "-", align: "right" },
      { head: "DOMAINS", cell: domainCount, align: "right" },
      { head: "READ", cell: (run) => formatBytes(sum(run, "readBytes")), align: "right" },
      { head: "STORED", cell: (run) => formatBytes(sum(run, "storedBytes")), align: "right" },
    ],
    terminal,
  );
  const notes = runs.flatMap((run) => notesOf(run).map((note) => `${run.id}: ${note}`));
  return notes.length === 0
    ? overview
    : `${overview}\n${notes.map((note) => `${printable(note)}\n`).join("")}`;
}

export function runDetails(run: JobRun, terminal: boolean): string {
  const head = facts([
    ["Run", run.id],
    ["Job", run.job],
    ["State", stateOf(run)],
    ["Reason", run.error?.message],
    ["Repository", run.repository],
    ["Took", tookOf(run)],
  ]);
  const domains = run.kind === "VERIFY" ? verifiedDomains(run, terminal) : backedUpDomains(run, terminal);
  const notes = notesOf(run).map((note) => `${printable(note)}\n`);
  return `${head}\n${domains}${notes.length === 0 ? "" : `\n${notes.join("")}`}`;
}

function verifiedDomains(run: JobRun, terminal: boolean): string {
  return table(
    run.domains,
    [
      { head: "DOMAIN", cell: ({ domain }) => domain },
      { head: "STATE", cell: stateOf },
      { head: "VERIFIED", cell: ({ verifications }) => String(verifications.length), align: "right" },
      { head: "TOOK", cell: (domain) => tookOf(domain) ?? "-", align: "right" },
    ],
    terminal,
  );
}

function backedUpDomains(run: JobRun, terminal: boolean): string {
  return table(
    run.domains,
    [
      { head: "DOMAIN", cell: ({ domain }) => domain },
      { head: "STATE", cell: stateOf },
      { head: "BACKUP", cell: ({ backup }) => backup?.id ?? "-" },
      { head: "LEVEL", cell: ({ backup }) => backup?.level.toLowerCase() ?? "-" },
      {
        head: "CONSISTENCY",
        cell: ({ backup }) =>
          backup === null ? "-" : (CONSISTENCY[backup.consistency].split(" (")[0] ?? ""),
      },
      { head: "FROZEN", cell: ({ backup }) => milliseconds(backup?.frozenMs) ?? "-", align: "right" },
      {
        head: "READ",
        cell: (domain) => formatBytes(sum({ domains: [domain] }, "readBytes")),
        align: "right",
      },
      {
        head: "STORED",
        cell: (domain) => formatBytes(sum({ domains: [domain] }, "storedBytes")),
        align: "right",
      },
    ],
    terminal,
  );
}

/** What somebody should read of a run. */
export function notesOf({ domains, missedCount, notes: afterwards }: JobRun): readonly string[] {
  return [
    ...afterwards,
    ...(missedCount === 0 ? [] : [`${plural(missedCount, "earlier run")} was missed and not made up for`]),
    ...domains.flatMap(({ domain, error, notes }) =>
      [...notes, ...(error === null ? [] : [`${error.message} (${error.code})`])].map(
        (note) => `${domain}: ${note}`,
      ),
    ),
  ];
}

export function stateOf({ state }: Pick<JobRun, "state">): string {
  return words(state);
}

function words(name: string): string {
  return name.toLowerCase().replaceAll("_", " ");
}

function domainCount({ domains, kind }: JobRun): string {
  const done = domains.filter(({ backup, verifications }) =>
    kind === "VERIFY" ? verifications.length > 0 : backup !== null,
  ).length;
  return `${done} of ${domains.length}`;
}

export function tookOf({ startTime, endTime }: Pick<JobRun, "startTime" | "endTime">): string | undefined {
  if (startTime === null || endTime === null) return undefined;
  return formatDuration(timestampToMs(endTime) - timestampToMs(startTime));
}

function sum(
  { domains }: { readonly domains: readonly JobRunDomain[] },
  key: "readBytes" | "storedBytes",
): number {
  const disks = domains.flatMap(({ backup }) => backup?.disks ?? []);
  return disks.reduce((total, disk) => total + disk[key], 0);
}
