import type { BackupEntry, IntactEntry } from "../model/backup.js";
import { chainOf, childrenOf, isIntact } from "../model/backup.js";
import { checkName } from "../model/names.js";
import type { BackupRepository } from "../ports/repository.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import { requireRepository } from "./context.js";
import { dropUnusedCheckpoints, expectUnusedCheckpoints } from "./unused-checkpoints.js";

export interface FoundBackup {
  readonly repository: BackupRepository;
  readonly entry: BackupEntry;
  /** All backups of the same domain in the same repository. */
  readonly siblings: readonly BackupEntry[];
}

/** All backups of all repositories (or one), oldest first in each; of one domain if given. */
export async function listBackups(
  context: ServiceContext,
  filter: { readonly domain?: string; readonly repository?: string } = {},
): Promise<readonly BackupEntry[]> {
  if (filter.domain !== undefined) checkName("domain", filter.domain);
  const repositories =
    filter.repository === undefined
      ? [...context.repositories.values()]
      : [requireRepository(context, filter.repository)];
  const lists = await Promise.all(repositories.map((repository) => repository.list(filter.domain)));
  return lists.flat();
}

/**
 * The first that the repositories have, if none is named: copies have the id of their original. Fails with INVALID_NAME,
 * REPOSITORY_NOT_FOUND or BACKUP_NOT_FOUND.
 */
export async function findBackup(
  context: ServiceContext,
  id: string,
  repository?: string,
): Promise<FoundBackup> {
  for await (const found of findAll(context, id, repository)) return found;
  throw notFound(id, repository);
}

/** The only one, or that of the repository. Fails with INVALID_ARGUMENT if several repositories have it and none is named. */
async function findOnly(context: ServiceContext, id: string, repository?: string): Promise<FoundBackup> {
  const all: FoundBackup[] = [];
  for await (const each of findAll(context, id, repository)) all.push(each);
  const [found, ...others] = all;
  if (found === undefined) throw notFound(id, repository);
  if (others.length === 0) return found;
  const names = all.map((each) => each.repository.name);
  const message = `Expected a repository, since several have backup ${id}: ${names.join(", ")}`;
  throw new FleeceError("INVALID_ARGUMENT", message, { facts: { field: "repository", backup: id } });
}

/**
 * A backup that can be read, with all that it is based on: the first such one that the repositories have, if none is named.
 * Fails with DAMAGED if no manifest and chain of it is whole.
 */
export async function findReadable(
  context: ServiceContext,
  id: string,
  repository?: string,
): Promise<FoundBackup & { readonly entry: IntactEntry }> {
  let failure: FleeceError | undefined;
  for await (const found of findAll(context, id, repository)) {
    const { entry, siblings } = found;
    const chain = chainOf(siblings, id);
    if (isIntact(entry) && chain.complete) return { ...found, entry };
    failure ??= damaged(id, entry.damage ?? (chain.complete ? "" : chain.reason));
  }
  throw failure ?? notFound(id, repository);
}

async function* findAll(
  context: ServiceContext,
  id: string,
  repository: string | undefined,
): AsyncGenerator<FoundBackup> {
  checkName("backup", id);
  const all =
    repository === undefined ? context.repositories.values() : [requireRepository(context, repository)];
  for (const each of all) {
    const listed = await each.list();
    const entry = listed.find((candidate) => candidate.id === id);
    if (entry === undefined) continue;
    yield { repository: each, entry, siblings: listed.filter(({ domain }) => domain === entry.domain) };
  }
}

function notFound(id: string, repository: string | undefined): FleeceError {
  const where = repository === undefined ? "No repository of the configuration" : `Repository ${repository}`;
  return new FleeceError(
    "BACKUP_NOT_FOUND",
    `${where} ${repository === undefined ? "holds a" : "holds no"} backup ${id}`,
    {
      facts: { backup: id },
    },
  );
}

export interface MomentFilter {
  readonly domain: string;
  /** The latest moment to take, in Unix milliseconds; undefined: any. */
  readonly atMs: number | undefined;
  /** Only in this repository; undefined: in all. */
  readonly repository: string | undefined;
}

/**
 * The newest backup of a domain that can be read and whose moment is not later than `atMs`; the first repository's if
 * several have it. The domain need not be in the configuration any more. Fails with BACKUP_NOT_FOUND, saying what there is.
 */
export async function findBackupAt(
  context: ServiceContext,
  { domain, atMs, repository }: MomentFilter,
): Promise<IntactEntry> {
  checkName("domain", domain);
  const filter = repository === undefined ? {} : { repository };
  const all = await listBackups(context, { domain, ...filter });
  const isReadable = (entry: BackupEntry): entry is IntactEntry =>
    isIntact(entry) &&
    chainOf(
      all.filter((other) => other.repository === entry.repository),
      entry.id,
    ).complete;
  const readable = all.filter(isReadable).toSorted((a, b) => timeOf(b) - timeOf(a));
  const damagedIds = all.filter((entry) => !isReadable(entry)).map(({ id }) => id);
  const found = readable.find((entry) => atMs === undefined || timeOf(entry) <= atMs);
  if (found === undefined) {
    const when = atMs === undefined ? "" : ` at or before ${new Date(atMs).toISOString()}`;
    const has = await whatThereIs(context, readable.at(-1), damagedIds, filter);
    throw new FleeceError("BACKUP_NOT_FOUND", `There is no intact backup of ${domain}${when}: ${has}`, {
      facts: { domain },
    });
  }
  // Ids begin with the time at which the work began; of a manifest that cannot be read nothing else is known.
  const end = atMs === undefined ? "~" : new Date(atMs).toISOString().replaceAll(/[-:]|\.\d+/g, "");
  const passedOver = damagedIds.filter((id) => found.id < id && id < end);
  if (passedOver.length > 0) {
    context.log.warn({ domain, backup: found.id }, `Passed over damaged backups: ${passedOver.join(", ")}`);
  }
  return found;
}

