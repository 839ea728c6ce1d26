import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { BackupEntry } from "../../model/backup.js";
import { isName } from "../../model/names.js";
import { errnoOf, fileError, isFleeceError } from "../../shared/errors.js";
import { exists, openExisting } from "../durable-files.js";
import { readCopyRecord } from "./copy-record.js";
import { MANIFEST_FILE, PROTECTED_FILE } from "./layout.js";
import { type ParsedManifest, parseManifest } from "./manifest-schema.js";
import { readMergeRecord } from "./merge-record.js";

/** A manifest has a few hundred bytes a disk; more than this is not one of ours. */
const MAX_MANIFEST_BYTES = 16 * 1024 * 1024;

export interface BackupPlace {
  readonly repository: string;
  readonly domain: string;
  readonly id: string;
  readonly directory: string;
}

/** Names of the directories in `path` that may be names of this kind. Links, files and foreign names are left out. */
export async function namedDirectories(path: string, kind: "domain" | "backup"): Promise<string[]> {
  const entries = await readdir(path, { withFileTypes: true }).catch((error: unknown) => {
    throw fileError(error, "list the directory", path);
  });
  return entries.filter((entry) => entry.isDirectory() && isName(kind, entry.name)).map(({ name }) => name);
}

/** What is in the directory of a backup. */
export interface StoredBackup {
  readonly entry: BackupEntry;
  /** It is no backup any more: what is left of it goes to this one. */
  readonly mergingInto: string | undefined;
}

/** Undefined if the directory is gone. */
export async function readStored(place: BackupPlace): Promise<StoredBackup | undefined> {
  const { repository, domain, id, directory } = place;
  const record = await readMergeRecord(directory);
  const entry = await readBackup(place);
  if (entry === undefined) return undefined;
  if (record.state === "unusable") {
    return { entry: { repository, domain, id, damage: record.damage }, mergingInto: undefined };
  }
  const isProtected = await exists(join(directory, PROTECTED_FILE));
  const copiedFrom = await readCopyRecord(directory);
  const copy = copiedFrom === undefined ? entry : { ...entry, copiedFrom };
  return {
    entry: isProtected ? { ...copy, protected: true } : copy,
    mergingInto: record.state === "merging" ? record.into : undefined,
  };
}

/** The backup in a directory, as far as its manifest can be used. */
async function readBackup(place: BackupPlace): Promise<BackupEntry | undefined> {
  const { repository, domain, id, directory } = place;
  const parsed = await readManifest(join(directory, MANIFEST_FILE));
  const { manifest } = parsed;
  if (manifest === undefined) {
    const removed = !(await isDirectory(directory));
    return removed ? undefined : { repository, domain, id, damage: parsed.damage };
  }
  if (manifest.id !== id || manifest.domain !== domain) {
    const damage = `its manifest is of backup ${manifest.id} of domain ${manifest.domain}`;
    return { repository, domain, id, damage };
  }
  return { repository, domain, id, manifest };
}

async function readManifest(path: string): Promise<ParsedManifest> {
  try {
    const file = await openExisting(path);
    try {
      const { size } = await file.stat();
      if (size > MAX_MANIFEST_BYTES)
        return { damage: `its manifest has ${size} bytes, more than any of ours` };
      return parseManifest(await file.readFile("utf8"));
    } finally {
      await file.close();
    }
  } catch (error) {
    if (isFleeceError(error)) return { damage: "its manifest is not a regular file" };
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    if (errno === "ENOENT") return { damage: "it has no manifest" };
    if (errno === "ELOOP") return { damage: "its manifest is a symbolic link" };
    return { damage: `its manifest cannot be read (${errno})` };
  }
}

/** False if nothing is there; a link is not a directory. */
export async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await lstat(path)).isDirectory();
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) ?? "")) return false;
    throw fileError(error, "look at", path);
  }
}
