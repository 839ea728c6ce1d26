import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { type KernelLock, tryFileLock } from "../kernel-lock.js";

/*
 * Whoever reads a backup holds a shared lock on the manifest of each backup of its chain; whoever changes or removes the
 * files of a backup holds its manifest alone. They are kernel locks: nothing has to be written to read, and they end with
 * their holder.
 */

export interface HeldBackup {
  readonly domain: string;
  readonly id: string;
  readonly manifestPath: string;
}

/** Undefined if one of them is gone. Fails with REPOSITORY_BUSY while one of them is being changed. */
export async function holdToRead(backups: readonly HeldBackup[]): Promise<AsyncDisposable | undefined> {
  const locks: KernelLock[] = [];
  const hold = {
    async [Symbol.asyncDispose]() {
      for (const lock of locks) await lock.release();
    },
  };
  try {
    for (const { domain, id, manifestPath } of backups) {
      const lock = await tryFileLock(manifestPath, "shared");
      if (lock === undefined) throw busy(domain, id, "is being merged or deleted");
      locks.push(lock);
    }
    return hold;
  } catch (error) {
    await hold[Symbol.asyncDispose]();
    if (errnoOf(error) === "ENOENT") return undefined;
    throw fileError(error, "lock a backup of", backups[0]?.domain ?? "");
  }
}

/** A backup without a manifest can be held by nobody. Fails with REPOSITORY_BUSY while it is being read. */
export async function holdAlone({ domain, id, manifestPath }: HeldBackup): Promise<AsyncDisposable> {
  try {
    const lock = await tryFileLock(manifestPath, "alone");
    if (lock === undefined) throw busy(domain, id, "is being read (restored, verified, served)");
    return { [Symbol.asyncDispose]: () => lock.release() };
  } catch (error) {
    if (!["ENOENT", "ELOOP", "EISDIR"].includes(errnoOf(error) ?? ""))
      throw fileError(error, "lock", manifestPath);
    return { [Symbol.asyncDispose]: () => Promise.resolve() };
  }
}

function busy(domain: string, id: string, why: string): FleeceError {
  return new FleeceError(
    "REPOSITORY_BUSY",
    `Backup ${id} of ${domain} ${why}; try again when that has ended`,
    {
      facts: { domain, backup: id },
    },
  );
}
