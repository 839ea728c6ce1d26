import type { FrontOffer } from "./front-offer.js";
import type { QuiesceOutcome } from "./quiesce.js";
import type { ExportAddress, FileFingerprint, SnapshotPlan } from "./snapshot-plan.js";

/**
 * A backup under way. If the repository lists a backup with this id when a later process finds the record, the data was
 * safe and only the tidying is left; otherwise the new checkpoint is merged away too.
 */
export interface BackupJournal {
  readonly kind: "backup";
  readonly backupId: string;
  readonly repository: string;
}

/** A block snapshot that lives until it is deleted or its lease ends. */
export interface SnapshotJournal {
  readonly kind: "block-snapshot";
  readonly name: string;
  /**
   * `creating` becomes `open` once everything exists, and that `ending` once its end is decided; what is found in one of
   * the other two is undone.
   */
  readonly phase: "creating" | "open" | "ending";
  readonly leaseUntilMs: number;
  readonly leaseMs: number;
  readonly mode: "running" | "inactive";
  readonly plan: SnapshotPlan;
  readonly timeMs: number;
  /** How long the guest was stopped for the moment; records of earlier versions lack it. */
  readonly heldMs?: number;
  readonly quiesce?: QuiesceOutcome;
  readonly fingerprints: readonly FileFingerprint[];
  readonly exports: readonly OpenExport[];
  /** Why content was lost, in words; found out while it could be, since exports that have ended cannot tell. */
  readonly lost?: string;
}

export interface OpenExport extends ExportAddress {
  readonly since?: string;
  /** How it is offered through the front, too: the agent does that again when it has been restarted. */
  readonly front?: FrontOffer;
}

/** Files that a restore is still writing. Others may work on the domain meanwhile, so the process is named. */
export interface RestoreJournal {
  readonly kind: "restore";
  readonly backupId: string;
}
