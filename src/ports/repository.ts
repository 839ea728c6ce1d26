import type {
  BackupEntry,
  BackupLevel,
  Consistency,
  DiskMode,
  IntactEntry,
  ManifestFile,
} from "../model/backup.js";
import type { BackupWaits } from "../model/backup-limits.js";
import type { BlockRun } from "../model/extents.js";
import type { DiskFormat, ExportAddress } from "../model/snapshot-plan.js";
import type { UndoLog } from "./block-driver.js";

/** One repository: a directory of domains, each with its backups. What it lists as a backup is complete. */
export interface BackupRepository {
  readonly name: string;

  /** Fails with PATH_NOT_FOUND or PERMISSION_DENIED when backups cannot be written here; creates nothing. */
  checkWritable(): Promise<void>;

  /**
   * Fails with KEY_UNAVAILABLE, or KEY_WRONG if a new backup on `parent` would need another key. False if new backups are not
   * encrypted.
   */
  checkKey(parent?: IntactEntry, signal?: AbortSignal): Promise<boolean>;

  /** This much of its file system must stay free, in bytes. */
  readonly reserveBytes: number;

  /** For new backups: what is free beyond the reserve, in bytes. */
  freeBytes(): Promise<number>;

  /** All backups, also damaged ones, oldest first within a domain. Unfinished ones are not listed. */
  list(domain?: string): Promise<readonly BackupEntry[]>;

  /** True if the backup is there, whatever its state: its data was safe when it was published. */
  has(domain: string, id: string): Promise<boolean>;

  /**
   * Keeps other writers of this domain's backups out, in any process that uses the same directory, and removes what
   * killed ones left unfinished. Fails with REPOSITORY_BUSY.
   */
  lock(domain: string): Promise<RepositoryLock>;

  /**
   * Starts a backup under a temporary name. The caller holds the lock. Fails as `checkKey` does, and with DAMAGED if the parent's images, or the
   * digests to compare with, are not what was stored.
   */
  begin(request: DraftRequest, undo: UndoLog, signal?: AbortSignal): Promise<BackupDraft>;

  /** Serves the disks of a backup read-only on a private socket until closed. Fails with DAMAGED if files are missing. */
  open(entry: IntactEntry, options?: OpenOptions): Promise<OpenBackup>;

  /**
   * Removes one backup. The caller holds the lock and has made sure that no other backup is based on it. Fails with
   * REPOSITORY_BUSY while it is being read.
   */
  remove(entry: BackupEntry): Promise<void>;

  /**
   * Merges a backup into the only one that is based on it. The caller holds the lock. As soon as it has begun, the backup is
   * not listed any more; all others can be restored at any instant, also after a kill or an error in the midst. What those
   * leave is finished by the next `finishMerges`. Fails, before anything is changed, with BACKUP_HAS_CHILDREN if it is not
   * one that is based on it, REPOSITORY_BUSY while either is being read, DAMAGED if their files are not what was stored.
   */
  merge(entry: IntactEntry, options?: MergeOptions): Promise<Merged>;

  /**
   * Finishes all merges of a domain that were interrupted. The caller holds the lock. After an error of one the others
   * are finished all the same.
   */
  finishMerges(domain: string, options?: MergeOptions): Promise<void>;

  /** Says whether a backup must stay; lists show it from then on. The caller holds the lock. Idempotent. */
  protect(entry: BackupEntry, isProtected: boolean): Promise<void>;
}

export interface MergeOptions {
  readonly signal?: AbortSignal | undefined;
  /** How much of what the younger backup stores has been dealt with. */
  readonly onProgress?: ((progress: MergeProgress) => void) | undefined;
}

