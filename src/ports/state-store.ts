import type {
  BackupJournal,
  BootTestJournal,
  CloneJournal,
  CopyJournal,
  DeletionJournal,
  DomainSnapshotJournal,
  InternalJournal,
  RestoreJournal,
  RevertJournal,
  SnapshotJournal,
} from "../model/operation.js";
import type { Lease } from "../model/lease.js";
import type { HostEntry, UndoEntry } from "../model/undo.js";

export type OperationSubject =
  | BackupJournal
  | SnapshotJournal
  | RestoreJournal
  | BootTestJournal
  | CopyJournal
  | DomainSnapshotJournal
  | RevertJournal
  | DeletionJournal
  | CloneJournal
  | InternalJournal;

/** A process, told apart from a later one with the same pid by its start time in clock ticks since boot. */
export interface OperationOwner {
  readonly pid: number;
  readonly startTicks: number;
}

/** An operation under way on a domain, as the journal keeps it. */
export interface OperationRecord {
  readonly schemaVersion: 1;
  readonly id: string;
  readonly domain: string;
  readonly startedAtMs: number;
  readonly subject: OperationSubject;
  /** The process that works on it; `isAlive` tells whether it still does. */
  readonly owner: OperationOwner;
  /** Oldest first; undone in reverse. */
  readonly undo: readonly UndoEntry[];
}

/**
 * What is remembered of what has ended, so that answers can say it: `ended-snapshots` by domain, `requests` by their keys,
 * and what waits for a better time: `unused-checkpoints` by domain. Nothing goes wrong without it. `runs` of jobs, by id and
 * job; `jobs`: which of their moments are handled, without which nothing was missed. `verifications` and `boot-tests` by
 * backup; `missed-changes` by domain, without which the next backup would miss them, too.
 */
export type NoteKind =
  | "ended-snapshots"
  | "requests"
  | "unused-checkpoints"
  | "runs"
  | "jobs"
  | "verifications"
  | "boot-tests"
  | "missed-changes";

/** Held from `lockDomain` until `release` or the end of the process, however that comes (a kernel lock). */
export interface DomainLock {
  release(): Promise<void>;
}

/**
 * The state directory: locks, the journal of unfinished operations, and notes of what has ended. Nothing else is state; backups
 * and images are.
 */
export interface StateStore {
  /** Fails with DOMAIN_BUSY naming the holder and what it does. `purpose` is shown to others that are refused. */
  lockDomain(domain: string, purpose: string): Promise<DomainLock>;
  /** Removes records that killed writers left half written; those of living ones stay. */
  sweep(): Promise<void>;
  /** Who holds the domain and what for, if anybody does. Reads only. */
  holder(domain: string): Promise<string | undefined>;
  /** What `lockDomain` and `save` would fail with for want of a directory. Creates nothing. */
  checkUsable(): Promise<void>;
  /** Journalled operations of a domain (of all, without one), oldest first. A torn record cannot occur. Reads only. */
  operations(domain?: string): Promise<readonly OperationRecord[]>;
  /** Durable (file and directory synced) when it resolves. Replaces the record of the same id. */
  save(record: OperationRecord): Promise<void>;
  /**
   * Replaces the lease of a block snapshot, durably; `operations` shows it from then on. Unlike `save` it needs no lock on the
   * domain: whoever works on the snapshot does not write leases.
   */
  saveLease(record: Pick<OperationRecord, "id" | "domain">, lease: Lease): Promise<void>;
  /** Names of the notes of a kind. */
  notes(kind: NoteKind): Promise<readonly string[]>;
  /** Undefined if there is none, or none that can be read. */
  readNote(kind: NoteKind, name: string): Promise<unknown>;
  /** A value that JSON can hold. Durable when it resolves; the old one or the new one is there at any time. */
  writeNote(kind: NoteKind, name: string, value: unknown): Promise<void>;
  /** Idempotent. */
  removeNote(kind: NoteKind, name: string): Promise<void>;
  /** This process, as the owner of a new record. */
  self(): OperationOwner;
  isAlive(owner: OperationOwner): boolean;
  /** Idempotent. */
  remove(record: Pick<OperationRecord, "id" | "domain">): Promise<void>;
}

/** Undoes what lives outside the domain's QEMU: files, directories, daemons. Idempotent. */
export interface HostCleaner {
  undo(entry: HostEntry): Promise<void>;
}
