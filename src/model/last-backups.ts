import type { BackupEntry } from "./backup.js";
import { byTime, chainOf, isIntact } from "./backup.js";

/** Frozen moments of the newest backups that can be restored. */
export interface LastBackups {
  /** Undefined: there is none. */
  readonly timeMs: number | undefined;
  /** By target, for every disk that any of them holds. */
  readonly disks: ReadonlyMap<string, number>;
}

/** `entries` are all backups of one domain in one repository: one whose chain is not whole does not count. */
export function lastBackups(entries: readonly BackupEntry[]): LastBackups {
  const disks = new Map<string, number>();
  let timeMs: number | undefined;
  for (const entry of entries.filter(isIntact).toSorted(byTime).toReversed()) {
    const isNews = timeMs === undefined || entry.manifest.disks.some(({ target }) => !disks.has(target));
    if (!isNews || !chainOf(entries, entry.id).complete) continue;
    const moment = Date.parse(entry.manifest.time);
    timeMs ??= moment;
    for (const { target } of entry.manifest.disks) if (!disks.has(target)) disks.set(target, moment);
  }
  return { timeMs, disks };
}
