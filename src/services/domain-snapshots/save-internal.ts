import type { DomainSnapshot, DomainSnapshots, SnapshotMachine } from "../../model/domain-snapshot.js";
import { checkMemoryRoom } from "../../model/domain-snapshot-plan.js";
import type { InternalDisk, InternalSnapshotter } from "../../ports/internal-snapshots.js";
import type { ServiceContext } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { beginInternal } from "./internal-operation.js";
import { settleInternal } from "./settle-internal.js";

export interface NewInternal {
  readonly name: string;
  readonly description: string;
  readonly timeMs: number;
  /** Of the memory; undefined if only the disks are kept. */
  readonly machine: SnapshotMachine | undefined;
  readonly keptByRevert?: boolean;
  readonly request: string | undefined;
}

/** Within the domain's lock. */
export interface InternalScene {
  readonly session: DomainSession;
  readonly images: InternalSnapshotter;
  readonly all: DomainSnapshots;
  /** As they are now. */
  readonly disks: readonly InternalDisk[];
}

/**
 * Takes a snapshot of all disks, and writes the document that has it as the current one. If it fails, it is put in order: there is
 * no such snapshot.
 */
export async function saveInternal(
  context: ServiceContext,
  { session, images, all, disks }: InternalScene,
  wanted: NewInternal & {
    /** Since when the guest's pause counts; left out, there is none to tell. */
    readonly pausedSinceMs?: number | undefined;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<{ readonly snapshot: DomainSnapshot; readonly now: DomainSnapshots }> {
  const { name, machine, pausedSinceMs, signal } = wanted;
  if (machine !== undefined) checkMemoryRoom(machine, disks[0]);
  const { operation } = await beginInternal(context, all.domain, name, disks);
  try {
    const { id } = operation.record;
    await images.save(name, { id, undo: operation, memory: machine !== undefined, signal });
    const { state } = images;
    const saved = await images.disks();
    const pausedMs = pausedSinceMs === undefined ? 0 : context.clock.now() - pausedSinceMs;
    const snapshot = snapshotOf(all, { ...wanted, disks: saved, state, pausedMs });
    const now = { ...all, current: name, snapshots: [...all.snapshots, snapshot] };
    await context.domainSnapshots.write(now);
    await operation.end();
    return { snapshot, now };
  } catch (error) {
    await images[Symbol.asyncDispose]();
    await settleInternal(context, session, operation);
    throw error;
  }
}

function snapshotOf(
  all: DomainSnapshots,
  made: NewInternal & {
    readonly state: DomainSnapshot["state"];
    readonly pausedMs: number;
    readonly disks: readonly InternalDisk[];
  },
): DomainSnapshot {
  const { name, description, timeMs, state, pausedMs } = made;
  const holder = made.disks.find((disk) => memoryIn(disk, name) > 0);
  return {
    ...{ name, description, timeMs, state, pausedMs, kind: "internal", live: false, clones: [] },
    ...(all.current === undefined ? {} : { parent: all.current }),
    ...(holder === undefined
      ? { consistency: state === "inactive" ? "clean" : "crash" }
      : { memory: { kind: "internal", target: holder.target, sizeBytes: memoryIn(holder, name) } }),
    ...(made.machine === undefined ? {} : { machine: made.machine }),
    disks: made.disks.map(({ target, file, format, sizeBytes, bitmaps }) => ({
      ...{ target, file, format, sizeBytes, bitmaps },
    })),
    ...(made.keptByRevert === true ? { keptByRevert: true } : {}),
    ...(made.request === undefined ? {} : { request: made.request }),
  };
}

function memoryIn({ snapshots }: InternalDisk, name: string): number {
  return snapshots.find((snapshot) => snapshot.name === name)?.memoryBytes ?? 0;
}
