import type { IntactEntry } from "../../model/backup.js";
import type { Job } from "../../model/job.js";
import type { RunBootTest, RunVerification } from "../../model/run-record.js";
import type { ServiceContext } from "../context.js";

export interface DoneBackup {
  readonly job: Job;
  readonly entry: IntactEntry;
  /** Fires when the run is to end. */
  readonly signal: AbortSignal;
  /** Takes down what was verified. */
  readonly onVerified: (verification: RunVerification) => void;
  /** Takes down what came of booting it. */
  readonly onBooted: (bootTest: RunBootTest) => void;
  /** Takes down the id of a backup that was copied. */
  readonly onCopied: (backup: string) => void;
}

/**
 * What a run does for a domain after its backup. The domain still has its place among those that are worked on at once, but
 * its lock is free.
 */
export interface RunStep {
  readonly name: string;
  /**
   * Resolves with what somebody should read. A failure becomes a note too: the backup is there. But DAMAGED and BOOT_FAILED fail the
   * domain's part of the run, and end the steps: what the others would let go may be the last that is sound.
   */
  perform(this: void, context: ServiceContext, done: DoneBackup): Promise<readonly string[]>;
}
