import { isName } from "./names.js";

/** Granularity of every bitmap that we create, in bytes: QEMU's default for images of this cluster size. */
export const CHECKPOINT_GRANULARITY = 65536;

/**
 * What a checkpoint is, wherever it is seen. `order` is unique and rising within a domain; all disks of one checkpoint
 * share it. `timeMs` is the moment of the freeze in Unix milliseconds.
 */
export interface CheckpointId {
  readonly name: string;
  readonly order: number;
  readonly timeMs: number;
}

/** A dirty bitmap on one disk that is one of ours, as QEMU or the image reports it. */
export interface CheckpointBitmap extends CheckpointId {
  /** The bitmap's own name, which carries the three fields above. */
  readonly bitmap: string;
  readonly recording: boolean;
  /** Left so by a crash of QEMU: it can only be removed. */
  readonly inconsistent: boolean;
  readonly busy: boolean;
  /** False on raw disks: the bitmap ends with the QEMU process. */
  readonly persistent: boolean;
  readonly granularityBytes: number;
  /** Bytes marked changed, where the reporter knows it (a running QEMU does, an image header does not). */
  readonly dirtyBytes?: number;
  /** Set when an image below the present one has it too, or it alone: there it cannot be changed. See layered-bitmaps.ts. */
  readonly place?: "both" | "below";
  /** Deleted while an image below has it: nobody may ask about it, but older ones need what it knows. */
  readonly deleted?: true;
  /** Why it cannot be used although it is consistent: a gap between the images of the disk. */
  readonly lost?: string;
}

/**
 * `fleece:1:<order>:<time>:<name>`: owner mark, version of this form, order and time, each so that nothing but the
 * bitmap list of an image is needed to know its checkpoints. qcow2 allows 1023 bytes.
 */
const BITMAP_NAME = /^fleece:1:(\d{1,12}):(\d{1,15}):(.+)$/;

export function bitmapName(checkpoint: CheckpointId): string {
  return `fleece:1:${checkpoint.order}:${checkpoint.timeMs}:${checkpoint.name}`;
}

/** The checkpoint that a bitmap name carries, or undefined for a bitmap of somebody else. */
export function parseBitmapName(bitmap: string): CheckpointId | undefined {
  const match = BITMAP_NAME.exec(bitmap);
  const [, order, time, name] = match ?? [];
  if (order === undefined || time === undefined || name === undefined || !isName("checkpoint", name))
    return undefined;
  return { name, order: Number(order), timeMs: Number(time) };
}

/** What a reporter says of a bitmap, before it is known whose it is. */
export type ReportedBitmap = Omit<CheckpointBitmap, keyof CheckpointId | "place" | "deleted" | "lost">;

/** An empty bitmap that says of another one, in an image that cannot be changed, that its checkpoint is deleted. */
const DELETION_MARK = "fleece-deleted:";

/** Tells our bitmaps of one image, oldest first, from the names of those that others made. */
export function sortOutBitmaps(reported: readonly ReportedBitmap[]): {
  readonly checkpoints: readonly CheckpointBitmap[];
  /** Names of bitmaps in images below whose checkpoints are deleted. */
  readonly deleted: readonly string[];
  readonly foreignBitmaps: readonly string[];
} {
  const checkpoints: CheckpointBitmap[] = [];
  const deleted: string[] = [];
  const foreignBitmaps: string[] = [];
  for (const bitmap of reported) {
    const name = bitmap.bitmap;
    const checkpoint = parseBitmapName(name);
    if (checkpoint !== undefined) checkpoints.push({ ...checkpoint, ...bitmap });
    else if (name.startsWith(DELETION_MARK)) deleted.push(name.slice(DELETION_MARK.length));
    else foreignBitmaps.push(name);
  }
  return { checkpoints: checkpoints.toSorted(byOrder), deleted, foreignBitmaps };
}

export function byOrder(a: CheckpointId, b: CheckpointId): number {
  return a.order - b.order;
}

/** The order for the next checkpoint of a domain, given the bitmaps of all its disks. */
export function nextOrder(disks: Iterable<readonly CheckpointId[]>): number {
  let highest = 0;
  for (const bitmaps of disks) for (const { order } of bitmaps) highest = Math.max(highest, order);
  return highest + 1;
}

export type ChangesSince =
  | { readonly valid: true; readonly bitmaps: readonly string[] }
  | { readonly valid: false; readonly reason: string };

/**
 * The bitmaps whose union says what changed on a disk since checkpoint `name`: its own and all newer ones. Valid only if
 * each is consistent and the newest still records; otherwise something may have been written that none of them knows.
 */
