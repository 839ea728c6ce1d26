import { keyIdOf, type Manifest, type ManifestDisk } from "../../model/backup.js";
import { ENCRYPTED_SCHEMA_VERSION, FILES_SCHEMA_VERSION, MERGED_SCHEMA_VERSION } from "./manifest-schema.js";

/** What a merge changes in the manifest's account of a disk. */
export type MergedFigures = Pick<ManifestDisk, "digests" | "digestsSha256" | "storedBytes" | "zeroBytes">;

/** Whether a merge changes the files of this disk of the younger backup; one that is stored whole needs nothing older. */
export function isBased({ mode }: ManifestDisk): boolean {
  return mode !== "whole";
}

/**
 * The manifest of the younger backup once the older one is merged into it. A disk that the older one has whole is whole
 * then. A backup of which every disk is whole depends on nothing, so it is a full. Without `figures` (while the merge is
 * under way) it tells how the backup will look.
 */
export function mergedManifest(
  older: Manifest,
  younger: Manifest,
  figures?: ReadonlyMap<string, MergedFigures>,
): Manifest {
  const reason = `backup ${older.id}, which it was based on, is merged into it`;
  const disks = younger.disks.map((disk): ManifestDisk => {
    const base = older.disks.find(({ target }) => target === disk.target);
    if (!isBased(disk) || base === undefined) return disk;
    const mode = isBased(base) ? disk.mode : "whole";
    // The older image is the one that stays; a younger one's content is never stored in clear.
    const keyId = disk.keyId ?? base.keyId;
    const encrypted = keyId === undefined ? {} : { keyId };
    return { ...disk, mode, reason, ...encrypted, ...figures?.get(disk.target) };
  });
  const isFull = !disks.some(isBased);
  const schemaVersion =
    keyIdOf({ ...younger, disks }) !== undefined
      ? ENCRYPTED_SCHEMA_VERSION
      : younger.schemaVersion === FILES_SCHEMA_VERSION
        ? FILES_SCHEMA_VERSION
        : MERGED_SCHEMA_VERSION;
  const { parent: _, ...rest } = younger;
  return {
    ...rest,
    ...(figures === undefined ? {} : { schemaVersion }),
    ...(isFull ? { level: "full" } : { level: "incremental", parent: older.parent }),
    reason,
    disks,
  };
}
