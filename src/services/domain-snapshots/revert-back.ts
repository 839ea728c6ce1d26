import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import type { RevertJournal } from "../../model/operation.js";
import type { Machine } from "../../ports/machines.js";
import { errorMessage } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { unwind } from "../unwind.js";

/** The way back of a revert that has failed while the old QEMU is still there. What cannot be undone is left to the next command. */

/**
 * Before the old guest goes on, nothing may say any more that it is to end: the next command would see to that. Where the journal
 * cannot be written, the record goes, which takes no space.
 */
export async function undecide(
  { domainSnapshots, log }: ServiceContext,
  operation: Operation,
  preparing: RevertJournal,
  all: DomainSnapshots,
): Promise<void> {
  const { domain } = all;
  try {
    // A document whose writing failed may be there all the same.
    const found = await domainSnapshots.read(domain);
    if (JSON.stringify(found) !== JSON.stringify(all)) await domainSnapshots.write(all);
    await operation.setSubject(preparing);
  } catch (error) {
    log.warn({ domain, operation: operation.record.id }, errorMessage(error));
    await operation.end();
  }
}

/** The guest first; then what was made for the new one. */
export async function goBack(
  { log, host }: ServiceContext,
  session: DomainSession,
  operation: Operation,
  { old, machine }: { readonly old: Machine | undefined; readonly machine: Machine | undefined },
): Promise<void> {
  const { domain } = session;
  try {
    await old?.release();
  } catch (error) {
    log.warn({ domain }, `The guest could not be continued at once: ${errorMessage(error)}`);
  }
  await machine?.close();
  await old?.close();
  try {
    await unwind(operation, session, host);
  } catch (error) {
    log.warn({ domain, operation: operation.record.id }, errorMessage(error));
  }
}
