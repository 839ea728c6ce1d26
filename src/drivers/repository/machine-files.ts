import { createHash } from "node:crypto";
import { constants, type FileHandle, mkdir, open, opendir, stat } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import type { ManifestFile } from "../../model/backup.js";
import { ENCRYPTION_BYTES, FileDecryption, FileEncryption, FileRecoding } from "./file-cipher.js";
import type { Keys, RepositoryKey } from "./repository-key.js";
import type { FileCipher, MachineFile, OpenBackup } from "../../ports/repository.js";
import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { MIB } from "../../shared/units.js";
import { createPrivate, openExisting, syncDirectory } from "../durable-files.js";

/** Of one backup. UEFI variables have up to 64 MiB on ARM, the state of a TPM some KiB; more is a directory named by mistake. */
const MAX_BYTES = 256 * MIB;
const MAX_FILES = 1000;
const PIECE_BYTES = MIB;

/** The machine files of a backup, and where they are. */
export interface StoredMachine {
  readonly directory: string;
  readonly files: readonly ManifestFile[];
  readonly keys: Keys;
}

/** Fails with PATH_NOT_FOUND, PERMISSION_DENIED or UNSUPPORTED unless each is a file or a directory of not too many. */
export async function checkSources(sources: readonly MachineFile[]): Promise<void> {
  for (const { path } of sources) await filesOf(path);
}

/**
 * Copies files, and the regular files below directories, to a new directory, durably: `<name>` or `<name>/<path below>`. What
 * is neither (sockets, links) is left out. A file that is written to meanwhile is copied as its pieces are read.
 * With a key the copies are encrypted.
 */
export async function copyMachineFiles(
  sources: readonly MachineFile[],
  directory: string,
  { key, signal }: { readonly key: RepositoryKey | undefined; readonly signal: AbortSignal | undefined },
): Promise<readonly ManifestFile[]> {
  const copied: ManifestFile[] = [];
  let leftBytes = MAX_BYTES;
  for (const { name, path } of sources) {
    for (const below of await filesOf(path)) {
      const source = join(path, below);
      const file = await openSource(source);
      try {
        const to = join(directory, name, below);
        const stored = join(name, below);
        const cipher = key && new FileEncryption(key, stored);
        const copy = await copyFile(file, { from: source, to, maxBytes: leftBytes, cipher }, signal);
        leftBytes -= copy.readBytes;
        copied.push({
          ...{ path: stored, sizeBytes: copy.readBytes, sha256: copy.writtenSha256 },
          ...(key === undefined ? {} : { keyId: key.id }),
        });
      } finally {
        await file.close();
      }
    }
  }
  await syncDirectories(directory, copied);
  return copied;
}

/** See `OpenBackup`: compares stored files with the manifest, and copies them on the way, if told where to. */
export async function checkMachineFiles(
  { files, directory, keys }: StoredMachine,
  { copyTo, encrypt, signal }: NonNullable<Parameters<OpenBackup["checkMachineFiles"]>[0]>,
): Promise<readonly ManifestFile[]> {
  const copies: ManifestFile[] = [];
  for (const { path, sizeBytes, sha256, keyId } of files) {
    const key = keys(keyId);
    const from = join(directory, path);
    const file = await openStored(from);
    try {
      const to = copyTo === undefined ? undefined : join(copyTo, path);
      const cipher = new FileRecoding(key && new FileDecryption(key, path), encrypt?.(path));
      const maxBytes = MAX_BYTES + (key === undefined ? 0 : ENCRYPTION_BYTES);
      const found = await copyFile(file, { from, to, maxBytes, cipher }, signal);
      if (cipher.plainBytes !== sizeBytes || found.readSha256 !== sha256) {
        throw damaged(from, "is not what was stored: its SHA-256 differs");
      }
      copies.push({ path, sizeBytes, sha256: found.writtenSha256 });
    } finally {
      await file.close();
    }
  }
  if (copyTo !== undefined) await syncDirectories(copyTo, files);
  return copies;
}

/** Paths below a directory; the empty one for a file. */
async function filesOf(path: string): Promise<readonly string[]> {
  try {
    const found = await stat(path);
    if (found.isFile()) return [""];
    if (!found.isDirectory()) throw unsupported(path, "it is neither a file nor a directory");
    const files: string[] = [];
    for await (const entry of await opendir(path, { recursive: true })) {
      if (!entry.isFile()) continue;
      if (files.length === MAX_FILES) throw unsupported(path, `it has more than ${MAX_FILES} files`);
      files.push(relative(path, join(entry.parentPath, entry.name)));
    }
    return files.toSorted();
  } catch (error) {
    throw fileError(error, "back up", path);
  }
}

interface CopyPlaces {
  readonly from: string;
  /** Undefined: it is only read. */
  readonly to: string | undefined;
  /** Of what is read. */
  readonly maxBytes: number;
  /** What is written is what this makes of what is read; undefined: the same. */
  readonly cipher: FileCipher | undefined;
}

interface Copy {
  readonly readBytes: number;
  readonly readSha256: string;
  readonly writtenSha256: string;
}

async function copyFile(
  file: FileHandle,
  { from, to, maxBytes, cipher }: CopyPlaces,
  signal: AbortSignal | undefined,
): Promise<Copy> {
  if (to !== undefined) await mkdir(dirname(to), { recursive: true, mode: 0o700 });
  const target = to === undefined ? undefined : await createPrivate(to);
  try {
    const [readHash, writtenHash] = [createHash("sha256"), createHash("sha256")];
    const memory = Buffer.alloc(PIECE_BYTES);
    let readBytes = 0;
    const write = async (bytes: Uint8Array): Promise<void> => {
      writtenHash.update(bytes);
      await target?.writeFile(bytes);
    };
    for (;;) {
      signal?.throwIfAborted();
      const { bytesRead } = await file.read(memory, 0, memory.length, readBytes);
      if (bytesRead === 0) break;
      readBytes += bytesRead;
      if (readBytes > maxBytes)
        throw unsupported(from, `machine files have more than ${MAX_BYTES / MIB} MiB`);
      const piece = memory.subarray(0, bytesRead);
      readHash.update(piece);
      await write(cipher?.update(piece) ?? piece);
    }
    const end = cipher === undefined ? Buffer.alloc(0) : cipher.end();
    if (end === undefined) throw damaged(from, "is not what was stored: it was not encrypted with this key");
    await write(end);
    await target?.sync();
    return { readBytes, readSha256: readHash.digest("hex"), writtenSha256: writtenHash.digest("hex") };
  } catch (error) {
    throw fileError(error, "copy", from);
  } finally {
    await target?.close();
  }
}

/** Never waits for the writer of a pipe that took a file's place. */
async function openSource(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw fileError(error, "back up", path);
  }
}

async function openStored(path: string): Promise<FileHandle> {
  try {
    return await openExisting(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") throw damaged(path, "is missing");
    throw fileError(error, "read", path);
  }
}

async function syncDirectories(root: string, files: readonly ManifestFile[]): Promise<void> {
  const directories = new Set<string>();
  for (const { path } of files) {
    for (let at = dirname(path); ; at = dirname(at)) {
      directories.add(join(root, at));
      if (at === ".") break;
    }
  }
  for (const directory of directories) await syncDirectory(directory);
}

function unsupported(path: string, why: string): FleeceError {
  return new FleeceError("UNSUPPORTED", `Cannot back up ${path}: ${why}`, { facts: { path } });
}

function damaged(path: string, fault: string): FleeceError {
  return new FleeceError("DAMAGED", `The file ${path} ${fault}`, { facts: { path } });
}
