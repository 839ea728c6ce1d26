import type { BackupJournal, SnapshotJournal } from "../model/operation.js";
import type { UndoEntry } from "../model/undo.js";

/** An operation under way on a domain, as the journal keeps it. */
export interface OperationRecord {
  readonly schemaVersion: 1;
  readonly id: string;
  readonly domain: string;
  readonly startedAtMs: number;
  readonly subject: BackupJournal | SnapshotJournal;
  /** Oldest first; undone in reverse. */
  readonly undo: readonly UndoEntry[];
}

/** Held from `lockDomain` until `release` or the end of the process, however that comes (a kernel lock). */
export interface DomainLock {
  release(): Promise<void>;
}

/** The state directory: locks and the journal of unfinished operations. Nothing else is state; backups and images are. */
export interface StateStore {
  /** Fails with DOMAIN_BUSY naming the holder and what it does. `purpose` is shown to others that are refused. */
  lockDomain(domain: string, purpose: string): Promise<DomainLock>;
  /** Journalled operations of a domain (of all, without one), oldest first. A torn record cannot occur. */
  operations(domain?: string): Promise<readonly OperationRecord[]>;
  /** Durable (file and directory synced) when it resolves. Replaces the record of the same id. */
  save(record: OperationRecord): Promise<void>;
  /** Idempotent. */
  remove(record: Pick<OperationRecord, "id" | "domain">): Promise<void>;
}

/** Undoes what lives outside the domain's QEMU: files, directories, daemons. Idempotent. */
export interface HostCleaner {
  undo(entry: UndoEntry): Promise<void>;
}
