import type { BackupRepository } from "../ports/repository.js";
import { FleeceError } from "../shared/errors.js";
import { formatBytes } from "../shared/units.js";
import type { ServiceContext } from "./context.js";
import { withWatch } from "./watch.js";

/** Fails with NO_SPACE when less than the reserve is free. */
export async function checkReserve(repository: BackupRepository): Promise<void> {
  const { name, reserveBytes } = repository;
  if (reserveBytes === 0 || (await repository.freeBytes()) > 0) return;
  const message = `Repository ${name} has no more free than its reserve of ${formatBytes(reserveBytes)}`;
  throw new FleeceError("NO_SPACE", message, { facts: { repository: name } });
}

/**
 * Runs `action`, and looks once a second, and at its end, whether the repository keeps its reserve. If not, the action is aborted with NO_SPACE,
 * which is then thrown. Nothing of the watch goes on after that.
 */
export async function withReserveWatch<T>(
  context: ServiceContext,
  repository: BackupRepository,
  signal: AbortSignal | undefined,
  action: (signal: AbortSignal | undefined) => Promise<T>,
): Promise<T> {
  if (repository.reserveBytes === 0) return await action(signal);
  const look = (): Promise<void> => checkReserve(repository);
  const facts = { repository: repository.name };
  return await withWatch(context, { look, endedBy: "NO_SPACE", facts, signal }, async (stopped) => {
    const result = await action(stopped);
    // Whatever came in between two looks.
    await checkReserve(repository);
    return result;
  });
}
