import type { SnapshotJournal } from "../model/operation.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import { removeExports } from "./block-exports.js";
import type { ServiceContext } from "./context.js";
import { DomainSession } from "./domain-session.js";
import type { BlockSnapshot } from "./open-snapshots.js";
import { brokenBy, listBlockSnapshots, snapshotSubject, withSnapshot } from "./open-snapshots.js";
import { removeFilters, scratchExcess, scratchUse } from "./scratch-watch.js";

/**
 * Looks at the open block snapshots of a domain, and ends those that are broken or do not keep to their scratch space as far
 * as their consumers can notice: see `endBroken`. Meant to be called again and again. The look holds no lock, so that it is
 * in nobody's way; while another operation is at work on the domain nothing is done.
 */
export async function watchSnapshots(
  context: ServiceContext,
  domain: string,
  signal?: AbortSignal,
): Promise<void> {
  const open = (await listBlockSnapshots(context, domain)).filter(({ mode }) => mode === "running");
  if (open.length === 0 || (await context.store.holder(domain)) !== undefined) return;
  for (const { name } of await findBroken(context, domain, open, signal)) {
    signal?.throwIfAborted();
    try {
      await endBroken(context, domain, name);
    } catch (error) {
      // Whoever holds the domain, or has deleted the snapshot, was faster.
      if (!isFleeceError(error, "DOMAIN_BUSY", "SNAPSHOT_NOT_FOUND")) throw error;
    }
  }
}

async function findBroken(
  context: ServiceContext,
  domain: string,
  open: readonly BlockSnapshot[],
  signal: AbortSignal | undefined,
): Promise<readonly BlockSnapshot[]> {
  const broken: BlockSnapshot[] = [];
  try {
    await using session = new DomainSession(context.drivers, domain);
    const driver = await session.driver(signal);
    for (const snapshot of open) {
      const isOver =
        snapshot.lost === undefined
          ? (await whyLost(context, snapshot, driver)) !== undefined
          : snapshot.exports.length > 0 || (await holdsDisks(snapshot, driver, signal));
      if (isOver) broken.push(snapshot);
    }
  } catch (error) {
    // Nothing is known of a domain that does not answer; the next look may tell.
    context.log.debug({ domain }, `Cannot look after its block snapshots: ${errorMessage(error)}`);
  }
  return broken;
}

async function whyLost(
  context: ServiceContext,
  snapshot: SnapshotJournal,
  driver: BlockDriver,
): Promise<string | undefined> {
  const broken = await brokenBy(snapshot, driver);
  return (broken ?? (await scratchExcess(context, await scratchUse(context, snapshot.plan))))?.message;
}

/** Whether one of its filters is still in the way of the guest's writes. */
async function holdsDisks(
  { plan }: SnapshotJournal,
  driver: BlockDriver,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const filters = new Set(plan.disks.map(({ nodes }) => nodes.filter));
  const { disks } = await driver.inspect(signal);
  return disks.some(({ obstacle }) => obstacle?.filter !== undefined && filters.has(obstacle.filter));
}

/**
 * Before QEMU 8.0 exports of a broken snapshot go on to answer, with what the disk holds by now. This ends them, under their
 * readers if need be, and gives the guest its disks back. The snapshot stays, with the reason, until it is deleted or its
 * lease ends. Idempotent; does nothing to a snapshot that is sound.
 */
export function endBroken(context: ServiceContext, domain: string, name: string): Promise<void> {
  return withSnapshot(context, domain, name, "end", async (operation, session) => {
    const subject = snapshotSubject(operation);
    const lost = subject.lost ?? (await whyLost(context, subject, await session.driver()));
    if (lost === undefined) return;
    // First, since exports that have ended cannot tell any more.
    await operation.setSubject({ ...subject, lost });
    context.log.warn({ domain, snapshot: name }, `A block snapshot is broken: ${lost}`);
    await removeExports(context, session, operation);
    await removeFilters(context, session, subject.plan);
  });
}
