import { mergedBitmaps, type LayerBitmap, type MergedBitmaps } from "../../model/merged-bitmaps.js";
import type { LayerMerge } from "../../model/layer-plan.js";
import type { MergeOptions } from "../../ports/layer-merger.js";
import {
  isEvent,
  isQmpError,
  QmpError,
  type JobInfo,
  type QmpSession,
  type TransactionAction,
} from "../../qmp/index.js";
import { readOnlyAgain } from "./read-only-again.js";

/** The layers in a QEMU process: `top` is the uppermost of the chain, and `upper` itself if that is active. */
export interface MergeNodes {
  readonly top: string;
  readonly upper: string;
  readonly lower: string;
  /** Below `lower`. */
  readonly base?: string;
}

export interface GraphMerge {
  readonly merge: LayerMerge;
  readonly nodes: MergeNodes;
  readonly job: string;
  /** Default: true. */
  readonly keepBitmaps?: boolean;
}

/**
 * The jobs of QEMU, the same in a virtual machine and in a storage daemon. Content moves first. Then the job waits (`ready` for a
 * commit of the uppermost layer, `pending` for all others) while both layers can still be written to: bitmaps are carried over in
 * one transaction. Only then it ends, so that a layer without its bitmaps, or half of them, is never the one that counts.
 */
export async function mergeInGraph(
  qmp: QmpSession,
  { merge, nodes, job, keepBitmaps = true }: GraphMerge,
  options: Pick<MergeOptions, "onBrink" | "onProgress" | "signal">,
): Promise<void> {
  const bitmaps = keepBitmaps ? await planBitmaps(qmp, merge, nodes) : NOTHING;
  const isPivot = merge.how === "commit" && nodes.top === nodes.upper;
  const written = merge.how === "commit" ? nodes.lower : nodes.upper;
  // Also after a merge that nobody has seen the end of.
  if (written !== nodes.top) await readOnlyAgain(qmp, written);
  // Allowed on an image that is open for reading only.
  for (const name of bitmaps.disabled) {
    await qmp.execute("block-dirty-bitmap-disable", { node: nodes.lower, name });
  }
  try {
    await start(qmp, { merge, nodes, job }, isPivot);
    await reach(qmp, job, isPivot ? "ready" : "pending", options);
    const actions = bitmapActions(bitmaps, merge, nodes);
    if (actions.length > 0) await qmp.execute("transaction", { actions });
    await options.onBrink();
    options.signal?.throwIfAborted();
    await qmp.execute(isPivot ? "job-complete" : "job-finalize", { id: job });
  } catch (error) {
    // Without an answer it may be over, and the bitmaps in their place.
    const isOver =
      isQmpError(error) && error.code !== "QMP_COMMAND_FAILED" && error.code !== "QMP_JOB_FAILED";
    if (!isOver) await takeBack(qmp, bitmaps, merge, nodes);
    await quietly(qmp.followJob(job, { signal: AbortSignal.abort() }));
    if (written !== nodes.top) await quietly(readOnlyAgain(qmp, written));
    throw error;
  }
  // From here on it ends by itself, and soon.
  await qmp.followJob(job);
  if (written !== nodes.top && !isPivot) await readOnlyAgain(qmp, written);
}

/**
 * Before the end of the job, which stores them. A layer that had stopped recording, or has bitmaps of the one above it, would seem
 * to have been written to by somebody else, and all its checkpoints would be lost.
 */
async function takeBack(
  qmp: QmpSession,
  { disabled, carried }: MergedBitmaps,
  { how }: LayerMerge,
  nodes: MergeNodes,
): Promise<void> {
  const node = how === "commit" ? nodes.lower : nodes.upper;
  for (const name of disabled) await quietly(qmp.execute("block-dirty-bitmap-enable", { node, name }));
  for (const { name, add } of carried) {
    if (add !== undefined) await quietly(qmp.execute("block-dirty-bitmap-remove", { node, name }));
  }
}

const NOTHING: MergedBitmaps = { disabled: [], removed: [], carried: [] };

async function start(qmp: QmpSession, { merge, nodes, job }: GraphMerge, isPivot: boolean): Promise<void> {
  const { how, lower, below } = merge;
  if (how === "stream") {
    await qmp.execute("block-stream", {
      ...{ "job-id": job, device: nodes.upper, "auto-finalize": false, "auto-dismiss": false },
      ...(nodes.base === undefined ? {} : { "base-node": nodes.base }),
      ...(nodes.base === undefined || below === undefined ? {} : { "backing-file": below }),
    });
    return;
  }
  await qmp.execute("block-commit", {
    ...{ "job-id": job, device: nodes.top, "base-node": nodes.lower, "auto-dismiss": false },
    ...(isPivot
      ? { "auto-finalize": true }
      : { "auto-finalize": false, "top-node": nodes.upper, "backing-file": lower }),
  });
}

