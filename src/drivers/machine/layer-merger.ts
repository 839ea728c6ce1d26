import { stat } from "node:fs/promises";
import path from "node:path";
import * as z from "zod";
import type { DomainConfig } from "../../model/config.js";
import type { KnownFile, LayerFile, LayerMerge } from "../../model/layer-plan.js";
import { DISK_FORMATS, type DiskFormat } from "../../model/snapshot-plan.js";
import type { UndoEntry } from "../../model/undo.js";
import type { LayerMerger, LayerMergers, MergeOptions } from "../../ports/layer-merger.js";
import { isQmpError, type QmpSession } from "../../qmp/index.js";
import { errnoOf, FleeceError } from "../../shared/errors.js";
import { mapQmpError, withQmpErrors } from "../qmp-errors.js";
import { runTool } from "../qemu-tools.js";
import { configOf, reachDomain } from "../reach-domain.js";
import { fileIdentity } from "../running/targets.js";
import { detachedDirectoryPath } from "../runtime-directory.js";
import { StorageDaemon } from "../storage-daemon.js";
import { mergeInGraph, type MergeNodes, removeUnused } from "./merge-job.js";
import { checkIdle, queryChains } from "./running-qemu.js";

/**
 * Layers that the domain's QEMU has open are merged by it, all others by a storage daemon, with the same jobs. The daemon is
 * detached: it holds an image open for writing, whose bitmaps would be lost if it were killed, and our own end must not be its
 * end. Whoever finds the journal ends it in peace. Only a SIGKILL for the daemon itself, or a power cut, costs that image's
 * checkpoints, as it would with any program that writes to it; the next backup compares then. What need not be written is
 * opened read-only: of a commit the upper image, which is the one that still records.
 */
export class QemuLayerMergers implements LayerMergers {
  readonly #domains: readonly DomainConfig[];
  readonly #runtimeRoot: string;

  constructor(options: { domains: readonly DomainConfig[]; runtimeRoot: string }) {
    this.#domains = options.domains;
    this.#runtimeRoot = options.runtimeRoot;
  }

  async open(domain: string, signal?: AbortSignal): Promise<LayerMerger> {
    const reached = await reachDomain(configOf(this.#domains, domain), signal);
    const qmp = reached.running ? reached.qmp : undefined;
    return new QemuLayerMerger({ domain, qmp, runtimeRoot: this.#runtimeRoot });
  }
}

class QemuLayerMerger implements LayerMerger {
  readonly mode: "running" | "inactive";
  readonly #domain: string;
  readonly #qmp: QmpSession | undefined;
  readonly #runtimeRoot: string;

  constructor(parts: { domain: string; qmp: QmpSession | undefined; runtimeRoot: string }) {
    this.mode = parts.qmp === undefined ? "inactive" : "running";
    this.#domain = parts.domain;
    this.#qmp = parts.qmp;
    this.#runtimeRoot = parts.runtimeRoot;
  }

  async look(files: readonly KnownFile[], signal?: AbortSignal): Promise<readonly LayerFile[]> {
    const found = new Map<string, LayerFile>();
    const queue = [...files];
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      if (found.has(next.path)) continue;
      const layer = await lookAtLayer(next, signal);
      if (layer === undefined) continue;
      found.set(next.path, layer);
      const { backing, backingFormat } = layer;
      if (backing !== undefined && backingFormat !== undefined)
        queue.push({ path: backing, format: backingFormat });
    }
    return [...found.values()];
  }

  async checkIdle(): Promise<void> {
    const qmp = this.#qmp;
    if (qmp !== undefined) await this.#guarded(() => checkIdle(qmp, this.#domain));
  }

  async isWritten(file: string): Promise<boolean> {
    const qmp = this.#qmp;
    if (qmp === undefined) return false;
    return await this.#guarded(async () => {
      for (const { layers } of await queryChains(qmp)) {
        const [top] = layers;
        if (top !== undefined && (await isSameFile(top.file, file))) return true;
      }
      return false;
    });
  }

  async release({ how, upper, lower }: LayerMerge): Promise<void> {
    const qmp = this.#qmp;
    if (qmp !== undefined) await this.#guarded(() => removeUnused(qmp, how === "commit" ? upper : lower));
  }

  async merge(merge: LayerMerge, options: MergeOptions): Promise<void> {
    options.signal?.throwIfAborted();
    const qmp = this.#qmp;
    const nodes = qmp === undefined ? undefined : await this.#guarded(() => findNodes(qmp, merge));
    if (qmp !== undefined && nodes !== undefined) {
      const job = jobId(options.id);
      const entry: UndoEntry = { kind: "vm-job", id: job };
      await options.undo.register(entry);
      await this.#guarded(async () => {
        const unused = await fileOf(qmp, merge.how === "commit" ? nodes.upper : nodes.lower);
        await mergeInGraph(qmp, { merge, nodes, job }, options);
        await removeUnused(qmp, unused);
      });
      await options.undo.settle(entry);
    } else {
      await this.#mergeInDaemon(merge, options);
    }
    if (merge.how === "stream") return;
    for (const child of merge.children) await rebase(child, merge, options.signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#qmp?.close();
  }

