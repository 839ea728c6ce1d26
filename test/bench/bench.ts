import { mkdir, rm } from "node:fs/promises";
import { parseArgs } from "node:util";
import { StorageDaemonImages } from "../../src/drivers/images.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { measureClient, measureProcess } from "./support/child.js";
import { BenchExport, cacheDirectory, freshImage, randomImage } from "./support/exports.js";
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
  const path = `${values.directory}/target.qcow2`;
  const toPlain = async (copy: (uri: string) => Promise<Run>): Promise<Run> => {
    const image = await freshImage(path, sizeBytes);
    try {
      await using target = await BenchExport.storageDaemon(directory.file("target"), image, {
        writable: true,
      });
      return await copy(target.uri);
    } finally {
      await rm(path);
    }
  };
  const factory = new StorageDaemonImages({ runtimeRoot: directory.file("run") });
  /** As a backup has it. */
  const toOurs = async (copy: (uri: string) => Promise<Run>): Promise<Run> => {
    await rm(path, { force: true });
    const target = "disk";
    await using images = await factory.create([{ target, path, format: "qcow2", sizeBytes }]);
    try {
      const { exportName, socketPath } = images.address(target);
      return await copy(`nbd+unix:///${exportName}?socket=${socketPath}`);
    } finally {
      await rm(path);
    }
  };
  const nbdcopy = (target: string) => measureProcess(sizeBytes, "nbdcopy", source.uri, target);
  const ours = (target: string) => measureClient("copy.ts", source.uri, target);
  const convert = (target: string) =>
    measureProcess(
      sizeBytes,
      "qemu-img",
      ...["convert", "-n", "-W", "-f", "raw", "-O", "raw", source.uri, target],
    );
  return [
    { name: "nbdcopy", run: () => toPlain(nbdcopy) },
    { name: "ours", run: () => toPlain(ours) },
    { name: "qemu-img convert -W", run: () => toPlain(convert) },
    { name: "nbdcopy, our target", run: () => toOurs(nbdcopy) },
    { name: "ours, our target", run: () => toOurs(ours) },
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
