import type { DomainSnapshotOptions, RevertDomainSnapshotRequest } from "../../model/domain-snapshot.js";
import { FleeceError } from "../../shared/errors.js";
import type { DomainSession } from "../domain-session.js";
import type { FoundSnapshot } from "./read-snapshot.js";

/** A revert that is to be done, within the domain's lock: the document was read in it, so that it is true until we write it. */
export interface RevertOrder extends FoundSnapshot {
  readonly session: DomainSession;
  readonly request: RevertDomainSnapshotRequest;
  readonly options: DomainSnapshotOptions;
}

/** Fails with FORCE_NEEDED. */
export function refuseUnforced(
  { snapshot: { name }, request }: Pick<RevertOrder, "snapshot" | "request">,
  risks: readonly string[],
): void {
  if (risks.length === 0 || request.force === true) return;
  throw new FleeceError(
    "FORCE_NEEDED",
    `Reverting to domain snapshot ${name} needs force: ${risks.join("; ")}`,
    { facts: { snapshot: name, risks } },
  );
}
