import type { ServiceContext } from "./context.js";
import { requireDomain, withDomain } from "./context.js";
import type { Checkpoint } from "./checkpoints.js";
import { deleteCheckpoint, findCheckpoint, gatherCheckpoints } from "./checkpoints.js";
import { inspectDomain } from "./domains.js";
import { refuseFrozenDisks } from "./open-snapshots.js";

/** Oldest first. Reads only. */
export async function listCheckpoints(
  context: ServiceContext,
  domain: string,
  signal?: AbortSignal,
): Promise<readonly Checkpoint[]> {
  return gatherCheckpoints(await inspectDomain(context, domain, signal));
}

/** Reads only. Fails with CHECKPOINT_NOT_FOUND. */
export async function getCheckpoint(
  context: ServiceContext,
  domain: string,
  name: string,
  signal?: AbortSignal,
): Promise<Checkpoint> {
  return findCheckpoint(await inspectDomain(context, domain, signal), name);
}

export interface RemoveOptions {
  readonly signal?: AbortSignal;
  /** Awaited before it is removed. */
  readonly onFound?: (found: Checkpoint) => Promise<void>;
}

/**
 * Merges a checkpoint into the one before it and returns what it was. Fails with CHECKPOINT_NOT_FOUND, CHECKPOINT_BUSY,
 * CHECKPOINT_DAMAGED or DOMAIN_BUSY. The next backup is based on an older one, or compares.
 */
export function removeCheckpoint(
  context: ServiceContext,
  domain: string,
  name: string,
  { signal, onFound }: RemoveOptions = {},
): Promise<Checkpoint> {
  requireDomain(context, domain);
  return withDomain(context, domain, `checkpoint delete ${domain} ${name}`, async (session) => {
    const driver = await session.driver(signal);
    const found = findCheckpoint(await driver.inspect(signal), name);
    const targets = found.disks.map(({ target }) => target);
    // Here it would change the image file, by which the snapshot tells whether the guest was started.
    if (driver.mode === "inactive") await refuseFrozenDisks(context, session, driver, targets);
    await onFound?.(found);
    await deleteCheckpoint(driver, name, undefined, signal);
    return found;
  });
}
