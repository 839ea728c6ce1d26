import { constants, type FileHandle, link, lstat, open, rename, rm, rmdir, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } = constants;

/** Opens a new file of mode 0600 for reading and writing; never an existing one, never through a link. */
export async function createPrivate(path: string): Promise<FileHandle> {
  try {
    return await open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  } catch (error) {
    throw fileError(error, "create", path);
  }
}

/** Opens a regular file for reading, never through a link and never waiting for the writer of a pipe. */
export async function openExisting(path: string): Promise<FileHandle> {
  const file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new FleeceError("DAMAGED", `Expected a regular file at ${path}`, { facts: { path } });
}

/** A link counts, wherever it leads. */
export async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) ?? "")) return false;
    throw fileError(error, "look at", path);
  }
}

/** Idempotent: false if there was none. */
export async function removeFile(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    throw fileError(error, "remove", path);
  }
}

/** Idempotent. Leaves one that is not empty, and what is no directory: false then. */
export async function removeEmptyDirectory(path: string): Promise<boolean> {
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    if (["ENOENT", "ENOTEMPTY", "ENOTDIR"].includes(errnoOf(error) ?? "")) return false;
    throw fileError(error, "remove the directory", path);
  }
}

/** Gives a file a second name in its directory, which must be free: neither a file nor a link, wherever it leads. */
export async function linkFile(path: string, name: string): Promise<void> {
  try {
    await link(path, name);
  } catch (error) {
    throw fileError(error, "create", name);
  }
}

/** Writes all of it, also if the kernel takes it in parts: the last part then says why. */
export async function writeAt(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}

export async function writeDurably(path: string, text: string): Promise<void> {
  const file = await createPrivate(path);
  try {
    await file.writeFile(text);
    await file.sync();
  } catch (error) {
    throw fileError(error, "write", path);
  } finally {
    await file.close();
  }
}

/** Gives a file new content: the old or the new is there at any time. The caller keeps other writers out. */
export async function replaceDurably(path: string, text: string): Promise<void> {
  const draft = `${path}.new`;
  await rm(draft, { force: true });
  await writeDurably(draft, text);
  try {
    await rename(draft, path);
  } catch (error) {
    throw fileError(error, "write", path);
  }
  await syncDirectory(dirname(path));
}

export async function syncFile(path: string): Promise<void> {
  try {
    const file = await open(path, O_RDONLY);
    try {
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fileError(error, "make durable", path);
  }
}

/** Makes names that were created, renamed or removed in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  try {
    const directory = await open(path, O_RDONLY);
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  } catch (error) {
    throw fileError(error, "make durable", path);
  }
}
