import type { IntactEntry } from "../../model/backup.js";
import type { Job } from "../../model/job.js";
import type { ServiceContext } from "../context.js";

export interface DoneBackup {
  readonly job: Job;
  readonly entry: IntactEntry;
  /** Fires when the run is to end. */
  readonly signal: AbortSignal;
}

/**
 * What a run does for a domain after its backup. The domain still has its place among those that are worked on at once, but
 * its lock is free.
 */
export interface RunStep {
  readonly name: string;
  /** Resolves with what somebody should read. A failure becomes a note too: the backup is there. */
  perform(this: void, context: ServiceContext, done: DoneBackup): Promise<readonly string[]>;
}
