import type { FileHandle } from "node:fs/promises";
import { constants, open } from "node:fs/promises";
import { hostname } from "node:os";
import { tryLock } from "fs-native-extensions";
import { errnoOf, fileError } from "../shared/errors.js";

/** Who holds a lock, as written into the lock file for those who are refused. */
export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  readonly purpose: string;
  readonly since: string;
}

export interface KernelLock {
  /** Idempotent. */
  release(): Promise<void>;
}

export type LockAttempt =
  { readonly held: true; readonly lock: KernelLock } | { readonly held: false; readonly holder?: LockHolder };

/** Node closes a file that nothing refers to, and the lock would go with it, even if its holder only forgot it. */
const held = new Set<FileHandle>();

/**
 * Tries to take an exclusive kernel lock (an open-file-description lock) on `path`, which is created with mode 0600 and
 * stays. The kernel drops it when the holder ends, however it ends, so there is no stale lock to judge.
 */
export async function tryKernelLock(path: string, purpose: string): Promise<LockAttempt> {
  const { O_CREAT, O_NOFOLLOW, O_RDWR } = constants;
  let file: FileHandle;
  try {
    file = await open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
  } catch (error) {
    throw fileError(error, "open the lock file", path);
  }
  try {
    if (!tryLock(file.fd)) {
      const holder = await readHolder(file);
      await file.close();
      return holder === undefined ? { held: false } : { held: false, holder };
    }
    const holder: LockHolder = {
      pid: process.pid,
      host: hostname(),
      purpose,
      since: new Date().toISOString(),
    };
    await file.truncate(0);
    await file.write(`${JSON.stringify(holder)}\n`, 0);
  } catch (error) {
    await file.close();
    throw fileError(error, "lock", path);
  }
  held.add(file);
  const release = async (): Promise<void> => {
    if (held.delete(file)) await file.close();
  };
  return { held: true, lock: { release } };
}

/**
 * Whether somebody holds the lock, without taking it or writing to the file. (For an instant a shared lock is held: whoever
 * wants the lock just then is refused, as by anybody else.)
 */
export async function lookAtKernelLock(
  path: string,
): Promise<{ readonly held: boolean; readonly holder?: LockHolder }> {
  let file: FileHandle;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return { held: false };
    throw fileError(error, "open the lock file", path);
  }
  try {
    if (tryLock(file.fd, { shared: true })) return { held: false };
    const holder = await readHolder(file);
    return holder === undefined ? { held: true } : { held: true, holder };
  } catch (error) {
    throw fileError(error, "look at the lock", path);
  } finally {
    await file.close();
  }
}

/**
 * Tries to lock a file that is there, without writing to it: shared with others that share it, or for this holder alone,
 * for which the file must be writable. Undefined if others stand in the way. Errors are those of `open`.
 */
export async function tryFileLock(path: string, mode: "shared" | "alone"): Promise<KernelLock | undefined> {
  const access = mode === "shared" ? constants.O_RDONLY : constants.O_RDWR;
  const file = await open(path, access | constants.O_NOFOLLOW);
  try {
    if (!tryLock(file.fd, { shared: mode === "shared" })) {
      await file.close();
      return undefined;
    }
  } catch (error) {
    await file.close();
    throw error;
  }
  held.add(file);
  return {
    release: async () => {
      if (held.delete(file)) await file.close();
    },
  };
}

export function describeHolder(holder: LockHolder | undefined): string {
  if (holder === undefined) return "another process";
  return `${holder.purpose} (process ${holder.pid} on ${holder.host}, since ${holder.since})`;
}

async function readHolder(file: FileHandle): Promise<LockHolder | undefined> {
  const buffer = Buffer.alloc(4096);
  const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
  try {
    const value: unknown = JSON.parse(buffer.toString("utf8", 0, bytesRead));
    return isHolder(value) ? value : undefined;
  } catch {
    // The holder is just writing it.
    return undefined;
  }
}

function isHolder(value: unknown): value is LockHolder {
  if (typeof value !== "object" || value === null) return false;
  const { pid, host, purpose, since } = value as Record<string, unknown>;
  return (
    typeof pid === "number" &&
    typeof host === "string" &&
    typeof purpose === "string" &&
    typeof since === "string"
  );
}
