import { mkdir } from "node:fs/promises";
import { parseArgs } from "node:util";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { measureClient, watchProcess } from "./support/child.js";
import { denseMap, EXTENT_BYTES } from "./support/dense-map.js";
import { BenchExport, cacheDirectory, sparseImage } from "./support/exports.js";
import { format } from "./support/figures.js";

/**
 * `npm run bench:sparse -- [--directory DIR]`: a large image with little in it, maps of very many extents, and large
 * exports. One round: what counts here is the order of magnitude, and that memory does not grow.
 */
const { values } = parseArgs({ options: { directory: { type: "string", default: cacheDirectory } } });
const MIB = 2 ** 20;
const TIB = 2 ** 40;
const NBDCOPY_LIMIT_MS = 120_000;

const mebibytes = (bytes: number | undefined) => ((bytes ?? NaN) / MIB).toFixed(0);
const print = (title: string, cells: string[][]) => process.stdout.write(`${title}\n${format(cells)}\n\n`);

await mkdir(values.directory, { recursive: true });
await using directory = await TemporaryDirectory.create();

async function sparse(): Promise<void> {
  const image = await sparseImage({ sizeBytes: 16 * TIB, pieces: 1024, pieceBytes: MIB }, values.directory);
  await using source = await BenchExport.storageDaemon(directory.file("sparse"), image);
  const ours = await measureClient("map.ts", source.uri);
  if (ours.bytes !== 1024 * MIB)
    throw new Error(`Expected 1 GiB of data in the map, got ${ours.bytes} bytes`);
  const theirs = await watchProcess(NBDCOPY_LIMIT_MS, "nbdcopy", source.uri, "null:");
  const note = theirs.timedOut ? "not done: stopped by the limit" : "";
  print("Map and pull of 1 GiB in 1024 places of a qcow2 of 16 TiB", [
    ["client", "seconds", "RSS MiB", ""],
    ["nbdcopy", theirs.seconds.toFixed(2), mebibytes(theirs.peakRssBytes), note],
    ["ours", ours.seconds.toFixed(2), mebibytes(ours.peakRssBytes), ""],
  ]);
}

async function dense(): Promise<void> {
  const rows: string[][] = [];
  for (const extents of [1_000_000, 10_000_000, 20_000_000]) {
    await using server = await denseMap(extents);
    const run = await measureClient("map.ts", server.socketPath, "no-data");
    if (run.bytes !== extents * EXTENT_BYTES)
      throw new Error(`Expected the whole map, got ${run.bytes} bytes`);
    rows.push([extents.toFixed(0), (extents / run.seconds).toFixed(0), mebibytes(run.peakRssBytes)]);
  }
  print("Map of alternating extents of 64 KiB, from a server of ours", [
    ["extents", "extents/s", "RSS MiB"],
    ...rows,
  ]);
}

async function large(): Promise<void> {
  const rows: string[][] = [];
  for (const gib of [1, 8]) {
    await using source = await BenchExport.nbdkit(directory.file(`null${gib}`), "null", `${gib}G`);
    const run = await measureClient("pull.ts", source.uri);
    rows.push([String(gib), run.seconds.toFixed(2), mebibytes(run.peakRssBytes)]);
  }
  print("Pull of nbdkit's null", [["GiB", "seconds", "RSS MiB"], ...rows]);
}

await sparse();
await dense();
await large();
