import { type BackupEntry, chainOf } from "./backup.js";

/** What was found not to be as it should. The next backup does not build on it. */
export interface Doubts {
  /** What was wrong with a backup when it was last verified, by id. */
  readonly backups: ReadonlyMap<string, string>;
  /** Disks, by target, of which a change did not count as one. */
  readonly disks: ReadonlyMap<string, MissedChange>;
}

/** Bitmaps do not tell what changed since backups of this moment and before. */
export interface MissedChange {
  readonly timeMs: number;
  /** In words. */
  readonly reason: string;
}

export const NO_DOUBTS: Doubts = { backups: new Map(), disks: new Map() };

/** Why nothing is based on a backup; undefined if something may be. */
export function flawOf(
  entries: readonly BackupEntry[],
  id: string,
  { backups }: Pick<Doubts, "backups">,
): string | undefined {
  const chain = chainOf(entries, id);
  if (!chain.complete) return `the chain is broken: ${chain.reason}`;
  const damaged = chain.entries.find((entry) => backups.has(entry.id));
  if (damaged === undefined) return undefined;
  return `backup ${damaged.id} was found damaged when it was verified: ${backups.get(damaged.id) ?? ""}`;
}

/** With what was found just now, which may be too new to be remembered. */
export function withDamages(doubts: Doubts, damages: ReadonlyMap<string, string>): Doubts {
  return { ...doubts, backups: new Map([...doubts.backups, ...damages]) };
}
