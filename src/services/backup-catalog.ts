import type { BackupEntry, IntactEntry } from "../model/backup.js";
import { chainOf, childrenOf, isIntact } from "../model/backup.js";
import { checkName } from "../model/names.js";
import type { BackupRepository } from "../ports/repository.js";
import { FleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import { requireRepository } from "./context.js";

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

/** Fails with INVALID_NAME or BACKUP_NOT_FOUND. */
export async function findBackup(context: ServiceContext, id: string): Promise<FoundBackup> {
  checkName("backup", id);
  for (const repository of context.repositories.values()) {
    const all = await repository.list();
    const entry = all.find((listed) => listed.id === id);
    if (entry === undefined) continue;
    return { repository, entry, siblings: all.filter(({ domain }) => domain === entry.domain) };
  }
  throw new FleeceError("BACKUP_NOT_FOUND", `No repository of the configuration holds a backup ${id}`, {
    facts: { backup: id },
  });
}

/** A backup that can be read, with all that it is based on. Fails with DAMAGED if its manifest or chain is not whole. */
export async function findReadable(
  context: ServiceContext,
  id: string,
): Promise<FoundBackup & { readonly entry: IntactEntry }> {
  const found = await findBackup(context, id);
  const { entry } = found;
  if (!isIntact(entry)) throw damaged(id, entry.damage);
  const chain = chainOf(found.siblings, id);
  if (!chain.complete) throw damaged(id, chain.reason);
  return { ...found, entry };
}

function damaged(id: string, why: string): FleeceError {
  return new FleeceError("DAMAGED", `Backup ${id} cannot be used: ${why}`, { facts: { backup: id } });
}

/** Removes a backup that no other is based on. Fails with BACKUP_HAS_CHILDREN, REPOSITORY_BUSY or BACKUP_NOT_FOUND. */
export async function deleteBackup(
  context: ServiceContext,
  id: string,
  /** Awaited before it is removed. */
  onFound?: (found: BackupEntry) => Promise<void>,
): Promise<BackupEntry> {
  const { repository, entry } = await findBackup(context, id);
  const lock = await repository.lock(entry.domain);
  try {
    const siblings = await repository.list(entry.domain);
    const children = childrenOf(siblings, id).map((child) => child.id);
    if (children.length > 0) {
      throw new FleeceError(
        "BACKUP_HAS_CHILDREN",
        `Backup ${id} is what ${children.join(", ")} ${children.length === 1 ? "is" : "are"} based on; delete the newer first`,
        { facts: { backup: id, children } },
      );
    }
    await onFound?.(entry);
    await repository.remove(entry);
    context.meter.backupsChanged(entry.domain);
    return entry;
  } finally {
    await lock.release();
  }
}
