import type { InternalJournal } from "../../model/operation.js";
import { randomId } from "../../shared/ids.js";
import type { ServiceContext } from "../context.js";
import { Operation } from "../operation.js";

export interface InternalOperation {
  readonly operation: Operation;
  readonly subject: InternalJournal;
}

/** Writes down that the internal snapshot is made, loaded or removed; `settleInternal` puts it in order after a failure or a kill. */
export async function beginInternal(
  { store, clock }: ServiceContext,
  domain: string,
  snapshot: string,
  disks: readonly { readonly file: string }[],
): Promise<InternalOperation> {
  const files = disks.map(({ file }) => file);
  const subject: InternalJournal = { kind: "domain-snapshot-internal", snapshot, files };
  const header = { id: randomId(8), domain, startedAtMs: clock.now() };
  return { operation: await Operation.begin(store, { ...header, subject }), subject };
}
