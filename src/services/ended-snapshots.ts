import type { EndedSnapshot, SnapshotJournal } from "../model/operation.js";
import type { Clock } from "../ports/clock.js";
import type { Logger } from "../ports/logger.js";
import type { OperationRecord, StateStore } from "../ports/state-store.js";
import { errorMessage, FleeceError } from "../shared/errors.js";

/** Per domain; the oldest are forgotten. */
const KEPT = 32;

export interface EndParts {
  readonly store: StateStore;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Keeps how a block snapshot ends, for its owner, who may ask later. Its subject says it already. The caller holds the
 * domain's lock. What cannot be kept is logged: it must not stand in the way of the end.
 */
export async function rememberEnd(
  { store, clock, log }: EndParts,
  { id, domain, subject }: OperationRecord,
): Promise<void> {
  if (subject.kind !== "block-snapshot" || subject.end === undefined) return;
  const { end } = subject;
  try {
    const ended = await endedSnapshots(store, domain);
    // Its end was interrupted, and is gone on with.
    if (ended.some((other) => other.id === id)) return;
    const list = [...ended, { id, endedAtMs: clock.now(), end, snapshot: subject }];
    await store.writeNote("ended-snapshots", domain, list.slice(-KEPT));
  } catch (error) {
    log.warn({ domain, snapshot: subject.name }, `Cannot keep why it ended: ${errorMessage(error)}`);
  }
}

/** The last that ended first. */
export async function findEnded(
  store: StateStore,
  domain: string,
  accept: (ended: EndedSnapshot) => boolean,
): Promise<EndedSnapshot | undefined> {
  return (await endedSnapshots(store, domain)).findLast(accept);
}

async function endedSnapshots(store: StateStore, domain: string): Promise<readonly EndedSnapshot[]> {
  const note = await store.readNote("ended-snapshots", domain);
  return Array.isArray(note) ? (note as readonly EndedSnapshot[]) : [];
}

/** SNAPSHOT_NOT_FOUND, with the reason and the time. */
export function snapshotHasEnded(domain: string, { end, endedAtMs, snapshot }: EndedSnapshot): FleeceError {
  const { name } = snapshot;
  const endedAt = new Date(endedAtMs).toISOString();
  return new FleeceError(
    "SNAPSHOT_NOT_FOUND",
    `Block snapshot ${name} of domain ${domain} has ended at ${endedAt}: ${reasonText(end, snapshot)}`,
    { facts: { domain, snapshot: name, reason: end.reason, endedAt } },
  );
}

function reasonText(
  { reason, error }: EndedSnapshot["end"],
  { leaseUntilMs, plan }: SnapshotJournal,
): string {
  const loss = plan.checkpoint === undefined ? "" : `, and checkpoint ${plan.checkpoint.name} does not count`;
  switch (reason) {
    case "DELETED":
      return "it was deleted with success";
    case "FAILED":
      return `it was deleted as failed${loss}`;
    case "LOST":
      return error?.message ?? "it had lost content";
    case "LEASE_EXPIRED":
      return `its lease ended at ${new Date(leaseUntilMs).toISOString()} and was not renewed${loss}`;
  }
}
