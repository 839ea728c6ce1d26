import { isIntact, type IntactEntry } from "../../model/backup.js";
import type { Job } from "../../model/job.js";
import { lastBackups } from "../../model/last-backups.js";
import type { DomainRun, RunRecord } from "../../model/run-record.js";
import { jitterOf } from "../../model/schedule.js";
import { errorMessage } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";

/** How many moments ahead are told. */
const NEXT_RUNS = 5;

export interface JobOverview {
  readonly job: Job;
  /** With the jitter of each. */
  readonly nextRunsMs: readonly number[];
  readonly lastRun: RunRecord | undefined;
  readonly lastSuccessMs: number | undefined;
}

/** The jobs of the configuration, in its order. */
export async function jobOverviews(context: ServiceContext): Promise<readonly JobOverview[]> {
  const { list, runner } = context.jobs;
  const overviews: JobOverview[] = [];
  for (const job of list) {
    const [newest] = await runner.log.summaries(job.name);
    overviews.push({
      job,
      nextRunsMs: nextRuns(context, job, NEXT_RUNS),
      lastRun: newest && (await runner.log.read(newest)),
      lastSuccessMs: await runner.log.lastSuccessMs(job.name),
    });
  }
  return overviews;
}

function nextRuns({ clock }: ServiceContext, job: Job, count: number): readonly number[] {
  return job.schedule
    .next(clock.now(), count)
    .map((moment) => moment + jitterOf(job.name, moment, job.jitterMs));
}

export interface DomainStatus {
  readonly domain: string;
  /** The newest backup that can be restored, of all repositories. */
  readonly lastBackup: IntactEntry | undefined;
  readonly next: { readonly job: string; readonly timeMs: number } | undefined;
  /** Its part of the newest run that it had one in. */
  readonly last: { readonly job: string; readonly part: DomainRun } | undefined;
  /** Why backups could not be listed, or why the last run has not succeeded. */
  readonly trouble: string | undefined;
}

/** How each domain of the configuration is doing, from the repositories and the records: no domain is asked. */
export async function domainStatuses(context: ServiceContext): Promise<readonly DomainStatus[]> {
  const runs = await newestParts(context);
  const statuses: DomainStatus[] = [];
  for (const domain of context.domains) {
    const { lastBackup, problems } = await newestBackup(context, domain);
    const next = context.jobs.list
      .filter((job) => job.kind === "backup" && job.domains.includes(domain))
      .flatMap((job) => nextRuns(context, job, 1).map((timeMs) => ({ job: job.name, timeMs })))
      .toSorted((a, b) => a.timeMs - b.timeMs)[0];
    const last = runs.get(domain);
    const failure = last?.part.error?.message;
    const trouble = [...problems, ...(failure === undefined ? [] : [failure])].join("; ");
    statuses.push({ domain, lastBackup, next, last, trouble: trouble === "" ? undefined : trouble });
  }
  return statuses;
}

/** Of each domain of the configuration that any run of its records has. */
async function newestParts({
  domains,
  jobs: { runner },
}: ServiceContext): Promise<ReadonlyMap<string, { readonly job: string; readonly part: DomainRun }>> {
  const found = new Map<string, { readonly job: string; readonly part: DomainRun }>();
  for (const summary of await runner.log.summaries()) {
    if (domains.every((domain) => found.has(domain))) break;
    const record = await runner.log.read(summary);
    for (const part of record?.domains ?? []) {
      if (!found.has(part.domain)) found.set(part.domain, { job: summary.job, part });
    }
  }
  return found;
}

async function newestBackup(
  { repositories }: ServiceContext,
  domain: string,
): Promise<{ readonly lastBackup: IntactEntry | undefined; readonly problems: readonly string[] }> {
  let lastBackup: IntactEntry | undefined;
  const problems: string[] = [];
  for (const repository of repositories.values()) {
    try {
      const entries = await repository.list(domain);
      const { timeMs } = lastBackups(entries);
      const newest = entries.filter(isIntact).find(({ manifest }) => Date.parse(manifest.time) === timeMs);
      if (newest === undefined) continue;
      if (lastBackup === undefined || newest.manifest.time > lastBackup.manifest.time) lastBackup = newest;
    } catch (error) {
      problems.push(`repository ${repository.name}: ${errorMessage(error)}`);
    }
  }
  return { lastBackup, problems };
}
