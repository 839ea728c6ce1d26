import { isIntact } from "../model/backup.js";
import { checkName } from "../model/names.js";
import type { RetentionDecision, RetentionPlan, RetentionPolicy } from "../model/retention.js";
import { planRetention } from "../model/retention.js";
import type { BackupRepository, MergeProgress } from "../ports/repository.js";
import { errorMessage, type FleeceError, isFleeceError } from "../shared/errors.js";
import { listBackups } from "./backup-catalog.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, requireRepository } from "./context.js";
import { dropUnusedCheckpoints, expectUnusedCheckpoints } from "./unused-checkpoints.js";

export interface PruneOptions {
  /** Left out: every repository. */
  readonly repository?: string | undefined;
  /** Left out: that of the configuration; where it has none, nothing is done. */
  readonly policy?: RetentionPolicy | undefined;
  /** Changes nothing. */
  readonly dryRun?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: MergeProgress) => void) | undefined;
}

/** What became of a backup: `kept` also for one that is damaged, or that waits. */
export interface PrunedBackup extends RetentionDecision {
  readonly outcome: "kept" | "planned" | "done" | "skipped";
  /** Why it was skipped. */
  readonly note?: string;
}

export interface Pruning {
  readonly domain: string;
  readonly repository: string;
  readonly dryRun: boolean;
  /** All backups of the domain in the repository, as they were; oldest first. */
  readonly backups: readonly PrunedBackup[];
  /** What was merged away in the domain. */
  readonly checkpoints: readonly string[];
  /** What could not be done, and will be tried again the next time. */
  readonly notes: readonly string[];
}

/**
 * Deletes and merges the backups of a domain that the retention policy does not keep, repository by repository, and answers
 * with those that have a policy. What a backup in use or damage stands in the way of is skipped, with the reason; so is a
 * repository that is busy, as long as there is another one where something could be looked at. Safe to interrupt and to repeat.
 * Fails with INVALID_NAME, REPOSITORY_NOT_FOUND or REPOSITORY_BUSY.
 */
export async function pruneDomain(
  context: ServiceContext,
  domain: string,
  options: PruneOptions = {},
): Promise<readonly Pruning[]> {
  checkName("domain", domain);
  return pruneEach(context, [domain], options);
}

/** The same for one domain, or for all that have backups. Fails with DOMAIN_NOT_FOUND if neither the configuration nor a list has it. */
export async function pruneDomains(
  context: ServiceContext,
  domain: string | undefined,
  options: PruneOptions,
): Promise<readonly Pruning[]> {
  const filter = options.repository === undefined ? {} : { repository: options.repository };
  const listed = new Set((await listBackups(context, filter)).map((entry) => entry.domain));
  if (domain !== undefined && !listed.has(domain)) requireDomain(context, domain);
  return pruneEach(context, domain === undefined ? [...listed].toSorted() : [domain], options);
}

async function pruneEach(
  context: ServiceContext,
  domains: readonly string[],
  options: PruneOptions,
): Promise<readonly Pruning[]> {
  const { repository: chosen } = options;
  const repositories =
    chosen === undefined ? [...context.repositories.values()] : [requireRepository(context, chosen)];
  const prunings: Pruning[] = [];
  const refusals: FleeceError[] = [];
  for (const [domain, repository] of domains.flatMap((each) =>
    repositories.map((one) => [each, one] as const),
  )) {
    const policy = options.policy ?? context.retention(repository.name, domain);
    if (options.dryRun === true) {
      if (policy !== undefined) prunings.push(await planOnly(repository, domain, policy));
      continue;
    }
    try {
      const pruning = await pruneOne(context, repository, domain, policy, options);
      if (policy !== undefined) prunings.push(pruning);
    } catch (error) {
      if (!isFleeceError(error, "REPOSITORY_BUSY")) throw error;
      refusals.push(error);
      const note = `Nothing was pruned in repository ${repository.name}: ${error.message}`;
      context.log.warn({ domain, repository: repository.name }, note);
      const place = { domain, repository: repository.name, dryRun: false };
      if (policy !== undefined) prunings.push({ ...place, backups: [], checkpoints: [], notes: [note] });
    }
  }
  const [refusal] = refusals;
  if (refusal !== undefined && prunings.every(({ backups }) => backups.length === 0)) throw refusal;
  return prunings;
}

