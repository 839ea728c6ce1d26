import { mkdir } from "node:fs/promises";
import { parseArgs } from "node:util";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { measureClient, measureProcess } from "./support/child.js";
import { BenchExport, cacheDirectory, randomImage } from "./support/exports.js";
import { inRequests, table } from "./support/figures.js";
import { inTurn } from "./support/in-turn.js";

/**
 * `npm run bench:random -- [--mib 2048] [--count 262144] [--rounds 5] [--directory DIR]`: reads of 4 KiB, 16 in flight.
 * Ours are in random places; qemu-img has no random ones, and goes through the image in long strides instead.
 */
const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "2048" },
    count: { type: "string", default: "262144" },
    rounds: { type: "string", default: "5" },
    directory: { type: "string", default: cacheDirectory },
  },
});
const REQUEST_BYTES = 4096;
/** Not a divisor of the image, so that each pass through it meets other places. */
const STRIDE_BYTES = 10_007 * REQUEST_BYTES;

await mkdir(values.directory, { recursive: true });
const image = await randomImage(Number(values.mib) * 2 ** 20, values.directory);
await using directory = await TemporaryDirectory.create();
await using source = await BenchExport.storageDaemon(directory.file("source"), image);
const shape = ["-s", String(REQUEST_BYTES), "-d", "16", "-S", String(STRIDE_BYTES), "-c", values.count];
const bytes = Number(values.count) * REQUEST_BYTES;
const rows = await inTurn(
  [
    {
      name: "qemu-img bench",
      run: () => measureProcess(bytes, "qemu-img", "bench", "-f", "raw", ...shape, source.uri),
    },
    { name: "ours", run: () => measureClient("random.ts", source.uri, values.count) },
  ],
  Number(values.rounds),
);
process.stdout.write(
  `${values.count} reads of 4 KiB, 16 in flight, warm qcow2, ${values.rounds} rounds\n` +
    `${table(rows, "qemu-img bench", inRequests(REQUEST_BYTES))}\n`,
);