export function changesSince(bitmaps: readonly CheckpointBitmap[], name: string): ChangesSince {
  const sorted = bitmaps.toSorted(byOrder);
  const start = indexOf(sorted, name);
  if (start < 0) return { valid: false, reason: `checkpoint ${name} does not exist on the disk` };
  const union = sorted.slice(start);
  const broken = union.find((bitmap) => bitmap.inconsistent);
  if (broken !== undefined) {
    return {
      valid: false,
      reason: `checkpoint ${broken.name} is inconsistent: QEMU ended without saving it`,
    };
  }
  const lost = union.findLast((bitmap) => bitmap.lost !== undefined)?.lost;
  if (lost !== undefined) return { valid: false, reason: lost };
  if (union.at(-1)?.recording !== true) {
    return { valid: false, reason: `checkpoint ${union.at(-1)?.name ?? name} has stopped recording` };
  }
  return { valid: true, bitmaps: union.map(({ bitmap }) => bitmap) };
}

/**
 * Bitmaps that can answer nothing any more: an inconsistent or lost one and all before it, whose changes would have to go
 * through it; and all of them when the newest has stopped recording, for what was written since is known to none. They must go
 * before a new checkpoint comes: behind one that records, they would look sound.
 */
export function deadBitmaps(bitmaps: readonly CheckpointBitmap[]): readonly CheckpointBitmap[] {
  const sorted = bitmaps.toSorted(byOrder);
  if (sorted.at(-1)?.recording === false) return sorted;
  return sorted.slice(0, sorted.findLastIndex(isUnusable) + 1);
}

export function isUnusable({ inconsistent, lost }: CheckpointBitmap): boolean {
  return inconsistent || lost !== undefined;
}

/** A name may be used again after its deletion. */
function indexOf(sorted: readonly CheckpointBitmap[], name: string): number {
  return sorted.findIndex((bitmap) => bitmap.name === name && bitmap.deleted !== true);
}

/** One step on the bitmaps of a disk, in the terms that both QMP transactions and `qemu-img bitmap` have. */
export type BitmapStep =
  | {
      readonly action: "add";
      readonly bitmap: string;
      readonly persistent: boolean;
      readonly granularityBytes: number;
    }
  | { readonly action: "enable" | "disable" | "remove"; readonly bitmap: string }
  | { readonly action: "merge"; readonly source: string; readonly bitmap: string };

export type DeletionPlan =
  | { readonly possible: true; readonly steps: readonly BitmapStep[] }
  | { readonly possible: false; readonly why: "busy" | "inconsistent"; readonly bitmap: string };

/**
 * Deletes a checkpoint from one disk without losing a change: its bitmap is merged into the predecessor, which takes
 * over the recording first if there is any to take over, so that nothing written meanwhile is missed. The oldest has
 * nobody that would ask for its changes and is just removed. A disk without the checkpoint needs no step.
 *
 * One that an image below the present one has too stays with all it knows, since that image cannot be changed. A mark in the
 * present image says that it is deleted.
 */
export function planDeletion(bitmaps: readonly CheckpointBitmap[], name: string): DeletionPlan {
  const sorted = bitmaps.toSorted(byOrder);
  const index = indexOf(sorted, name);
  const doomed = sorted[index];
  if (doomed === undefined) return { possible: true, steps: [] };
  if (doomed.busy) return { possible: false, why: "busy", bitmap: doomed.bitmap };
  if (doomed.place !== undefined) return { possible: true, steps: markDeleted(doomed) };
  const remove: BitmapStep = { action: "remove", bitmap: doomed.bitmap };
  const parent = sorted[index - 1];
  if (parent === undefined || (isUnusable(parent) && isUnusable(doomed)))
    return { possible: true, steps: [remove] };
  if (isUnusable(doomed)) return { possible: false, why: "inconsistent", bitmap: doomed.bitmap };
  if (isUnusable(parent)) return { possible: true, steps: [remove] };
  if (parent.busy) return { possible: false, why: "busy", bitmap: parent.bitmap };
  const steps: BitmapStep[] = [];
  if (doomed.recording && !parent.recording) steps.push({ action: "enable", bitmap: parent.bitmap });
  steps.push({ action: "merge", source: doomed.bitmap, bitmap: parent.bitmap }, remove);
  return { possible: true, steps };
}

/** It holds nothing, so it is as coarse, and thereby as small, as one can be. */
const MARK_GRANULARITY = 2 ** 31;

function markDeleted({ bitmap }: CheckpointBitmap): readonly BitmapStep[] {
  const mark = `${DELETION_MARK}${bitmap}`;
  return [
    { action: "add", bitmap: mark, persistent: true, granularityBytes: MARK_GRANULARITY },
    { action: "disable", bitmap: mark },
  ];
}
