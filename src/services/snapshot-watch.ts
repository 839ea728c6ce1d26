import type { SnapshotJournal } from "../model/operation.js";
import type { UndoEntry } from "../model/undo.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import { undoEntries } from "./block-exports.js";
import type { ServiceContext } from "./context.js";
import { DomainSession } from "./domain-session.js";
import type { SnapshotRecord } from "./open-snapshots.js";
import { brokenBy, openRecords, snapshotSubject, withSnapshot } from "./open-snapshots.js";
import { scratchExcess, scratchUse } from "./scratch-watch.js";

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
  const open = (await openRecords(context, domain)).filter(({ subject }) => subject.mode === "running");
  if (open.length === 0 || (await context.store.holder(domain)) !== undefined) return;
  for (const { subject } of await findBroken(context, domain, open, signal)) {
    signal?.throwIfAborted();
    try {
      await endBroken(context, domain, subject.name);
    } catch (error) {
      // Whoever holds the domain, or has deleted the snapshot, was faster.
      if (!isFleeceError(error, "DOMAIN_BUSY", "SNAPSHOT_NOT_FOUND")) throw error;
    }
  }
}

async function findBroken(
  context: ServiceContext,
  domain: string,
  open: readonly SnapshotRecord[],
  signal: AbortSignal | undefined,
): Promise<readonly SnapshotRecord[]> {
  const broken: SnapshotRecord[] = [];
  try {
    await using session = new DomainSession(context.drivers, domain);
    for (const found of open) {
      const { subject, record } = found;
      const isBroken =
        subject.lost === undefined
          ? (await whyLost(context, subject, await session.driver(signal))) !== undefined
          : record.undo.some(isWorthless);
      if (isBroken) broken.push(found);
    }
  } catch (error) {
    // Nothing is known of a domain that does not answer; the next look may tell.
    context.log.debug({ domain }, `Cannot look after its block snapshots: ${errorMessage(error)}`);
  }
  return broken;
}

async function whyLost(
  context: ServiceContext,
  subject: SnapshotJournal,
  driver: BlockDriver,
): Promise<string | undefined> {
  const broken = await brokenBy(subject, driver);
  return (broken ?? (await scratchExcess(context, await scratchUse(context, subject.plan))))?.message;
}

/** Once the moment is lost. The checkpoint's fate is decided when the snapshot is deleted. */
function isWorthless({ kind }: UndoEntry): boolean {
  return kind !== "checkpoint";
}

/**
 * Before QEMU 8.0 exports of a broken snapshot go on to answer, with what the disk holds by now. This ends them, under their
 * readers if need be, and gives the guest its disks and the host the scratch space back. The snapshot stays, with the reason,
 * until it is deleted or its lease ends. Idempotent; does nothing to a snapshot that is sound.
 */
export function endBroken(context: ServiceContext, domain: string, name: string): Promise<void> {
  return withSnapshot(context, domain, name, "end", async (operation, session) => {
    const subject = snapshotSubject(operation);
    const lost = subject.lost ?? (await whyLost(context, subject, await session.driver()));
    if (lost === undefined) return;
    // First, since what has been undone cannot tell any more.
    await operation.setSubject({ ...subject, lost });
    context.log.warn({ domain, snapshot: name }, `A block snapshot is broken: ${lost}`);
    await undoEntries(context, session, operation, isWorthless);
    await operation.setSubject({ ...snapshotSubject(operation), exports: [] });
  });
}