function timeOf({ manifest }: IntactEntry): number {
  return Date.parse(manifest.time);
}

async function whatThereIs(
  context: ServiceContext,
  oldest: IntactEntry | undefined,
  damagedIds: readonly string[],
  filter: { readonly repository?: string },
): Promise<string> {
  const has = [
    ...(oldest === undefined
      ? []
      : [`the oldest is ${oldest.id} of ${oldest.manifest.time} in repository ${oldest.repository}`]),
    ...(damagedIds.length === 0 ? [] : [`damaged are ${damagedIds.join(", ")}`]),
  ];
  if (has.length > 0) return has.join("; ");
  const domains = new Set((await listBackups(context, filter)).map(({ domain }) => domain));
  return domains.size === 0 ? "there are no backups" : `there are backups of ${[...domains].join(", ")}`;
}

function damaged(id: string, why: string): FleeceError {
  return new FleeceError("DAMAGED", `Backup ${id} cannot be used: ${why}`, { facts: { backup: id } });
}

export interface DeletedBackup {
  /** As it was. */
  readonly entry: BackupEntry;
  /** The backup that was based on it, and has what it needs of it now. */
  readonly mergedInto?: string;
}

/**
 * Removes a backup; one that another is based on is merged into that. Fails with BACKUP_HAS_CHILDREN if several are, or if it
 * cannot be read, BACKUP_PROTECTED, REPOSITORY_BUSY, DAMAGED or BACKUP_NOT_FOUND, and INVALID_ARGUMENT if several
 * repositories have it and none is named.
 */
export async function deleteBackup(
  context: ServiceContext,
  id: string,
  {
    repository: name,
    signal,
    onFound,
  }: {
    readonly repository?: string | undefined;
    readonly signal?: AbortSignal | undefined;
    /** Awaited before it is removed. */
    readonly onFound?: (found: DeletedBackup) => Promise<void>;
  } = {},
): Promise<DeletedBackup> {
  const { repository, entry } = await findOnly(context, id, name);
  const { domain } = entry;
  const lock = await repository.lock(domain);
  let deleted: DeletedBackup;
  try {
    await repository.finishMerges(domain, { signal }).catch((error: unknown) => {
      signal?.throwIfAborted();
      context.log.warn({ domain }, `An earlier merge cannot be finished: ${errorMessage(error)}`);
    });
    const siblings = await repository.list(domain);
    const found = siblings.find((sibling) => sibling.id === id) ?? entry;
    deleted = planDeletion(found, siblings);
    await onFound?.(deleted);
    if (isIntact(found)) await expectUnusedCheckpoints(context, domain, [found.manifest.checkpoint]);
    if (deleted.mergedInto !== undefined && isIntact(found)) await repository.merge(found, { signal });
    else await repository.remove(found);
    context.meter.backupsChanged(domain);
  } finally {
    await lock.release();
  }
  const { notes } = await dropUnusedCheckpoints(context, domain, signal);
  for (const note of notes) context.log.info({ domain }, note);
  return deleted;
}

function planDeletion(entry: BackupEntry, siblings: readonly BackupEntry[]): DeletedBackup {
  const { id } = entry;
  if (entry.protected === true) {
    throw new FleeceError("BACKUP_PROTECTED", `Backup ${id} is protected; \`backup unprotect\` ends that`, {
      facts: { backup: id },
    });
  }
  const children = childrenOf(siblings, id).map((child) => child.id);
  const [child] = children;
  if (child === undefined) return { entry };
  if (children.length === 1 && chainOf(siblings, child).complete) return { entry, mergedInto: child };
  const why =
    children.length > 1
      ? "are based on it, and it can be merged into one alone"
      : "is based on it, and it is damaged";
  throw new FleeceError(
    "BACKUP_HAS_CHILDREN",
    `Backup ${id} cannot be deleted: ${children.join(", ")} ${why}; delete the newer first`,
    { facts: { backup: id, children } },
  );
}

/** Says that a backup must stay, or ends that; answers with it. Idempotent. Fails as `deleteBackup` finds it. */
export async function protectBackup(
  context: ServiceContext,
  id: string,
  isProtected: boolean,
  name?: string,
): Promise<BackupEntry> {
  const { repository, entry } = await findOnly(context, id, name);
  const lock = await repository.lock(entry.domain);
  try {
    await repository.protect(entry, isProtected);
  } finally {
    await lock.release();
  }
  return (await findBackup(context, id, repository.name)).entry;
}
