import type {
  DomainSnapshotOptions,
  RevertCost,
  RevertDomainSnapshotRequest,
  RevertOutcome,
} from "../../model/domain-snapshot.js";
import { requireDomain, type ServiceContext, withDomain } from "../context.js";
import { externalRevertCost, revertExternal } from "./external-revert.js";
import { internalRevertCost, revertInternal } from "./internal-revert.js";
import { readSnapshot, refuseOpenSnapshots } from "./read-snapshot.js";
import { repeatedRevert } from "./repeated.js";

/** What a revert would cost now. Changes nothing. Fails with DOMAIN_SNAPSHOT_NOT_FOUND. */
export async function revertCost(
  context: ServiceContext,
  request: RevertDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<RevertCost> {
  const domain = requireDomain(context, request.domain);
  const found = await readSnapshot(context, domain, request.name);
  if (found.snapshot.kind === "internal") return internalRevertCost(context, found, request);
  return withDomain(context, domain, "the cost of a revert", async (session) => {
    // Again: another command may have changed it until the lock was ours.
    const now = await readSnapshot(context, domain, request.name);
    return await externalRevertCost(context, { ...now, session, request, options });
  });
}

/**
 * Takes a domain back to one of its snapshots; see `revertExternal` and `revertInternal` for what it fails with and what becomes of
 * the guest then. A repeat with the same key finds what was done.
 */
export async function revertDomainSnapshot(
  context: ServiceContext,
  request: RevertDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<RevertOutcome> {
  const domain = requireDomain(context, request.domain);
  return withDomain(context, domain, `revert to domain snapshot ${request.name}`, async (session) => {
    const found = await readSnapshot(context, domain, request.name);
    const reverted = repeatedRevert(found.all, request);
    if (reverted !== undefined) return reverted;
    await refuseOpenSnapshots(context, domain);
    const revert = found.snapshot.kind === "internal" ? revertInternal : revertExternal;
    return await revert(context, { ...found, session, request, options });
  });
}
