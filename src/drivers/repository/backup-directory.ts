import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { BackupEntry } from "../../model/backup.js";
import { isName } from "../../model/names.js";
import { errnoOf, fileError } from "../../shared/errors.js";
import { readCopyRecord } from "./copy-record.js";
import { COPIED_FILE, MANIFEST_FILE, MERGING_FILE, PROTECTED_FILE } from "./layout.js";
import type { ManifestFiles } from "./manifest-files.js";
import { type MergeRecord, readMergeRecord } from "./merge-record.js";

const NO_MERGE: MergeRecord = { state: "none" };

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
export async function readStored(
  place: BackupPlace,
  manifests: ManifestFiles,
): Promise<StoredBackup | undefined> {
  const { repository, domain, id, directory } = place;
  // Most have none of the files that may be beside a manifest: one question instead of one for each.
  const names = await readdir(directory).catch((error: unknown) => errnoOf(error) ?? "unknown");
  if (names === "ENOENT") return undefined;
  if (typeof names === "string") {
    return {
      entry: { repository, domain, id, damage: `it cannot be read (${names})` },
      mergingInto: undefined,
    };
  }
  const record = names.includes(MERGING_FILE) ? await readMergeRecord(directory) : NO_MERGE;
  const entry = await readBackup(place, manifests);
  if (entry === undefined) return undefined;
  if (record.state === "unusable") {
    return { entry: { repository, domain, id, damage: record.damage }, mergingInto: undefined };
  }
  const copiedFrom = names.includes(COPIED_FILE) ? await readCopyRecord(directory) : undefined;
  const copy = copiedFrom === undefined ? entry : { ...entry, copiedFrom };
  return {
    entry: names.includes(PROTECTED_FILE) ? { ...copy, protected: true } : copy,
    mergingInto: record.state === "merging" ? record.into : undefined,
  };
}

/** The backup in a directory, as far as its manifest can be used. */
async function readBackup(place: BackupPlace, manifests: ManifestFiles): Promise<BackupEntry | undefined> {
  const { repository, domain, id, directory } = place;
  const parsed = await manifests.read(join(directory, MANIFEST_FILE));
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

/** False if nothing is there; a link is not a directory. */
export async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await lstat(path)).isDirectory();
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) ?? "")) return false;
    throw fileError(error, "look at", path);
  }
}