export interface MergeProgress {
  /** The younger one. */
  readonly id: string;
  readonly target: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface Merged {
  /** The younger one as it is now. */
  readonly entry: IntactEntry;
  /** Written as data. */
  readonly writtenBytes: number;
}

export interface RepositoryLock {
  release(): Promise<void>;
}

export interface OpenOptions {
  /** Which disks; all if left out. */
  readonly targets?: readonly string[];
  /** A socket path for readers, instead of one that is made up. Must not exist. */
  readonly socketPath?: string;
  readonly signal?: AbortSignal;
}

export interface DraftRequest {
  readonly id: string;
  readonly domain: string;
  readonly disks: readonly DraftDisk[];
  /** The backup to base the images on; left out for a full. */
  readonly parent?: IntactEntry;
  /** Fails, before anything is made, with PATH_NOT_FOUND, PERMISSION_DENIED or UNSUPPORTED if they cannot be kept. */
  readonly machineFiles?: readonly MachineFile[];
  /** The repository that has the original of a copy. */
  readonly copiedFrom?: string;
}

/** What belongs to a machine beside its disks: its configuration, UEFI variables, the state of its TPM. */
export interface MachineFile {
  readonly name: string;
  /** Of a file, or of a directory whose files are meant. Absolute. */
  readonly path: string;
}

/**
 * The sink of a disk in mode `compare` gets all content and stores the blocks that differ from the parent's, by digest.
 * The parent must hold a disk in mode `changes` or `compare` with the same size.
 */
export interface DraftDisk {
  readonly target: string;
  readonly sourceFormat: DiskFormat;
  readonly sourceFile: string | undefined;
  readonly sizeBytes: number;
  readonly mode: DiskMode;
  /** What differs from the parent is known: also in mode `compare` the sink gets that alone. */
  readonly isKnown?: boolean;
  /** Why this mode, for the manifest. */
  readonly reason: string;
  /** QEMU itself writes the content, to `BackupDraft.image`; the sink gets it when it is there. Not in mode `compare`. */
  readonly pushed?: boolean;
}

export interface BackupDraft {
  disk(target: string): DiskSink;
  /** Copies the machine files of the request as they are now. */
  keepMachineFiles(signal?: AbortSignal): Promise<void>;
  /** Copies those of another backup in place of them. Fails with DAMAGED if they are not what was stored. */
  takeMachineFiles(from: OpenBackup, signal?: AbortSignal): Promise<void>;
  /** Where a pushed disk can be written, and then be read for its sink; what was written of one in mode `changes` is changed. */
  image(target: string): ExportAddress;
  /**
   * What each block of a disk in mode `changes` holds that has not changed since the parent. To be closed before the draft is.
   * Fails with DAMAGED if the parent's digests are not what was stored.
   */
  parentExpectations(target: string): Promise<BlockExpectations>;
  /** The same error, or a better one if what holds the images has ended and so is the cause. */
  explain(error: unknown): Promise<unknown>;
  /**
   * Makes everything durable, writes the manifest and gives the backup its final name: the moment at which it exists.
   * All disks must be finished. After an error nothing is listed.
   */
  publish(summary: DraftSummary): Promise<IntactEntry>;
  /** Ends what holds the images, also if it hangs: nothing is written any more. Idempotent. `discard` is still to be called. */
  abandon(): Promise<void>;
  /** Removes what was written. Idempotent; does nothing after `publish`. */
  discard(): Promise<void>;
}

export interface DraftSummary {
  readonly level: BackupLevel;
  readonly reason: string;
  readonly timeMs: number;
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
  readonly consistency: Consistency;
  readonly heldMs: number;
  readonly scratchPeakBytes?: number | undefined;
  /** If it waited. */
  readonly waits?: BackupWaits | undefined;
  readonly frozenMs?: number | undefined;
  readonly quiesceFailure?: string | undefined;
  readonly checkpoint: string;
  readonly request?: string;
}

/**
 * Takes the content of one disk. Each run is announced with `expect` in ascending order before its content comes;
 * contents may then come in any order and side by side. Of a pushed disk the content is stored already: it is only digested.
 */
export interface DiskSink {
  expect(run: BlockRun): void;
  /** Stores data for a whole expected run or a block-aligned part of it. Blocks that are all zero are not stored as data. */
  write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void>;
  /** Makes an expected zero run read as zeroes. */
  writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void>;
  /** No more content. `readBytes` and `durationMs` go into the manifest. */
  finish(result: { readonly readBytes: number; readonly durationMs: number }): Promise<SinkResult>;
  readonly storedBytes: number;
}

export interface SinkResult {
  readonly storedBytes: number;
  readonly zeroBytes: number;
}

/** Makes one file of another, piece by piece. */
export interface FileCipher {
  /** The result is good until `bytes` change. */
  update(bytes: Uint8Array): Uint8Array;
  /** What comes last; undefined if all of it is not what was encrypted with this key. */
  end(): Uint8Array | undefined;
}

export interface OpenBackup extends AsyncDisposable {
  /** The backup with all that it is based on, as their files are until it is closed; the full first. */
  readonly chain: readonly IntactEntry[];
  readonly addresses: readonly ExportAddress[];
  /** What each block of a disk must hold, from the digests of the whole chain. Fails with DAMAGED if those are damaged. */
  expectations(target: string): Promise<BlockExpectations>;
  /**
   * Compares the machine files with their digests, and copies them to a directory on the way, if told where to; that is made.
   * Resolves with the copies as a manifest names them. Fails with DAMAGED.
   */
  checkMachineFiles(options?: {
    readonly copyTo?: string | undefined;
    /** What makes the copy of each file; undefined: it is the content itself. */
    readonly encrypt?: ((path: string) => FileCipher) | undefined;
    readonly signal?: AbortSignal | undefined;
  }): Promise<readonly ManifestFile[]>;
  /** Resolves when the serving process ends by itself, with the reason. */
  readonly ended: Promise<string>;
  close(): Promise<void>;
}

export interface BlockExpectations extends AsyncDisposable {
  /**
   * Compares the content of whole blocks at `offset` (a multiple of the block size; the disk's end may cut the last) with
   * the digests. Returns the offset of the first block that differs, or undefined.
   */
  firstMismatch(offset: number, data: Uint8Array): Promise<number | undefined>;
  /** The same for a range that reads as zeroes, without looking at each byte. */
  firstNonZero(offset: number, length: number): Promise<number | undefined>;
  /**
   * What was stored of the disk after an earlier backup of the chain, or all of it, ascending. What is in none of the runs
   * is as it was in that backup, or zero.
   */
  runs(since: string | undefined): Iterable<BlockRun>;
}