async function planOnly(
  repository: BackupRepository,
  domain: string,
  policy: RetentionPolicy,
): Promise<Pruning> {
  const { decisions, steps } = planRetention(await repository.list(domain), policy);
  const backups = decisions.map((decision): PrunedBackup => ({
    ...decision,
    outcome: steps.includes(decision) ? "planned" : "kept",
  }));
  return { domain, repository: repository.name, dryRun: true, backups, checkpoints: [], notes: [] };
}

/** Without a policy, what was interrupted is finished all the same. */
async function pruneOne(
  context: ServiceContext,
  repository: BackupRepository,
  domain: string,
  policy: RetentionPolicy | undefined,
  options: PruneOptions,
): Promise<Pruning> {
  const notes: string[] = [];
  // Locking would make a directory for the domain.
  const isEmpty = (await repository.list(domain)).length === 0;
  if (isEmpty)
    return { domain, repository: repository.name, dryRun: false, backups: [], checkpoints: [], notes };
  const lock = await repository.lock(domain);
  let backups: readonly PrunedBackup[] = [];
  try {
    const trouble = await attempt(options, () => repository.finishMerges(domain, options));
    if (trouble !== undefined) notes.push(`An earlier merge cannot be finished: ${trouble}`);
    if (policy !== undefined) {
      const plan = planRetention(await repository.list(domain), policy);
      backups = await carryOut({ context, repository, domain, options }, plan);
    }
  } finally {
    await lock.release();
  }
  const unused = await dropUnusedCheckpoints(context, domain, options.signal);
  for (const note of [...notes, ...unused.notes]) context.log.warn({ domain }, note);
  return {
    ...{ domain, repository: repository.name, dryRun: false, backups },
    checkpoints: unused.removed,
    notes: [...notes, ...unused.notes],
  };
}

interface PruneWork {
  readonly context: ServiceContext;
  readonly repository: BackupRepository;
  readonly domain: string;
  readonly options: PruneOptions;
}

async function carryOut(
  work: PruneWork,
  { decisions, steps }: RetentionPlan,
): Promise<readonly PrunedBackup[]> {
  const { context, domain } = work;
  const outcomes = new Map<string, Pick<PrunedBackup, "outcome" | "note">>();
  const checkpoints = steps.flatMap(({ entry }) => (isIntact(entry) ? [entry.manifest.checkpoint] : []));
  await expectUnusedCheckpoints(context, domain, checkpoints);
  for (const step of steps) {
    const { entry, action, into, reasons } = step;
    const remaining = action === "delete" ? childrenLeft(decisions, outcomes, entry.id) : [];
    const note =
      remaining.length > 0
        ? `${remaining.join(", ")} could not be deleted, and based on it`
        : await attempt(work.options, () => carryOutStep(work, step));
    outcomes.set(entry.id, note === undefined ? { outcome: "done" } : { outcome: "skipped", note });
    const facts = { domain, repository: work.repository.name, backup: entry.id, into };
    if (note === undefined) context.log.info(facts, `Backup pruned (${action}): ${reasons.join(", ")}`);
    else context.log.warn(facts, `Backup not pruned (${action}): ${note}`);
  }
  if (steps.length > 0) context.meter.backupsChanged(domain);
  return decisions.map((decision) => ({
    ...decision,
    ...(outcomes.get(decision.entry.id) ?? { outcome: "kept" }),
  }));
}

async function carryOutStep(
  { repository, options }: PruneWork,
  { entry, action }: RetentionDecision,
): Promise<void> {
  if (action === "delete") await repository.remove(entry);
  else if (isIntact(entry)) await repository.merge(entry, options);
}

/** Deletions come before merges, so that parents are those of the list. */
function childrenLeft(
  decisions: readonly RetentionDecision[],
  outcomes: ReadonlyMap<string, Pick<PrunedBackup, "outcome">>,
  id: string,
): readonly string[] {
  return decisions
    .filter(({ entry }) => entry.manifest?.parent === id && outcomes.get(entry.id)?.outcome !== "done")
    .map(({ entry }) => entry.id);
}

/** Why it failed, or undefined. A cancelled call does not go on. */
async function attempt(
  { signal }: PruneOptions,
  action: () => Promise<unknown>,
): Promise<string | undefined> {
  signal?.throwIfAborted();
  try {
    await action();
    return undefined;
  } catch (error) {
    signal?.throwIfAborted();
    if (!isFleeceError(error)) throw error;
    return errorMessage(error);
  }
}
