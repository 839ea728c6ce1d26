import { type DomainSnapshot, type DomainSnapshots, findSnapshot } from "../../model/domain-snapshot.js";
import { checkName } from "../../model/names.js";
import { FleeceError } from "../../shared/errors.js";
import { requireDomain, type ServiceContext } from "../context.js";

/** The domain snapshots of a domain. Reads only the record, so that it works whatever the domain does. */
export async function readDomainSnapshots(context: ServiceContext, domain: string): Promise<DomainSnapshots> {
  return context.domainSnapshots.read(requireDomain(context, domain));
}

/** Fails with DOMAIN_SNAPSHOT_NOT_FOUND. */
export function requireSnapshot(all: DomainSnapshots, name: string): DomainSnapshot {
  const found = findSnapshot(all, checkName("domain snapshot", name));
  if (found !== undefined) return found;
  const others = all.snapshots.map((snapshot) => snapshot.name).join(", ");
  throw new FleeceError(
    "DOMAIN_SNAPSHOT_NOT_FOUND",
    `Domain ${all.domain} has no domain snapshot ${name}; it has ${others === "" ? "none" : others}`,
    { facts: { domain: all.domain, name } },
  );
}
