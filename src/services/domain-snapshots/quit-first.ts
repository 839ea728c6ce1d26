import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import type { RevertJournal } from "../../model/operation.js";
import type { Logger } from "../../ports/logger.js";
import type { Machine, Machines } from "../../ports/machines.js";
import type { HostCleaner } from "../../ports/state-store.js";
import { errorMessage, FleeceError } from "../../shared/errors.js";
import type { ServiceContext } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import type { Operation } from "../operation.js";
import { undoEntry } from "../unwind.js";

export interface StartAgainParts {
  readonly machines: Machines;
  readonly host: HostCleaner;
  readonly log: Logger;
}

/**
 * The way back of a revert that has begun to end the old QEMU: that and the new one end for certain, and the domain is started on its
 * present disks, for its guest as after a power cut. Idempotent. A domain that cannot be started stays off, with a warning, so that nothing
 * waits for it; one that somebody else has started is left alone. Returns in words what has become of it. Fails with
 * CLEANUP_INCOMPLETE if a QEMU does not end.
 */
export async function startAgain(
  { machines, host, log }: StartAgainParts,
  session: DomainSession,
  operation: Operation,
  { old, again, name }: RevertJournal,
): Promise<string> {
  const { domain, undo } = operation.record;
  if (old !== undefined) await machines.end(old, []);
  for (const entry of undo.toReversed()) {
    await undoEntry(entry, session, host);
    await operation.settle(entry);
  }
  await session.close();
  const outcome = again === undefined ? "is off" : await start(machines, domain, again);
  log.warn(
    { domain, snapshot: name },
    `A revert has ended the QEMU of domain ${domain} and could not be finished: what the guest had in memory is lost, and the domain ${outcome}`,
  );
  await operation.end();
  return outcome;
}

/** Starts the domain again, and returns the error of the revert, which then says also what has become of the domain. */
export async function startAgainAfter(
  error: unknown,
  context: ServiceContext,
  session: DomainSession,
  operation: Operation,
  {
    quitting,
    former,
  }: {
    readonly quitting: RevertJournal;
    /** The document as it was, if another one may have been written. */
    readonly former: DomainSnapshots | undefined;
  },
): Promise<unknown> {
  const { domain } = session;
  try {
    if (former !== undefined) await context.domainSnapshots.write(former);
    await operation.setSubject(quitting);
    const outcome = await startAgain(context, session, operation, quitting);
    if (!(error instanceof FleeceError)) return error;
    const { code, facts } = error;
    return new FleeceError(
      code,
      `${error.message}; its QEMU had ended before, and domain ${domain} ${outcome}`,
      { cause: error, facts },
    );
  } catch (failure) {
    context.log.warn({ domain, operation: operation.record.id }, errorMessage(failure));
    return error;
  }
}

async function start(
  machines: Machines,
  domain: string,
  { start: wanted, to }: NonNullable<RevertJournal["again"]>,
): Promise<string> {
  let machine: Machine | undefined;
  try {
    // One that a killed process of ours has started need not run yet.
    machine = await machines.find(domain, wanted.arguments);
    if (machine === undefined) {
      await using stranger = await machines.open(domain);
      if (stranger !== undefined) return "runs, started by somebody else";
      machine = await machines.start(wanted);
    }
    if (to === "running" && (await machine.status()) === "paused") await machine.continue();
    return "has been started anew on its present disks";
  } catch (error) {
    return `stays off: ${errorMessage(error)}`;
  } finally {
    await machine?.close();
  }
}
