import { byTime, isIntact } from "../model/backup.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import { deleteCheckpoint, gatherCheckpoints } from "./checkpoints.js";
import type { ServiceContext } from "./context.js";
import { withDomain } from "./context.js";
import { refuseFrozenDisks } from "./open-snapshots.js";

/*
 * A backup that is gone is nobody's parent, so the checkpoint that was made with it is of no use. Which ones those are is
 * known only while the backup is there: checkpoints of other programs look the same. So their names are noted first.
 * A copy has the checkpoint of its original. It needs it only as the newest backup of its repository, where a job could go
 * on from it; older copies, which a repository may keep for years, would cost the domain a bitmap each.
 */

/** Before backups with these checkpoints are removed. */
export async function expectUnusedCheckpoints(
  { store }: ServiceContext,
  domain: string,
  names: readonly string[],
): Promise<void> {
  if (names.length === 0) return;
  const known = await noted(store, domain);
  await store.writeNote("unused-checkpoints", domain, [...new Set([...known, ...names])]);
}

export interface DroppedCheckpoints {
  readonly removed: readonly string[];
  /** Why some of them are still there. */
  readonly notes: readonly string[];
}

/**
 * Merges the checkpoints of backups that are gone into their predecessors, in the domain. The caller does not hold the domain.
 * What cannot be done now is tried again the next time.
 */
export async function dropUnusedCheckpoints(
  context: ServiceContext,
  domain: string,
  signal?: AbortSignal,
): Promise<DroppedCheckpoints> {
  const { store, domains } = context;
  const removed: string[] = [];
  const notes: string[] = [];
  if (!domains.includes(domain)) return { removed, notes };
  try {
    const unused = await unusedNow(context, domain);
    if (unused.length > 0) {
      await withDomain(context, domain, `prune ${domain}`, async (session) => {
        const driver = await session.driver(signal);
        if (driver.mode === "inactive") await refuseFrozenDisks(context, session, driver);
        const present = gatherCheckpoints(await driver.inspect(signal)).map(({ name }) => name);
        for (const name of unused.filter((each) => present.includes(each))) {
          const trouble = await removeOne(driver, name, signal);
          if (trouble === undefined) removed.push(name);
          else notes.push(`Checkpoint ${name} of ${domain} stays for now: ${trouble}`);
        }
        // Also those that are in use: a copy may be the newest of its repository for now alone.
        const names = await noted(store, domain);
        const left = names.filter((name) => present.includes(name) && !removed.includes(name));
        if (left.length > 0) await store.writeNote("unused-checkpoints", domain, left);
        else await store.removeNote("unused-checkpoints", domain);
      });
    }
  } catch (error) {
    signal?.throwIfAborted();
    if (!isFleeceError(error)) throw error;
    notes.push(`Checkpoints of ${domain} that no backup needs stay for now: ${errorMessage(error)}`);
  }
  return { removed, notes };
}

/** Without those whose backup was not removed after all, and those of newest copies. */
async function unusedNow(context: ServiceContext, domain: string): Promise<readonly string[]> {
  const names = await noted(context.store, domain);
  if (names.length === 0) return names;
  const lists = await Promise.all([...context.repositories.values()].map((each) => each.list(domain)));
  const needing = lists.flatMap((entries) => {
    const newest = entries.filter(isIntact).toSorted(byTime).at(-1);
    return entries.filter((entry) => entry.copiedFrom === undefined || entry === newest);
  });
  const used = new Set(
    needing.flatMap(({ manifest }) => (manifest === undefined ? [] : [manifest.checkpoint])),
  );
  return names.filter((name) => !used.has(name));
}

async function removeOne(
  driver: BlockDriver,
  name: string,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  try {
    await deleteCheckpoint(driver, name, undefined, signal);
    return undefined;
  } catch (error) {
    signal?.throwIfAborted();
    if (!isFleeceError(error)) throw error;
    return errorMessage(error);
  }
}

async function noted(store: ServiceContext["store"], domain: string): Promise<readonly string[]> {
  const note = await store.readNote("unused-checkpoints", domain);
  return Array.isArray(note) ? note.filter((name): name is string => typeof name === "string") : [];
}
