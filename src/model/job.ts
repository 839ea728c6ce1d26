import type { BackupLevel } from "./backup.js";
import type { BackupLimits } from "./backup-limits.js";
import type { Schedule } from "./schedule.js";

/** `verify`: reads backups that there are, the one first whose verification is the oldest. */
export type JobKind = "backup" | "verify";

/** Backups that are taken or verified by themselves, as the configuration has them. */
export interface Job {
  readonly name: string;
  readonly kind: JobKind;
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
  /** Undefined: backups are not booted. */
  readonly bootTest: JobBootTest | undefined;
  readonly hooks: readonly JobHook[];
  readonly report: JobReport | undefined;
  /** Undefined: those of all backups. */
  readonly limits?: BackupLimits | undefined;
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

/** What is read anew and compared with its digests after each backup of a job; of one that verifies, all that it does. */
export interface JobVerification {
  /** The new backup. */
  readonly after: boolean;
  /** Until when verifications of each domain's other backups are begun, counted from the first; 0: none is. */
  readonly budgetMs: number;
}

/** A machine is booted on the disks of each backup of a job. */
export interface JobBootTest {
  /** How long it may take of the run. */
  readonly budgetMs: number;
}

/** How many domains all jobs together back up at once. */
export interface JobLimits {
  readonly domains: number;
  /** For each repository that has a limit of its own. */
  readonly repositories: ReadonlyMap<string, number>;
}
