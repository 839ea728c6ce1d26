import type { DomainSnapshot, DomainSnapshots } from "../../model/domain-snapshot.js";
import { findSnapshot } from "../../model/domain-snapshot.js";
import { refuseHolders } from "../../model/domain-snapshot-plan.js";
import { checkName } from "../../model/names.js";
import { snapshotHolds } from "../../model/operation-findings.js";
import { FleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";

/** A snapshot, and the domain's document that has it. */
export interface FoundSnapshot {
  readonly all: DomainSnapshots;
  readonly snapshot: DomainSnapshot;
}

/** Fails with INVALID_NAME or DOMAIN_SNAPSHOT_NOT_FOUND. */
export async function readSnapshot(
  { domainSnapshots }: ServiceContext,
  domain: string,
  name: string,
): Promise<FoundSnapshot> {
  checkName("domain snapshot", name);
  const all = await domainSnapshots.read(domain);
  const snapshot = findSnapshot(all, name);
  if (snapshot !== undefined) return { all, snapshot };
  const known = all.snapshots.map((each) => each.name).join(", ") || "none";
  throw new FleeceError(
    "DOMAIN_SNAPSHOT_NOT_FOUND",
    `Domain ${domain} has no domain snapshot ${name}; it has ${known}`,
    { facts: { domain, snapshot: name } },
  );
}

/** Content of it may be lost already. */
export function refuseDeleting({ name, deleting }: DomainSnapshot, done: string): void {
  if (deleting !== true) return;
  throw new FleeceError(
    "DAMAGED",
    `Domain snapshot ${name} cannot be ${done}: its deletion has begun, and can only be repeated`,
    { facts: { snapshot: name } },
  );
}

/** The block snapshots that hold the domain's disks open, in words. */
export async function blockSnapshotHolders(
  { store }: ServiceContext,
  domain: string,
): Promise<readonly string[]> {
  return (await store.operations(domain)).flatMap(({ subject }) => {
    if (subject.kind !== "block-snapshot") return [];
    return subject.plan.disks.map(({ target }) => snapshotHolds(domain, target, subject).found);
  });
}

/** Frozen disks are read through filters that a merge would have to move, and end with the domain's QEMU. Fails with DOMAIN_BUSY. */
export async function refuseOpenSnapshots(context: ServiceContext, domain: string): Promise<void> {
  refuseHolders(domain, await blockSnapshotHolders(context, domain));
}
