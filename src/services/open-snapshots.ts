import { mayManage, ownerOf } from "../model/access.js";
import { refusal } from "../model/finding.js";
import { checkName } from "../model/names.js";
import { snapshotHolds } from "../model/operation-findings.js";
import type { SnapshotJournal } from "../model/operation.js";
import type { BlockDriver } from "../ports/block-driver.js";
import type { OperationRecord } from "../ports/state-store.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import { findEnded, snapshotHasEnded } from "./ended-snapshots.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, withDomain } from "./context.js";
import { DomainSession } from "./domain-session.js";
import { checkMoment, saysLost } from "./moment.js";
import { Operation } from "./operation.js";

/** A block snapshot that is open: its consumer reads it, renews it, and says in the end how it went. */
export interface BlockSnapshot extends SnapshotJournal {
  readonly domain: string;
  /** Why it does not show its moment any more, in words, where that was asked and could be answered. */
  readonly broken?: string;
}

export interface SnapshotRecord {
  readonly subject: SnapshotJournal;
  readonly record: OperationRecord;
}

/** Open snapshots of a domain, oldest first. */
export async function listBlockSnapshots(
  context: ServiceContext,
  domain: string,
): Promise<readonly BlockSnapshot[]> {
  return (await openRecords(context, domain)).map(({ subject }) => ({ ...subject, domain }));
}

/** Fails with SNAPSHOT_NOT_FOUND; of one that has ended lately the error says why. */
export async function getBlockSnapshot(
  context: ServiceContext,
  domain: string,
  name: string,
): Promise<BlockSnapshot> {
  const { subject } = await findOpen(context, domain, name);
  return { ...subject, domain };
}

/**
 * The same snapshots with what is known of their soundness now. Not answered: while another operation is at work on the
 * domain, or when the domain cannot be reached.
 */
export async function askWhetherBroken(
  context: ServiceContext,
  domain: string,
  snapshots: readonly BlockSnapshot[],
): Promise<readonly BlockSnapshot[]> {
  const asked: BlockSnapshot[] = [];
  const isBusy = (await context.store.holder(domain)) !== undefined;
  await using session = new DomainSession(context.drivers, domain);
  for (const snapshot of snapshots) {
    const broken =
      snapshot.lost ?? (isBusy ? undefined : (await whetherBroken(context, session, snapshot))?.message);
    asked.push(broken === undefined ? snapshot : { ...snapshot, broken });
  }
  return asked;
}

async function whetherBroken(
  { log }: ServiceContext,
  session: DomainSession,
  snapshot: BlockSnapshot,
): Promise<FleeceError | undefined> {
  try {
    return await brokenBy(snapshot, await session.driver());
  } catch (error) {
    log.debug({ snapshot: snapshot.name }, `Cannot tell whether it is intact: ${errorMessage(error)}`);
    return undefined;
  }
}

/**
 * Runs an operation on an open snapshot, alone on its domain. Fails with SNAPSHOT_NOT_FOUND, and with ACCESS_DENIED if it is
 * another client's: that it exists is no secret, since every client may list all.
 */
export async function withSnapshot<T>(
  context: ServiceContext,
  domain: string,
  name: string,
  verb: string,
  action: (operation: Operation, session: DomainSession) => Promise<T>,
): Promise<T> {
  requireDomain(context, domain);
  return withDomain(context, domain, `${verb} of block snapshot ${name} of ${domain}`, async (session) => {
    const { record, subject } = await findOpen(context, domain, name);
    checkOwner(context, domain, subject);
    return action(new Operation(context.store, record), session);
  });
}

export function checkOwner({ client }: ServiceContext, domain: string, subject: SnapshotJournal): void {
  const owner = ownerOf(subject);
  if (mayManage(client, owner)) return;
  throw new FleeceError(
    "ACCESS_DENIED",
    `Block snapshot ${subject.name} of domain ${domain} belongs to ${owner}; ${client.name} may not change it`,
    { facts: { domain, snapshot: subject.name, owner } },
  );
}

export async function findOpen(
  context: ServiceContext,
  domain: string,
  name: string,
): Promise<SnapshotRecord> {
  checkName("block snapshot", name);
  const all = await openRecords(context, domain);
  const found = all.find(({ subject }) => subject.name === name);
  if (found !== undefined) return found;
  const ended = await findEnded(context.store, domain, ({ snapshot }) => snapshot.name === name);
  if (ended !== undefined) throw snapshotHasEnded(domain, ended);
  const known = all.map(({ subject }) => subject.name).join(", ") || "none";
  throw new FleeceError(
    "SNAPSHOT_NOT_FOUND",
    `Domain ${domain} has no block snapshot ${name}; it has ${known}`,
    { facts: { domain, snapshot: name } },
  );
}

export async function openRecords(
  context: ServiceContext,
  domain: string,
): Promise<readonly SnapshotRecord[]> {
  const records = await snapshotRecords(context, requireDomain(context, domain));
  return records.filter(({ subject }) => subject.phase === "open");
}

export function snapshotSubject({ record }: Operation): SnapshotJournal {
  if (record.subject.kind === "block-snapshot") return record.subject;
  throw new FleeceError("INTERNAL", `Operation ${record.id} is not a block snapshot`);
}

export async function snapshotRecords(
  context: ServiceContext,
  domain: string,
): Promise<readonly SnapshotRecord[]> {
  const records = await context.store.operations(domain);
  return records.flatMap((record) =>
    record.subject.kind === "block-snapshot" ? [{ subject: record.subject, record }] : [],
  );
}

/**
 * Why a snapshot can no longer be trusted to show its moment, or undefined when it can. An error that says nothing about
 * that (the domain does not answer, for example) is thrown: the question may be asked again.
 */
export async function brokenBy(
  snapshot: SnapshotJournal,
  driver: BlockDriver,
): Promise<FleeceError | undefined> {
  if (snapshot.lost !== undefined) return new FleeceError("SNAPSHOT_BROKEN", snapshot.lost);
  try {
    await checkMoment(snapshot, driver);
    return undefined;
  } catch (error) {
    if (saysLost(error)) return error;
    throw error;
  }
}

/**
 * Fails with DOMAIN_BUSY if a snapshot holds one of the disks (of `targets`, or any): a disk of a running domain has room
 * for one filter of ours, and a change to the image of an inactive one would break the snapshot. A snapshot that is broken
 * already holds nothing.
 */
export async function refuseFrozenDisks(
  context: ServiceContext,
  { domain }: DomainSession,
  driver: BlockDriver,
  targets?: readonly string[],
): Promise<void> {
  for (const snapshot of await listBlockSnapshots(context, domain)) {
    if (snapshot.mode !== driver.mode) continue;
    const disk = snapshot.plan.disks.find(({ target }) => targets?.includes(target) ?? true);
    if (disk === undefined || (await brokenBy(snapshot, driver)) !== undefined) continue;
    throw refusal(snapshotHolds(domain, disk.target, snapshot), { snapshot: snapshot.name });
  }
}
