import type { BackupLevel } from "./backup.js";
import type { Schedule } from "./schedule.js";

/** Backups that are taken by themselves, as the configuration has them. */
export interface Job {
  readonly name: string;
  readonly schedule: Schedule;
  readonly domains: readonly string[];
  readonly repository: string;
  /** The repository that its backups are copied to; undefined: none. */
  readonly copyTo: string | undefined;
  /** Undefined: incremental where that is possible. */
  readonly level: BackupLevel | undefined;
  /** Undefined: as each domain has it. */
  readonly quiesce: boolean | undefined;
  /** `HH:MM` in the schedule's zone: what has not ended then is given up. */
  readonly notAfter: string | undefined;
  readonly jitterMs: number;
  /** How often a backup is tried again after an error that may pass. */
  readonly retries: number;
  /** Whether a run that was missed is made up for. */
  readonly catchUp: boolean;
  readonly verify: JobVerification | undefined;
  readonly hooks: readonly JobHook[];
  readonly report: JobReport | undefined;
}

/** Who hears of each run that has ended. */
export interface JobReport {
  /** Gets the record. */
  readonly webhook: string | undefined;
  readonly mail: JobMail | undefined;
}

export interface JobMail {
  /** Takes the message on its standard input, and the receivers from it. */
  readonly command: readonly string[];
  readonly to: readonly string[];
  readonly from: string;
  readonly on: "failure" | "always";
}

/** A program that is run for each domain: when its turn has come, and when its part of the run has ended, well or not. */
export interface JobHook {
  readonly when: "before" | "after" | "failed";
  readonly command: readonly string[];
  readonly timeoutMs: number;
  /** `stop`: when it fails, no more hooks of that moment are run; and after one `before`, no backup is taken. */
  readonly onFailure: "continue" | "stop";
}

/** What is read anew and compared with its digests after each backup of a job. */
export interface JobVerification {
  /** The new backup. */
  readonly after: boolean;
  /** Until when verifications of the domain's other backups are begun, counted from the first; 0: none is. */
  readonly budgetMs: number;
}

/** How many domains all jobs together back up at once. */
export interface JobLimits {
  readonly domains: number;
  /** For each repository that has a limit of its own. */
  readonly repositories: ReadonlyMap<string, number>;
}
