import type { DomainSnapshot, DomainSnapshots } from "../../model/domain-snapshot.js";
import { findSnapshot } from "../../model/domain-snapshot.js";
import { checkName } from "../../model/names.js";
import { FleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";

/** Fails with INVALID_NAME or DOMAIN_SNAPSHOT_NOT_FOUND. */
export async function readSnapshot(
  { domainSnapshots }: ServiceContext,
  domain: string,
  name: string,
): Promise<{ readonly all: DomainSnapshots; readonly snapshot: DomainSnapshot }> {
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

/** Frozen disks are read through filters that a merge would have to move. */
export async function refuseOpenSnapshots({ store }: ServiceContext, domain: string): Promise<void> {
  for (const { subject } of await store.operations(domain)) {
    if (subject.kind !== "block-snapshot") continue;
    throw new FleeceError("DOMAIN_BUSY", `Block snapshot ${subject.name} of domain ${domain} is open`, {
      facts: { domain, snapshot: subject.name },
    });
  }
}
