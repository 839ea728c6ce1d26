/** A program of the administrator's, and what it gets. */
export interface Program {
  /** The program and its arguments; no shell sees them. */
  readonly command: readonly string[];
  /** Besides the few variables that each has. */
  readonly env?: Readonly<Record<string, string>>;
  /** On its standard input. */
  readonly input?: string;
  /** What of its output is kept; default: all of it. */
  readonly keeps?: "stdout";
}

export interface ProgramEnd {
  /** Why it did not do what it should, in words; undefined if it ended with 0. */
  readonly failure: string | undefined;
  /** The last of what it printed; bounded. */
  readonly output: string;
}

export interface ProgramRunner {
  /** Resolves when it has ended. The signal kills it, with its process group. Never fails. */
  run(program: Program, signal: AbortSignal): Promise<ProgramEnd>;
}
