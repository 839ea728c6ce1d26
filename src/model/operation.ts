import type { ErrorCode } from "../shared/errors.js";
import type { CreationPlan } from "./domain-snapshot-plan.js";
import type { DomainSnapshots, SnapshotState, SnapshotVolume } from "./domain-snapshot.js";
import type { FrontOffer } from "./front-offer.js";
import type { LayerMerge } from "./layer-plan.js";
import type { Lease } from "./lease.js";
import type { MovedPath } from "./machine-ends.js";
import type { MachineStart } from "./machine-start.js";
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
export interface SnapshotJournal extends Lease {
  readonly kind: "block-snapshot";
  readonly name: string;
  /** Name of the client that created it; records of earlier versions lack it: see `ownerOf`. */
  readonly owner?: string;
  /**
   * `creating` becomes `open` once everything exists, and that `ending` once its end is decided; what is found in one of
   * the other two is undone.
   */
  readonly phase: "creating" | "open" | "ending";
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
  /** The key of the request that made it. */
  readonly request?: string;
  /** How it ends, set with the phase `ending`. */
  readonly end?: SnapshotEnd;
}

export interface SnapshotEnd {
  /** `DELETED`: with success; `FAILED`: its consumer said so; `LOST`: success was claimed, but content was lost. */
  readonly reason: "DELETED" | "FAILED" | "LOST" | "LEASE_EXPIRED";
  /** The key of the request that ended it. */
  readonly request?: string;
  /** What its consumer is told, if that is not what was hoped for. */
  readonly error?: { readonly code: ErrorCode; readonly message: string };
}

/** A block snapshot that has ended, as it was. */
export interface EndedSnapshot {
  /** Of its operation. */
  readonly id: string;
  readonly endedAtMs: number;
  readonly end: SnapshotEnd;
  readonly snapshot: SnapshotJournal;
}

export interface OpenExport extends ExportAddress {
  readonly since?: string;
  /** How it is offered through the front, too: the agent does that again when it has been restarted. */
  readonly front?: FrontOffer;
}

/** A domain snapshot that is being taken. */
export interface DomainSnapshotJournal {
  readonly kind: "domain-snapshot-create";
  /**
   * `preparing`: the disks are as they were. `switching`, written just before they change: QEMU knows whether they have.
   * `switched`: they have, and the guest writes to the overlays; an inactive domain never comes to these two.
   */
  readonly phase: "preparing" | "switching" | "switched";
  readonly plan: CreationPlan;
  /** Of the moment; set from `switching` on, as are the next two. */
  readonly timeMs?: number;
  /** Of the memory file, which is complete. */
  readonly memoryBytes?: number;
  /** The start of the host: see `HostTime`. */
  readonly host?: string;
  /** Set with `switched`, if the guest was asked to freeze its file systems. */
  readonly quiesce?: QuiesceOutcome;
  /** Set with `switched`. */
  readonly pausedMs?: number;
}

/** Files that a restore is still writing. Others may work on the domain meanwhile, so the process is named. */
export interface RestoreJournal {
  readonly kind: "restore";
  readonly backupId: string;
}

/** A copy that is being written to a second repository. Others may work on the domain meanwhile, so the process is named. */
export interface CopyJournal {
  readonly kind: "copy";
  readonly backupId: string;
  /** The second one. */
  readonly repository: string;
}

/** A machine that boots a backup's disks. Others may work on the domain meanwhile, so the process is named; it dies with that. */
export interface BootTestJournal {
  readonly kind: "boot-test";
  readonly backupId: string;
}

/** A domain on its way back to a domain snapshot. */
export interface RevertJournal {
  readonly kind: "domain-snapshot-revert";
  readonly name: string;
  /**
   * Killed in `preparing`, it is undone: the old QEMU goes on. In `quitting` that ends, and the domain is started `again`. From
   * `switched` on the revert is finished: the new QEMU goes on.
   */
  readonly phase: "preparing" | "quitting" | "switched";
  /** What is true of the domain afterwards. */
  readonly document: DomainSnapshots;
  readonly to: SnapshotState;
  /** The QEMU that ran before, if one did. */
  readonly old?: { readonly pid: number; readonly startTicks: number };
  /** The old QEMU ends first: how the domain is started on its present disks if the new one cannot take over. */
  readonly again?: { readonly start: MachineStart; readonly to: "running" | "paused" };
  /** Of the new QEMU, if one is started. */
  readonly arguments?: readonly string[];
  readonly moved: readonly MovedPath[];
  /** Overlays that nobody needs afterwards. */
  readonly obsolete: readonly string[];
}

/** A domain snapshot that is being deleted. */
export interface DeletionJournal {
  readonly kind: "domain-snapshot-delete";
  readonly snapshot: string;
  /** Under way; the document follows when it has been done. */
  readonly merge?: LayerMerge;
  /** `brink`: the running domain may write to `merge.lower` from now on; `merged`: the merge has been done. */
  readonly phase: "merging" | "brink" | "merged";
  /** To be removed as far as the document does not name them, in this order. */
  readonly files: readonly string[];
  /** Snapshots by LVM, to be removed likewise. */
  readonly volumes?: readonly { readonly file: string; readonly volume: SnapshotVolume }[];
  /** Made for the snapshot; removed when it is empty. */
  readonly directory?: string;
}

/** A clone that is being made. */
export interface CloneJournal {
  readonly kind: "domain-snapshot-clone";
  readonly snapshot: string;
  readonly directory: string;
}

/** Internal snapshots that are being made, loaded or removed: without an entry in the document, they are removed. */
export interface InternalJournal {
  readonly kind: "domain-snapshot-internal";
  readonly snapshot: string;
  readonly files: readonly string[];
  /** From the moment at which a revert replaces content, all of which must be of one moment before a guest may run on it. */
  readonly loading?: InternalLoading;
}

export interface InternalLoading {
  readonly name: string;
  /** What is true of the domain afterwards. */
  readonly document: DomainSnapshots;
  readonly to: SnapshotState;
  /** The present as it was kept, for if that one cannot be loaded. */
  readonly back?: Omit<InternalLoading, "back">;
}
