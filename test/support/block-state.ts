import { z } from "zod";
import type { Monitor } from "./monitor.js";

export interface BitmapState {
  readonly node: string;
  readonly name: string;
  readonly granularityBytes: number;
  readonly persistent: boolean;
  readonly recording: boolean;
  readonly busy: boolean;
  readonly inconsistent: boolean;
}

export interface BlockState {
  /** `name driver path`, sorted. */
  readonly nodes: readonly string[];
  /** Which node each device reads and writes: `device node`, sorted. */
  readonly devices: readonly string[];
  readonly bitmaps: readonly BitmapState[];
  readonly exports: readonly string[];
  readonly jobs: readonly string[];
  /** User-made QOM objects: iothreads, credentials, throttle groups. */
  readonly objects: readonly string[];
}

const bitmapSchema = z.object({
  name: z.string().optional(),
  granularity: z.number(),
  persistent: z.boolean(),
  recording: z.boolean(),
  busy: z.boolean(),
  inconsistent: z.boolean().default(false),
});
const nodesSchema = z.array(
  z.object({
    "node-name": z.string(),
    drv: z.string(),
    file: z.string(),
    "dirty-bitmaps": z.array(bitmapSchema).default([]),
  }),
);
const devicesSchema = z.array(
  z.object({
    device: z.string(),
    qdev: z.string().optional(),
    inserted: z.object({ "node-name": z.string().optional() }).optional(),
  }),
);
const exportsSchema = z.array(z.object({ id: z.string(), type: z.string(), "node-name": z.string() }));
const jobsSchema = z.array(z.object({ id: z.string(), type: z.string() }));
const objectsSchema = z.array(z.object({ name: z.string(), type: z.string() }));

/** Leaves out what changes while a guest works: counters, sizes, a bitmap's count. */
export async function readBlockState(monitor: Monitor): Promise<BlockState> {
  const nodes = nodesSchema.parse(await monitor.execute("query-named-block-nodes", { flat: true }));
  const devices = devicesSchema.parse(await monitor.execute("query-block"));
  const exports = exportsSchema.parse(await monitor.execute("query-block-exports"));
  const jobs = jobsSchema.parse(await monitor.execute("query-jobs"));
  const objects = objectsSchema.parse(await monitor.execute("qom-list", { path: "/objects" }));
  return {
    nodes: nodes.map((node) => `${node["node-name"]} ${node.drv} ${node.file}`).sort(),
    devices: devices
      .map((entry) => `${entry.qdev ?? entry.device} ${entry.inserted?.["node-name"] ?? "empty"}`)
      .sort(),
    bitmaps: nodes
      .flatMap((node) => node["dirty-bitmaps"].map((bitmap) => bitmapState(node["node-name"], bitmap)))
      .sort((a, b) => compare(`${a.node} ${a.name}`, `${b.node} ${b.name}`)),
    exports: exports.map((entry) => `${entry.id} ${entry.type} ${entry["node-name"]}`).sort(),
    jobs: jobs.map((job) => `${job.id} ${job.type}`).sort(),
    objects: objects
      .filter((object) => object.type.startsWith("child<") && !object.type.includes("memory-backend"))
      .map((object) => `${object.name} ${object.type.slice("child<".length, -1)}`)
      .sort(),
  };
}

function bitmapState(node: string, bitmap: z.infer<typeof bitmapSchema>): BitmapState {
  return {
    node,
    name: bitmap.name ?? "",
    granularityBytes: bitmap.granularity,
    persistent: bitmap.persistent,
    recording: bitmap.recording,
    busy: bitmap.busy,
    inconsistent: bitmap.inconsistent,
  };
}

function compare(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}
