import type { ServiceContext } from "../services/context.js";
import { createBlockSnapshot, deleteBlockSnapshot, renewBlockSnapshot } from "../services/block-snapshots.js";
import type { BlockSnapshot as ServiceSnapshot } from "../services/open-snapshots.js";
import { consistencyOf, quiesceFacts } from "../model/quiesce.js";
import { askWhetherBroken, getBlockSnapshot, listBlockSnapshots } from "../services/open-snapshots.js";
import { scratchUse } from "../services/scratch-watch.js";
import { blockExportMessage } from "./block-exports.js";
import { CONSISTENCIES } from "./consistency.js";
import { formatName } from "./domains.js";
import type { BlockSnapshot, BlockSnapshotDisk, ListBlockSnapshotsResponse } from "./messages.js";
import { timestampFromMs } from "./timestamp.js";

export interface CreateBlockSnapshotRequest {
  readonly domain: string;
  /** Left out: one is made up. */
  readonly name?: string | undefined;
  /** Targets; empty: all disks. */
  readonly disks: readonly string[];
  /** Set to create a checkpoint at the same moment; without a name it is called like the snapshot. */
  readonly checkpoint?: { readonly name?: string | undefined } | undefined;
  readonly leaseMs: number;
  /** Left out: as configured. */
  readonly quiesce?: boolean | undefined;
}

export interface BlockSnapshotRequest {
  readonly domain: string;
  readonly name: string;
}

export async function createBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, disks, checkpoint, leaseMs, quiesce }: CreateBlockSnapshotRequest,
  signal?: AbortSignal,
): Promise<BlockSnapshot> {
  const created = await createBlockSnapshot(context, {
    domain,
    leaseMs,
    ...(name === undefined ? {} : { name }),
    ...(disks.length === 0 ? {} : { disks }),
    ...(checkpoint === undefined
      ? {}
      : { checkpoint: checkpoint.name === undefined ? {} : { name: checkpoint.name } }),
    ...(quiesce === undefined ? {} : { quiesce }),
    ...(signal === undefined ? {} : { signal }),
  });
  return withUse(context, created);
}

export async function listBlockSnapshotsHandler(
  context: ServiceContext,
  { domain }: { readonly domain: string },
): Promise<ListBlockSnapshotsResponse> {
  const snapshots = await askWhetherBroken(context, domain, await listBlockSnapshots(context, domain));
  return { snapshots: await Promise.all(snapshots.map((snapshot) => withUse(context, snapshot))) };
}

export async function getBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name }: BlockSnapshotRequest,
): Promise<BlockSnapshot> {
  const snapshot = await getBlockSnapshot(context, domain, name);
  const [asked = snapshot] = await askWhetherBroken(context, domain, [snapshot]);
  return withUse(context, asked);
}

export async function renewBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, leaseMs }: BlockSnapshotRequest & { readonly leaseMs?: number | undefined },
): Promise<BlockSnapshot> {
  return withUse(context, await renewBlockSnapshot(context, domain, name, leaseMs));
}

/** Answers with the snapshot as it was, but for its scratch space, which is free again. */
export async function deleteBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, failed }: BlockSnapshotRequest & { readonly failed: boolean },
): Promise<BlockSnapshot> {
  const outcome = failed ? "failure" : "success";
  return blockSnapshotMessage(await deleteBlockSnapshot(context, domain, name, outcome), 0);
}

async function withUse(context: ServiceContext, snapshot: ServiceSnapshot): Promise<BlockSnapshot> {
  return blockSnapshotMessage(snapshot, (await scratchUse(context, snapshot.plan)).usedBytes);
}

export function blockSnapshotMessage(snapshot: ServiceSnapshot, scratchUsedBytes: number): BlockSnapshot {
  const { domain, name, timeMs, heldMs, quiesce, mode, plan, leaseMs, leaseUntilMs, exports, broken } =
    snapshot;
  return {
    domain,
    name,
    time: timestampFromMs(timeMs),
    consistency: CONSISTENCIES[consistencyOf(mode, quiesce)],
    heldMs: heldMs ?? 0,
    ...quiesceFacts(quiesce),
    checkpoint: plan.checkpoint?.name,
    scratchUsedBytes,
    scratchLimitBytes: mode === "inactive" ? undefined : plan.scratchLimitBytes,
    leaseMs,
    leaseEndTime: timestampFromMs(leaseUntilMs),
    disks: plan.disks.map(({ target, format, sizeBytes, scratchPath }): BlockSnapshotDisk => ({
      target,
      format: formatName(format),
      sizeBytes,
      scratchFile: mode === "inactive" ? undefined : scratchPath,
    })),
    exports: exports.map((open) =>
      blockExportMessage({ ...open, domain, snapshot: name, ...(broken === undefined ? {} : { broken }) }),
    ),
    broken,
  };
}
