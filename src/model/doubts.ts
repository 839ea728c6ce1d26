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
