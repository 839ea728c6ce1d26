import { getCheckpoint, listCheckpoints, removeCheckpoint } from "../services/checkpoint-delete.js";
import type { Checkpoint as ServiceCheckpoint } from "../services/checkpoints.js";
import type { ServiceContext } from "../services/context.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import type { Checkpoint, CheckpointDisk, ListCheckpointsResponse } from "./messages.js";
import { page } from "./page.js";
import { timestampFromMs } from "./timestamp.js";

export async function listCheckpointsHandler(
  context: ServiceContext,
  { domain, ...paging }: CallRequest<"Checkpoints.List">,
  { signal }: CallOptions,
): Promise<ListCheckpointsResponse> {
  const checkpoints = await listCheckpoints(context, domain, signal);
  const scope = ["checkpoints", domain];
  const { items, nextPageToken } = page(checkpoints, paging, scope, ({ order }) => [order]);
  return { checkpoints: items.map((checkpoint) => checkpointMessage(domain, checkpoint)), nextPageToken };
}

export async function getCheckpointHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"Checkpoints.Get">,
  { signal }: CallOptions,
): Promise<Checkpoint> {
  return checkpointMessage(domain, await getCheckpoint(context, domain, name, signal));
}

/** Answers with the checkpoint as it was. */
export async function deleteCheckpointHandler(
  context: ServiceContext,
  { domain, name }: CallRequest<"Checkpoints.Delete">,
  { signal, beforeEffect }: CallOptions,
): Promise<Checkpoint> {
  const removed = await removeCheckpoint(context, domain, name, {
    ...(signal === undefined ? {} : { signal }),
    onFound: async (found) => beforeEffect?.(checkpointMessage(domain, found)),
  });
  return checkpointMessage(domain, removed);
}

export function checkpointMessage(domain: string, checkpoint: ServiceCheckpoint): Checkpoint {
  const { name, order, timeMs, parent, valid, disks } = checkpoint;
  return { domain, name, order, time: timestampFromMs(timeMs), parent, valid, disks: disks.map(diskMessage) };
}

function diskMessage(disk: ServiceCheckpoint["disks"][number]): CheckpointDisk {
  const { target, bitmap, recording, inconsistent, busy, persistent, granularityBytes, dirtyBytes } = disk;
  return { target, bitmap, recording, inconsistent, busy, persistent, granularityBytes, dirtyBytes };
}
