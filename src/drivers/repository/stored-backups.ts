import { type BackupEntry, byTime, type IntactEntry, isIntact } from "../../model/backup.js";
import type { StoredBackup } from "./backup-directory.js";
import { mergedManifest } from "./merge-manifest.js";

/** What lists show of a domain: a backup that is being merged away is none, and the one that gets it looks as it will. */
export function asListed(stored: readonly StoredBackup[]): readonly BackupEntry[] {
  const entries = stored
    .filter(({ mergingInto }) => mergingInto === undefined)
    .map(({ entry }) => (isIntact(entry) ? asMerged(stored, entry) : entry));
  const damaged = entries.filter((entry) => !isIntact(entry)).toSorted((a, b) => (a.id < b.id ? -1 : 1));
  return [...damaged, ...entries.filter(isIntact).toSorted(byTime)];
}

function asMerged(stored: readonly StoredBackup[], entry: IntactEntry): IntactEntry {
  const older = stored.find(
    ({ entry: { id }, mergingInto }) => mergingInto === entry.id && id === entry.manifest.parent,
  );
  if (older === undefined || !isIntact(older.entry)) return entry;
  return { ...entry, manifest: mergedManifest(older.entry.manifest, entry.manifest) };
}

/** Ids of those whose merge has begun. */
export function mergingIds(stored: readonly StoredBackup[]): ReadonlySet<string> {
  return new Set(stored.filter(({ mergingInto }) => mergingInto !== undefined).map(({ entry }) => entry.id));
}