  async #mergeInDaemon(merge: LayerMerge, options: MergeOptions): Promise<void> {
    const { how, upper, lower } = merge;
    const directory = detachedDirectoryPath(`merge-${options.id}`, this.#runtimeRoot);
    const entry: UndoEntry = { kind: "daemon", directory };
    await options.undo.register(entry);
    const daemon = await StorageDaemon.start({ directory, lifetime: "detached", signal: options.signal });
    try {
      await daemon.execute("blockdev-add", {
        driver: "qcow2",
        "node-name": TOP,
        "read-only": how === "commit",
        discard: "unmap",
        file: { driver: "file", filename: upper },
      });
      const nodes = await daemon.attempt((qmp) => findDaemonNodes(qmp, lower));
      // Bitmaps on other images would end with the daemon.
      const keepBitmaps = merge.lowerFormat === "qcow2" || how === "stream";
      const request = { merge, nodes, job: jobId(options.id), keepBitmaps };
      await daemon.attempt((qmp) => withJobErrors(() => mergeInGraph(qmp, request, options)));
      await daemon.execute("blockdev-del", { "node-name": TOP });
    } finally {
      await daemon.stop();
    }
    await options.undo.settle(entry);
  }

  async #guarded<T>(action: () => Promise<T>): Promise<T> {
    try {
      return await withQmpErrors(`QEMU of domain ${this.#domain}`, action);
    } catch (error) {
      throw inUse(error) ?? error;
    }
  }
}

const TOP = "top";

/** A failed job says more than that the daemon refused something. */
async function withJobErrors<T>(action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw isQmpError(error, "QMP_JOB_FAILED") ? mapQmpError(error, "Storage daemon") : error;
  }
}

function jobId(id: string): string {
  return `fleece-${id}-merge`;
}

/** The image locks of QEMU are what tells of programs that use a file which we would write to. */
function inUse(error: unknown): FleeceError | undefined {
  if (!(error instanceof FleeceError) || !/Failed to get (shared )?"[^"]*" lock/.test(error.message)) {
    return undefined;
  }
  return new FleeceError(
    "DISK_IN_USE",
    `Another program uses one of the images, as its disk or as the base of its disk: ${error.message}`,
    { cause: error },
  );
}

/** Undefined if the domain has not both layers open: one of them is on another branch then. */
async function findNodes(qmp: QmpSession, { upper, lower }: LayerMerge): Promise<MergeNodes | undefined> {
  for (const { layers } of await queryChains(qmp)) {
    for (const [index, layer] of layers.entries()) {
      const below = layers[index + 1];
      const top = layers[0];
      if (below === undefined || top === undefined) continue;
      if (!(await isSameFile(layer.file, upper)) || !(await isSameFile(below.file, lower))) continue;
      const base = layers[index + 2];
      return {
        top: top.node,
        upper: layer.node,
        lower: below.node,
        ...(base === undefined ? {} : { base: base.node }),
      };
    }
  }
  return undefined;
}

