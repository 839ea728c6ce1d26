import type { BitmapStep } from "../model/checkpoint.js";
import type {
  DomainState,
  ExportAddress,
  FileFingerprint,
  FreezeResult,
  PlannedExport,
  PlannedPush,
  SnapshotPlan,
} from "../model/snapshot-plan.js";
import type { WriteFigures } from "../model/guest-pace.js";
import type { QemuEntry, UndoEntry } from "../model/undo.js";

/** Makes entries durable before the caller acquires what they undo. Resolves when they are on disk. */
export interface UndoLog {
  register(...entries: UndoEntry[]): Promise<void>;
  /** Forgets entries that have been undone on the way (the guest continued, for example). */
  settle(...entries: UndoEntry[]): Promise<void>;
}

/**
 * The disks of one domain, whichever way they can be reached: through a running QEMU, or through the image files of an
 * inactive domain. One driver object serves one operation of one domain; it is not shared.
 *
 * Errors are FleeceErrors. DOMAIN_UNREACHABLE means that nothing is known any more of what the last call did; every
 * acquisition is in the undo log by then, so the caller unwinds later.
 */
export interface BlockDriver extends AsyncDisposable {
  readonly mode: "running" | "inactive";

  /** Reads only. Fails with DISK_IN_USE when the image of an inactive domain is held by another program. */
  inspect(signal?: AbortSignal): Promise<DomainState>;

  /**
   * Applies the steps of each disk in order. For a running domain all of them are one transaction; for an inactive one a
   * failure leaves the steps before it done. Not idempotent by itself: plan from a fresh `inspect`.
   */
  changeBitmaps(changes: ReadonlyMap<string, readonly BitmapStep[]>, signal?: AbortSignal): Promise<void>;

  /**
   * Freezes one moment of all planned disks and makes the content readable at the planned access nodes. The new
   * checkpoint's bitmaps start before that moment and the previous ones stop after it, so that a write in between is in
   * both. On an error the guest runs again as before; what else was acquired is in `undo` for the caller to unwind.
   */
  freeze(plan: SnapshotPlan, undo: UndoLog, signal?: AbortSignal): Promise<FreezeResult>;

  /** Offers frozen disks on a private socket. The changes are a merged copy that stands still. */
  startExports(
    plan: SnapshotPlan,
    exports: readonly PlannedExport[],
    undo: UndoLog,
    signal?: AbortSignal,
    /** Of the copies that staged exports need; left out: as fast as they can be made. */
    pace?: CopySpeed,
  ): Promise<readonly ExportAddress[]>;

  /**
   * Lets the running domain's QEMU copy a frozen disk to where its content is to stay, and then lets go of the disk: the
   * guest's writes to it cost nothing any more (see `onCopied`). For disks that must be staged; other
   * disks of the snapshot may be pushed at the same time. Fails with SNAPSHOT_BROKEN when content was lost, NO_SPACE or
   * QEMU_FAILED when it cannot be written. The copy has ended when it rejects, also by the signal; what hangs below it is waited
   * for 30 s at most then.
   */
  push(plan: SnapshotPlan, push: PlannedPush, undo: UndoLog, options?: PushOptions): Promise<void>;

  /** Fails with DISK_CHANGED or SNAPSHOT_BROKEN when what was read since `freeze` may not be the frozen moment. */
  checkIntact(
    plan: SnapshotPlan,
    fingerprints: readonly FileFingerprint[],
    signal?: AbortSignal,
  ): Promise<void>;

  /** Fails, with its last words, when a storage daemon that serves the frozen disks has ended by itself. */
  checkServing(plan: SnapshotPlan, signal?: AbortSignal): Promise<void>;

  /**
   * What the guest's writes have come to so far, by target; waiting for a frozen block to be preserved is part of it. Nothing is
   * known of disks that are left out: those of an inactive domain, and unplugged ones.
   */
  guestWrites(targets: readonly string[], signal?: AbortSignal): Promise<ReadonlyMap<string, WriteFigures>>;

  /** Idempotent; fine when the thing does not exist. */
  undo(entry: QemuEntry): Promise<void>;

  close(): Promise<void>;
}

/** How fast QEMU may copy. */
export interface CopySpeed {
  /** Asked before the copy and about once a second: bytes per second, `Infinity` without a limit. */
  speed(): number;
  /** How much has been copied of all that there is, told about once a second. Zeroes count as well. */
  copied(bytes: number): void;
}

export interface PushOptions {
  readonly pace?: CopySpeed | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called when the signal fires: ends whoever serves the target, so that writes which hang there fail. */
  readonly abandonTarget?: () => Promise<void>;
  /** Bytes of what has to be copied, zeroes included. */
  readonly onProgress?: (copiedBytes: number, totalBytes: number) => void;
  /** All is copied, and was intact until now: from here on `checkIntact` must not be asked for this disk. */
  readonly onCopied?: () => void;
}

/** Finds out how a domain can be reached now. Fails with DOMAIN_UNREACHABLE when in no way. */
export interface DriverFactory {
  open(domain: string, signal?: AbortSignal): Promise<BlockDriver>;
}
