/** What was found not to be as it should. The next backup does not build on it. */
export interface Doubts {
  /** What was wrong with a backup when it was last verified, by id. */
  readonly backups: ReadonlyMap<string, string>;
}

export const NO_DOUBTS: Doubts = { backups: new Map() };
