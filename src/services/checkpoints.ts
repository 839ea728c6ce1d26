import type { BitmapStep, CheckpointBitmap } from "../model/checkpoint.js";
import { deadBitmaps, isUnusable, planDeletion } from "../model/checkpoint.js";
import { checkName } from "../model/names.js";
import type { DomainState } from "../model/snapshot-plan.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { FleeceError } from "../shared/errors.js";

/** A checkpoint as people see it: one moment, over the disks that have a bitmap of it. */
export interface Checkpoint {
  readonly name: string;
  readonly order: number;
  readonly timeMs: number;
  /** The one before it on the same disks. */
  readonly parent?: string;
  readonly disks: readonly (CheckpointBitmap & { readonly target: string })[];
  /** All its bitmaps can still be used. */
  readonly valid: boolean;
}

/** Oldest first, gathered from the bitmaps of all disks. */
export function gatherCheckpoints(state: DomainState): readonly Checkpoint[] {
  const byName = new Map<string, (CheckpointBitmap & { target: string })[]>();
  for (const { target, checkpoints } of state.disks) {
    for (const bitmap of checkpoints.filter(({ deleted }) => deleted !== true)) {
      byName.set(bitmap.name, [...(byName.get(bitmap.name) ?? []), { ...bitmap, target }]);
    }
  }
  const gathered = [...byName].map(([name, disks]) => {
    const order = Math.min(...disks.map((disk) => disk.order));
    const timeMs = Math.min(...disks.map((disk) => disk.timeMs));
    return { name, order, timeMs, disks, valid: !disks.some(isUnusable) };
  });
  const sorted = gathered.toSorted((a, b) => a.order - b.order);
  return sorted.map((checkpoint, index) => {
    const targets = new Set(checkpoint.disks.map(({ target }) => target));
    const parent = sorted
      .slice(0, index)
      .findLast(({ disks }) => disks.some(({ target }) => targets.has(target)));
    return parent === undefined ? checkpoint : { ...checkpoint, parent: parent.name };
  });
}

/** Fails with CHECKPOINT_NOT_FOUND. */
export function findCheckpoint(state: DomainState, name: string): Checkpoint {
  checkName("checkpoint", name);
  const checkpoints = gatherCheckpoints(state);
  const found = checkpoints.find((checkpoint) => checkpoint.name === name);
  if (found !== undefined) return found;
  const known = checkpoints.map((checkpoint) => checkpoint.name).join(", ") || "none";
  throw new FleeceError(
    "CHECKPOINT_NOT_FOUND",
    `Domain ${state.domain} has no checkpoint ${name}; it has ${known}`,
    { facts: { domain: state.domain, checkpoint: name } },
  );
}

/**
 * Merges a checkpoint into its predecessor on every disk (of `targets`, or all). Idempotent: disks without it are left
 * alone. Fails with CHECKPOINT_BUSY or CHECKPOINT_DAMAGED before anything is changed.
 */
export async function deleteCheckpoint(
  driver: BlockDriver,
  name: string,
  targets?: readonly string[],
  signal?: AbortSignal,
): Promise<void> {
  const state = await driver.inspect(signal);
  const changes = new Map<string, readonly BitmapStep[]>();
  for (const disk of state.disks) {
    if (targets !== undefined && !targets.includes(disk.target)) continue;
    const plan = planDeletion(disk.checkpoints, name);
    if (!plan.possible) throw refusal(disk.target, name, plan.why);
    if (plan.steps.length > 0) changes.set(disk.target, plan.steps);
  }
  if (changes.size > 0) await driver.changeBitmaps(changes, signal);
}

function refusal(target: string, name: string, why: "busy" | "inconsistent"): FleeceError {
  return why === "busy"
    ? new FleeceError(
        "CHECKPOINT_BUSY",
        `Checkpoint ${name} of disk ${target} is in use by an export or a job`,
      )
    : new FleeceError(
        "CHECKPOINT_DAMAGED",
        `Checkpoint ${name} of disk ${target} is inconsistent, so deleting it would lose changes for the checkpoint before it; delete that one first`,
      );
}

/**
 * Before a new checkpoint: see `deadBitmaps`. One that is in use stays, and with it the reason to compare. Those in frozen
 * images stay as well; they end because the present image does not go on with them.
 */
export async function removeDeadBitmaps(driver: BlockDriver, state: DomainState): Promise<void> {
  const changes = new Map<string, readonly BitmapStep[]>();
  for (const { target, checkpoints } of state.disks) {
    const dead = deadBitmaps(checkpoints).filter(({ busy, place }) => !busy && place !== "below");
    if (dead.length > 0)
      changes.set(
        target,
        dead.map(({ bitmap }) => ({ action: "remove", bitmap })),
      );
  }
  if (changes.size > 0) await driver.changeBitmaps(changes);
}