/** As QEMU calls it. */
async function fileOf(qmp: QmpSession, node: string): Promise<string> {
  const listed = await qmp.execute("query-named-block-nodes", { flat: true });
  const file = listed.find((each) => each["node-name"] === node)?.file;
  if (file !== undefined) return file;
  throw new FleeceError("QEMU_FAILED", `Expected a node ${node}, QEMU has none any more`);
}

async function findDaemonNodes(qmp: QmpSession, lower: string): Promise<MergeNodes> {
  const nodes = await qmp.execute("query-named-block-nodes", { flat: true });
  const graph = await qmp.execute("x-debug-query-block-graph");
  const backingOf = (name: string): string | undefined => {
    const id = graph.nodes.find((node) => node.name === name)?.id;
    const edge = graph.edges.find(({ parent, name: role }) => parent === id && role === "backing");
    return graph.nodes.find((node) => node.id === edge?.child)?.name;
  };
  const below = backingOf(TOP);
  const file = nodes.find((node) => node["node-name"] === below)?.file;
  if (below === undefined || file === undefined || !(await isSameFile(file, lower))) {
    throw new FleeceError("DAMAGED", `Expected ${lower} as the backing file, found ${file ?? "none"}`);
  }
  const base = backingOf(below);
  return { top: TOP, upper: TOP, lower: below, ...(base === undefined ? {} : { base }) };
}

/** Only the header: the content is the same, whichever of the two is below. */
async function rebase(
  child: string,
  { upper, lower, lowerFormat }: LayerMerge,
  signal?: AbortSignal,
): Promise<void> {
  const layer = await lookAtLayer({ path: child, format: "qcow2" }, signal);
  // The domain's QEMU has done it for what it has open.
  if (layer?.backing !== upper) return;
  const args = ["rebase", "-u", "-f", "qcow2", "-F", lowerFormat, "-b", lower, "--", child];
  await runTool("qemu-img", args, { path: child, signal });
}

interface LookedAt extends LayerFile {
  readonly backingFormat?: DiskFormat;
}

const layerSchema = z.object({
  "virtual-size": z.int().nonnegative(),
  "actual-size": z.int().nonnegative().default(0),
  "full-backing-filename": z.string().optional(),
  "backing-filename": z.string().optional(),
  "backing-filename-format": z.enum(DISK_FORMATS).optional().catch(undefined),
  "format-specific": z
    .object({ data: z.object({ "create-type": z.string().optional() }).optional() })
    .optional(),
});

/** A VMDK of compressed grains, as appliances bring it along: each of them can be written once. */
const WRITTEN_ONCE = "streamOptimized";

/** Undefined if there is no such file. It may be open in a running QEMU, which does not change what is asked for here. */
async function lookAtLayer(
  { path: file, format }: KnownFile,
  signal?: AbortSignal,
): Promise<LookedAt | undefined> {
  try {
    await stat(file);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
  const args = ["info", "--output=json", "-U", "-f", format, "--", file];
  const info = layerSchema.parse(JSON.parse(await runTool("qemu-img", args, { path: file, signal })));
  const backing = info["full-backing-filename"] ?? info["backing-filename"];
  const backingFormat = info["backing-filename-format"];
  return {
    path: file,
    format,
    sizeBytes: info["virtual-size"],
    allocatedBytes: info["actual-size"],
    ...(info["format-specific"]?.data?.["create-type"] === WRITTEN_ONCE ? { isReadOnly: true } : {}),
    ...(backing === undefined
      ? {}
      : { backing: path.isAbsolute(backing) ? path.normalize(backing) : backing }),
    ...(backingFormat === undefined || backing?.startsWith("/") !== true ? {} : { backingFormat }),
  };
}

async function isSameFile(a: string, b: string): Promise<boolean> {
  return a === b || (await fileIdentity(a)) === (await fileIdentity(b));
}
