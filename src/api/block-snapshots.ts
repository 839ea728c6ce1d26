import type { ServiceContext } from "../services/context.js";
import { createBlockSnapshot, deleteBlockSnapshot, renewBlockSnapshot } from "../services/block-snapshots.js";
import type { BlockSnapshot as ServiceSnapshot } from "../services/open-snapshots.js";
import { consistencyOf, quiesceFacts } from "../model/quiesce.js";
import { getBlockSnapshot, listBlockSnapshots } from "../services/open-snapshots.js";
import { scratchUse } from "../services/scratch-watch.js";
import { blockExportMessage } from "./block-exports.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import { CONSISTENCIES } from "./consistency.js";
import { formatName } from "./domains.js";
import type { BlockSnapshot, BlockSnapshotDisk, ListBlockSnapshotsResponse } from "./messages.js";
import { page } from "./page.js";
import { timestampFromMs } from "./timestamp.js";

/** As block_snapshot.proto says. */
const DEFAULT_LEASE_MS = 30 * 60_000;

export async function createBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, disks, checkpoint, leaseMs, quiesce }: CallRequest<"BlockSnapshots.Create">,
  { signal, requestKey }: CallOptions,
): Promise<BlockSnapshot> {
  const created = await createBlockSnapshot(context, {
    domain,
    leaseMs: leaseMs ?? DEFAULT_LEASE_MS,
    ...(name === undefined ? {} : { name }),
    ...(disks.length === 0 ? {} : { disks }),
    ...(checkpoint === undefined || checkpoint === null
      ? {}
      : { checkpoint: checkpoint.name === undefined ? {} : { name: checkpoint.name } }),
    ...(quiesce === undefined ? {} : { quiesce }),
    ...(requestKey === undefined ? {} : { request: requestKey }),
    ...(signal === undefined ? {} : { signal }),
  });
  return withUse(context, created);
}

export async function listBlockSnapshotsHandler(
  context: ServiceContext,
  { domain, ...paging }: CallRequest<"BlockSnapshots.List">,
): Promise<ListBlockSnapshotsResponse> {
  const open = await listBlockSnapshots(context, domain);
  const scope = ["snapshots", domain];
  const { items, nextPageToken } = page(open, paging, scope, ({ timeMs, name }) => [timeMs, name]);
  const snapshots = await Promise.all(items.map((snapshot) => withUse(context, snapshot)));
  return { snapshots, nextPageToken };
}

export async function getBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"BlockSnapshots.Get">,
): Promise<BlockSnapshot> {
  return withUse(context, await getBlockSnapshot(context, domain, name));
}

export async function renewBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, leaseMs }: CallRequest<"BlockSnapshots.Renew">,
): Promise<BlockSnapshot> {
  return withUse(context, await renewBlockSnapshot(context, domain, name, leaseMs));
}

/** Answers with the snapshot as it was, but for its scratch space, which is free again. */
export async function deleteBlockSnapshotHandler(
  context: ServiceContext,
  { domain, name, failed }: CallRequest<"BlockSnapshots.Delete">,
  { requestKey }: CallOptions,
): Promise<BlockSnapshot> {
  const outcome = failed ? "failure" : "success";
  return blockSnapshotMessage(await deleteBlockSnapshot(context, domain, name, outcome, requestKey), 0);
}

async function withUse(context: ServiceContext, snapshot: ServiceSnapshot): Promise<BlockSnapshot> {
  return blockSnapshotMessage(snapshot, (await scratchUse(context, snapshot.plan)).usedBytes);
}

export function blockSnapshotMessage(snapshot: ServiceSnapshot, scratchUsedBytes: number): BlockSnapshot {
  const { domain, name, timeMs, heldMs, quiesce, mode, plan, leaseMs, leaseUntilMs, exports } = snapshot;
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
    exports: exports.map((open) => blockExportMessage({ ...open, domain, snapshot: name })),
  };
}