/** Waits until the job has moved all content. Fails with what it failed with, and then it is gone. */
async function reach(
  qmp: QmpSession,
  job: string,
  wanted: "ready" | "pending",
  { signal, onProgress }: Pick<MergeOptions, "signal" | "onProgress">,
): Promise<void> {
  for (;;) {
    signal?.throwIfAborted();
    const news = qmp
      .waitForEvent((event) => isEvent(event, "JOB_STATUS_CHANGE") && event.data.id === job, {
        timeoutMs: POLL_MS,
        signal,
      })
      .catch(() => undefined);
    const info = await find(qmp, job);
    onProgress?.(info["current-progress"], info["total-progress"]);
    if (info.status === wanted) return;
    // Tells why, by failing.
    if (info.status === "concluded") await qmp.followJob(job);
    await news;
  }
}

const POLL_MS = 500;

async function find(qmp: QmpSession, job: string): Promise<JobInfo> {
  const info = (await qmp.execute("query-jobs")).find(({ id }) => id === job);
  if (info !== undefined) return info;
  throw new QmpError("QMP_JOB_LOST", `Job ${job} no longer exists`, { jobId: job });
}

/** Fine if QEMU refuses, or is gone: the layers stay as they are. */
async function quietly(action: Promise<unknown>): Promise<void> {
  try {
    await action;
  } catch (error) {
    if (!isQmpError(error)) throw error;
  }
}

async function planBitmaps(qmp: QmpSession, merge: LayerMerge, nodes: MergeNodes): Promise<MergedBitmaps> {
  const listed = await qmp.execute("query-named-block-nodes", { flat: true });
  const bitmapsOf = (node: string): readonly LayerBitmap[] =>
    (listed.find((each) => each["node-name"] === node)?.["dirty-bitmaps"] ?? []).flatMap((bitmap) => {
      const { name, granularity, recording, inconsistent } = bitmap;
      // QEMU lists unnamed ones too, while filters or jobs are at work.
      if (name === undefined) return [];
      return [{ name, granularityBytes: granularity, recording, inconsistent: inconsistent ?? false }];
    });
  const [lower, upper] = [bitmapsOf(nodes.lower), bitmapsOf(nodes.upper)];
  return mergedBitmaps(merge.how, { lower, upper, expected: merge.bitmaps });
}

function bitmapActions(
  { removed, carried }: MergedBitmaps,
  { how, lowerFormat }: LayerMerge,
  nodes: MergeNodes,
): TransactionAction[] {
  const [node, source] = how === "commit" ? [nodes.lower, nodes.upper] : [nodes.upper, nodes.lower];
  const persistent = how === "stream" || lowerFormat === "qcow2";
  return [
    ...removed.map((name): TransactionAction => ({
      type: "block-dirty-bitmap-remove",
      data: { node, name },
    })),
    ...carried.flatMap(({ name, add, enable }): TransactionAction[] => [
      ...(add === undefined
        ? []
        : [
            {
              type: "block-dirty-bitmap-add" as const,
              data: { node, name, granularity: add, persistent, disabled: true },
            },
          ]),
      { type: "block-dirty-bitmap-merge", data: { node, target: name, bitmaps: [{ node: source, name }] } },
      ...(enable ? [{ type: "block-dirty-bitmap-enable" as const, data: { node, name } }] : []),
    ]),
  ];
}

/**
 * The nodes of a layer that is not part of any chain any more: as long as they are there, the file takes space also without a name.
 * What QEMU still uses stays, by its refusal. A second look finds what was refused while the first node was still above it.
 */
export async function removeUnused(qmp: QmpSession, file: string): Promise<void> {
  for (let look = 0; look < 2; look++) {
    const listed = await qmp.execute("query-named-block-nodes", { flat: true });
    const nodes = listed.filter((each) => each.file === file).toSorted((a, b) => depthOf(a) - depthOf(b));
    for (const { "node-name": name = "" } of nodes) {
      try {
        await qmp.execute("blockdev-del", { "node-name": name });
      } catch (error) {
        if (!isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
      }
    }
  }
}

/** The node of the format is above that of the file. */
function depthOf({ drv }: { readonly drv: string }): number {
  return drv === "file" || drv === "host_device" ? 1 : 0;
}
