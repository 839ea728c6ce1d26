import type { BackupRepository } from "../ports/repository.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { formatBytes } from "../shared/units.js";
import type { ServiceContext } from "./context.js";

const INTERVAL_MS = 1000;

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
  const reached = new AbortController();
  const over = new AbortController();
  const stop = AbortSignal.any([reached.signal, over.signal, ...(signal === undefined ? [] : [signal])]);
  const ended = watch(context, repository, stop, reached);
  try {
    const result = await action(AbortSignal.any([reached.signal, ...(signal === undefined ? [] : [signal])]));
    // Whatever came in between two looks.
    await checkReserve(repository);
    return result;
  } finally {
    over.abort();
    await ended;
  }
}

async function watch(
  { clock, log }: ServiceContext,
  repository: BackupRepository,
  stop: AbortSignal,
  reached: AbortController,
): Promise<void> {
  const isOver = (): boolean => stop.aborted;
  while (!isOver()) {
    try {
      await clock.sleep(INTERVAL_MS, stop);
      await checkReserve(repository);
    } catch (error) {
      if (isFleeceError(error, "NO_SPACE")) reached.abort(error);
      else if (!isOver())
        log.debug({ repository: repository.name }, `Cannot look at it: ${errorMessage(error)}`);
    }
  }
}
