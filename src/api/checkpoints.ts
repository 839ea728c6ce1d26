import { getCheckpoint, listCheckpoints, removeCheckpoint } from "../services/checkpoint-delete.js";
import type { Checkpoint as ServiceCheckpoint } from "../services/checkpoints.js";
import type { ServiceContext } from "../services/context.js";
import type { Checkpoint, CheckpointDisk, ListCheckpointsResponse } from "./messages.js";
import { timestampFromMs } from "./timestamp.js";

export interface CheckpointRequest {
  readonly domain: string;
  readonly name: string;
}

export async function listCheckpointsHandler(
  context: ServiceContext,
  { domain }: { readonly domain: string },
  signal?: AbortSignal,
): Promise<ListCheckpointsResponse> {
  const checkpoints = await listCheckpoints(context, domain, signal);
  return { checkpoints: checkpoints.map((checkpoint) => checkpointMessage(domain, checkpoint)) };
}

export async function getCheckpointHandler(
  context: ServiceContext,
  { domain, name }: CheckpointRequest,
  signal?: AbortSignal,
): Promise<Checkpoint> {
  return checkpointMessage(domain, await getCheckpoint(context, domain, name, signal));
}

/** Answers with the checkpoint as it was. */
export async function deleteCheckpointHandler(
  context: ServiceContext,
  { domain, name }: CheckpointRequest,
  signal?: AbortSignal,
): Promise<Checkpoint> {
  return checkpointMessage(domain, await removeCheckpoint(context, domain, name, signal));
}

export function checkpointMessage(domain: string, checkpoint: ServiceCheckpoint): Checkpoint {
  const { name, order, timeMs, parent, valid, disks } = checkpoint;
  return { domain, name, order, time: timestampFromMs(timeMs), parent, valid, disks: disks.map(diskMessage) };
}

function diskMessage(disk: ServiceCheckpoint["disks"][number]): CheckpointDisk {
  const { target, bitmap, recording, inconsistent, busy, persistent, granularityBytes, dirtyBytes } = disk;
  return { target, bitmap, recording, inconsistent, busy, persistent, granularityBytes, dirtyBytes };
}
