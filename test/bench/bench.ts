import { mkdir, rm } from "node:fs/promises";
import { parseArgs } from "node:util";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { measureClient, measureProcess } from "./support/child.js";
import { BenchExport, cacheDirectory, freshImage, randomImage, type BenchImage } from "./support/exports.js";
import { table, type Run } from "./support/figures.js";
import { inTurn, type Client } from "./support/in-turn.js";
import { vatesPackage } from "./support/vates.js";

/**
 * `npm run bench -- [--mib 2048] [--rounds 5] [--directory DIR] [--only pull|copy]`: ours and the peers on the same
 * export in turn. In each round every client runs once, and ratios are taken within rounds.
 */
const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "2048" },
    rounds: { type: "string", default: "5" },
    directory: { type: "string", default: cacheDirectory },
    only: { type: "string" },
    "no-vates": { type: "boolean", default: false },
  },
});
const sizeBytes = Number(values.mib) * 2 ** 20;
/** For a daemon of our own: blocks stay mapped from request to request. */
const ALLOCATOR = { MALLOC_MMAP_THRESHOLD_: "67108864", MALLOC_TRIM_THRESHOLD_: "268435456" };

async function vates(source: BenchExport): Promise<Client> {
  const name = "@vates/nbd-client 1 MiB × 16";
  if (values["no-vates"]) return { name, note: "left out" };
  try {
    const directory = await vatesPackage(values.directory);
    return { name, run: () => measureClient("vates-pull.ts", directory, source.socketPath, "disk") };
  } catch (error) {
    const reason = error instanceof Error ? error.message.split("\n")[0] : String(error);
    return { name, note: `could not be had: ${reason ?? ""}` };
  }
}

async function pullClients(source: BenchExport): Promise<Client[]> {
  const ours = (bytes: number, inFlight: number): Client => ({
    name: `ours ${bytes / 1024} KiB × ${inFlight}`,
    run: () => measureClient("pull.ts", source.uri, String(bytes), String(inFlight)),
  });
  return [
    { name: "nbdcopy", run: () => measureProcess(sizeBytes, "nbdcopy", source.uri, "null:") },
    ours(1 << 21, 2),
    ours(1 << 21, 4),
    ours(1 << 20, 3),
    ours(1 << 18, 8),
    {
      name: "qemu-img bench 1 MiB × 16",
      run: () => {
        const count = String(sizeBytes / 2 ** 20);
        const shape = ["-f", "raw", "-c", count, "-d", "16", "-s", "1M"];
        return measureProcess(sizeBytes, "qemu-img", "bench", ...shape, source.uri);
      },
    },
    await vates(source),
  ];
}

function copyClients(source: BenchExport, directory: TemporaryDirectory): Client[] {
  const to = async (copy: (target: BenchExport) => Promise<Run>, env?: typeof ALLOCATOR): Promise<Run> => {
    const image: BenchImage = await freshImage(`${values.directory}/target.qcow2`, sizeBytes);
    try {
      const options = { writable: true, ...(env === undefined ? {} : { env }) };
      await using target = await BenchExport.storageDaemon(directory.file("target"), image, options);
      return await copy(target);
    } finally {
      await rm(image.path);
    }
  };
  const nbdcopy = (target: BenchExport) => measureProcess(sizeBytes, "nbdcopy", source.uri, target.uri);
  const ours = (target: BenchExport) => measureClient("copy.ts", source.uri, target.uri);
  const convert = (target: BenchExport) =>
    measureProcess(
      sizeBytes,
      "qemu-img",
      ...["convert", "-n", "-W", "-f", "raw", "-O", "raw", source.uri, target.uri],
    );
  return [
    { name: "nbdcopy", run: () => to(nbdcopy) },
    { name: "ours", run: () => to(ours) },
    { name: "qemu-img convert -W", run: () => to(convert) },
    { name: "nbdcopy, tuned target", run: () => to(nbdcopy, ALLOCATOR) },
    { name: "ours, tuned target", run: () => to(ours, ALLOCATOR) },
  ];
}

await mkdir(values.directory, { recursive: true });
const image = await randomImage(sizeBytes, values.directory);
await using directory = await TemporaryDirectory.create();
const rounds = Number(values.rounds);
await using source = await BenchExport.storageDaemon(directory.file("source"), image);
if (values.only !== "copy") {
  const rows = await inTurn(await pullClients(source), rounds);
  process.stdout.write(
    `Pull of ${values.mib} MiB, warm qcow2, ${rounds} rounds\n${table(rows, "nbdcopy")}\n\n`,
  );
}
if (values.only !== "pull") {
  const rows = await inTurn(copyClients(source, directory), rounds);
  process.stdout.write(`Copy into a fresh qcow2, ${rounds} rounds\n${table(rows, "nbdcopy")}\n`);
}
