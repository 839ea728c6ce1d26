import type { UndoEntry } from "../model/undo.js";
import type { HostCleaner } from "../ports/state-store.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import { deleteCheckpoint } from "./checkpoints.js";
import type { DomainSession } from "./domain-session.js";
import type { Operation } from "./operation.js";

/**
 * Undoes everything an operation acquired, in reverse, and all of it even if something fails. What could not be undone
 * stays in the journal for the next command. Fails with CLEANUP_INCOMPLETE, whose cause is the first failure.
 */
export async function unwind(operation: Operation, session: DomainSession, host: HostCleaner): Promise<void> {
  const { undone, failures } = await undoAll(operation.record.undo, session, host);
  if (failures.length === 0) {
    await operation.end();
    return;
  }
  await operation.settle(...undone);
  throw new FleeceError(
    "CLEANUP_INCOMPLETE",
    `Could not remove everything of the unfinished operation ${operation.record.id} on domain ${session.domain}; the next command tries again: ${failures.map(errorMessage).join("; ")}`,
    { cause: failures[0], facts: { operation: operation.record.id } },
  );
}

/**
 * Undoes all that the domain's QEMU has of an operation, ahead of the rest: from then on the guest's writes cost nothing. What
 * cannot be undone is left to `unwind`, which says so.
 */
export async function freeGuest(
  operation: Operation,
  session: DomainSession,
  host: HostCleaner,
): Promise<void> {
  const inQemu = operation.record.undo.filter(({ kind }) => kind.startsWith("vm-"));
  const { undone } = await undoAll(inQemu, session, host);
  if (undone.length > 0) await operation.settle(...undone);
}

async function undoAll(
  entries: readonly UndoEntry[],
  session: DomainSession,
  host: HostCleaner,
): Promise<{ readonly undone: readonly UndoEntry[]; readonly failures: readonly unknown[] }> {
  const failures: unknown[] = [];
  const undone: UndoEntry[] = [];
  let exportsRemain = false;
  for (const entry of entries.toReversed()) {
    try {
      await undoEntry(entry, session, host);
      undone.push(entry);
    } catch (error) {
      exportsRemain ||= entry.kind === "vm-export";
      failures.push(error);
    }
  }
  // The server stays as long as an export does, so it is not undone yet either.
  return { undone: undone.filter(({ kind }) => kind !== "vm-nbd-server" || !exportsRemain), failures };
}

/** Undoes one entry by whoever can: idempotent. */
export async function undoEntry(entry: UndoEntry, session: DomainSession, host: HostCleaner): Promise<void> {
  switch (entry.kind) {
    case "checkpoint":
      return session.resilient((driver) => deleteCheckpoint(driver, entry.checkpoint.name, entry.targets));
    case "file":
    case "linked-file":
    case "volume":
    case "directory":
    case "empty-directory":
    case "daemon":
    case "daemon-export":
    case "machine":
      return host.undo(entry);
    case "vm-held":
    case "vm-saving":
    case "vm-frozen":
    case "vm-node":
    case "vm-filter":
    case "vm-job":
    case "vm-export":
    case "vm-nbd-server":
    case "vm-bitmap":
      return session.resilient((driver) => driver.undo(entry));
  }
}
