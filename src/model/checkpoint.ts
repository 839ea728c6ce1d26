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
export type ReportedBitmap = Omit<CheckpointBitmap, keyof CheckpointId>;

/** Tells our bitmaps, oldest first, from the names of those that others made. */
export function sortOutBitmaps(reported: readonly ReportedBitmap[]): {
  readonly checkpoints: readonly CheckpointBitmap[];
  readonly foreignBitmaps: readonly string[];
} {
  const checkpoints: CheckpointBitmap[] = [];
  const foreignBitmaps: string[] = [];
  for (const bitmap of reported) {
    const checkpoint = parseBitmapName(bitmap.bitmap);
    if (checkpoint === undefined) foreignBitmaps.push(bitmap.bitmap);
    else checkpoints.push({ ...checkpoint, ...bitmap });
  }
  return { checkpoints: checkpoints.toSorted(byOrder), foreignBitmaps };
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
  const start = sorted.findIndex((bitmap) => bitmap.name === name);
  if (start < 0) return { valid: false, reason: `checkpoint ${name} does not exist on the disk` };
  const union = sorted.slice(start);
  const broken = union.find((bitmap) => bitmap.inconsistent);
  if (broken !== undefined) {
    return {
      valid: false,
      reason: `checkpoint ${broken.name} is inconsistent: QEMU ended without saving it`,
    };
  }
  if (union.at(-1)?.recording !== true) {
    return { valid: false, reason: `checkpoint ${union.at(-1)?.name ?? name} has stopped recording` };
  }
  return { valid: true, bitmaps: union.map(({ bitmap }) => bitmap) };
}

/**
 * Bitmaps that can answer nothing any more: an inconsistent one and all before it, whose changes would have to go through
 * it; and all of them when the newest has stopped recording, for what was written since is known to none. They must go
 * before a new checkpoint comes: behind one that records, they would look sound.
 */
export function deadBitmaps(bitmaps: readonly CheckpointBitmap[]): readonly CheckpointBitmap[] {
  const sorted = bitmaps.toSorted(byOrder);
  if (sorted.at(-1)?.recording === false) return sorted;
  return sorted.slice(0, sorted.findLastIndex(({ inconsistent }) => inconsistent) + 1);
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
 */
export function planDeletion(bitmaps: readonly CheckpointBitmap[], name: string): DeletionPlan {
  const sorted = bitmaps.toSorted(byOrder);
  const index = sorted.findIndex((bitmap) => bitmap.name === name);
  const doomed = sorted[index];
  if (doomed === undefined) return { possible: true, steps: [] };
  if (doomed.busy) return { possible: false, why: "busy", bitmap: doomed.bitmap };
  const remove: BitmapStep = { action: "remove", bitmap: doomed.bitmap };
  const parent = sorted[index - 1];
  if (parent === undefined || (parent.inconsistent && doomed.inconsistent))
    return { possible: true, steps: [remove] };
  if (doomed.inconsistent) return { possible: false, why: "inconsistent", bitmap: doomed.bitmap };
  if (parent.inconsistent) return { possible: true, steps: [remove] };
  if (parent.busy) return { possible: false, why: "busy", bitmap: parent.bitmap };
  const steps: BitmapStep[] = [];
  if (doomed.recording && !parent.recording) steps.push({ action: "enable", bitmap: parent.bitmap });
  steps.push({ action: "merge", source: doomed.bitmap, bitmap: parent.bitmap }, remove);
  return { possible: true, steps };
}
