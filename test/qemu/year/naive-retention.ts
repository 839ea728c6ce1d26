import { localDate, weekOf } from "./calendar.js";

export interface KnownBackup {
  readonly id: string;
  readonly timeMs: number;
  readonly parent: string | undefined;
  readonly isProtected: boolean;
}

export interface NaivePolicy {
  readonly daily: number;
  readonly weekly: number;
  readonly monthly: number;
  readonly maximumChainLength: number;
}

const BUCKETS = {
  daily: (date: string) => date,
  weekly: weekOf,
  monthly: (date: string) => date.slice(0, 7),
} as const;

/** What is left of these backups, which are in the order in which they were taken, once the policy has been carried out, based on what is left. */
export function naiveRetention<Known extends KnownBackup>(
  backups: readonly Known[],
  policy: NaivePolicy,
): Known[] {
  const newestFirst = backups.toSorted((a, b) => b.timeMs - a.timeMs);
  const kept = new Set(newestFirst.filter(({ isProtected }, index) => index === 0 || isProtected));
  for (const backup of backups.slice(-1)) kept.add(backup);
  for (const rule of ["daily", "weekly", "monthly"] as const) {
    const buckets = new Map<string, Known>();
    for (const backup of newestFirst) {
      const bucket = BUCKETS[rule](localDate(backup.timeMs));
      if (!buckets.has(bucket)) buckets.set(bucket, backup);
    }
    for (const backup of [...buckets.values()].slice(0, policy[rule])) kept.add(backup);
  }

  const basedOn = (parent: Known): Known[] => backups.filter((backup) => backup.parent === parent.id);
  const isAlive = (backup: Known): boolean => kept.has(backup) || basedOn(backup).some(isAlive);
  const aliveOn = (backup: Known): number => basedOn(backup).filter(isAlive).length;
  const stays = (backup: Known): boolean => kept.has(backup) || aliveOn(backup) > 1;
  const below = ({ parent }: Known): Known | undefined => backups.find(({ id }) => id === parent);

  for (const last of newestFirst.filter((backup) => kept.has(backup))) {
    const chain: Known[] = [];
    for (let at: Known | undefined = last; at !== undefined; at = below(at)) if (stays(at)) chain.unshift(at);
    let excess = chain.length - policy.maximumChainLength;
    for (const backup of chain.slice(0, -1)) {
      if (excess <= 0) break;
      if (!kept.has(backup) || backup.isProtected || aliveOn(backup) !== 1) continue;
      kept.delete(backup);
      excess--;
    }
  }

  return backups.filter(stays).map((backup) => {
    let parent = below(backup);
    while (parent !== undefined && !stays(parent)) parent = below(parent);
    return { ...backup, parent: parent?.id };
  });
}
