import type { RunState } from "../model/run-record.js";

/** What services report for the metrics. Never fails, and nobody waits for it. */
export interface Meter {
  /** What a backup under way has read and stored since it said so last, also if it fails later. */
  backupBytes(domain: string, bytes: { readonly readBytes: number; readonly storedBytes: number }): void;
  /** What one frozen moment cost the guest; 0 for what was not done. */
  moment(domain: string, cost: { readonly heldMs: number; readonly frozenMs: number }): void;
  /** A backup of the domain was published or deleted. */
  backupsChanged(domain: string): void;
  /** A run of the job has ended in that state. */
  jobRunEnded(job: string, state: RunState): void;
  /** A whole backup of the domain was read and compared with its digests. */
  backupVerified(domain: string, outcome: "sound" | "damaged"): void;
  /** A machine was booted on the disks of a backup of the domain. */
  backupBooted(domain: string, outcome: "booted" | "failed"): void;
  /** A block of a disk of the domain had changed, and did not count as changed. */
  changeMissed(domain: string): void;
}

/** For a process that nobody asks for metrics. */
export const noMeter: Meter = {
  backupBytes: () => undefined,
  moment: () => undefined,
  backupsChanged: () => undefined,
  jobRunEnded: () => undefined,
  backupVerified: () => undefined,
  backupBooted: () => undefined,
  changeMissed: () => undefined,
};
