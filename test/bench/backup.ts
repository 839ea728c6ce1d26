import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { startFleece } from "../support/fleece.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { formatNodeName, type TestDisk } from "../support/vm-arguments.js";
import { TestVm } from "../support/vm.js";
import { measureProcess } from "./support/child.js";
import { BenchExport, cacheDirectory, freshImage, randomImage, warm } from "./support/exports.js";
import { format, median } from "./support/figures.js";

/**
 * `npm run bench:backup -- [--mib 2048] [--rounds 3] [--directory DIR]`: the whole command, from its start to its end, on
 * a running domain, by itself and as the client of an agent that has taken backups before, and in turn with it nbdcopy from an export of the same QEMU process into a qcow2 behind qemu-nbd.
 * It needs a build. nbdcopy neither makes a snapshot nor can it copy only what changed.
 */
const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "2048" },
    rounds: { type: "string", default: "3" },
    directory: { type: "string", default: cacheDirectory },
  },
});
const MIB = 2 ** 20;
const BLOCK_BYTES = 64 * 1024;
const mainPath = fileURLToPath(new URL("../../dist/bin/fleece.js", import.meta.url));
const sizeBytes = Number(values.mib) * MIB;

await mkdir(values.directory, { recursive: true });
const image = await randomImage(sizeBytes, values.directory);
await using sockets = await TemporaryDirectory.create();
const work = await mkdtemp(join(values.directory, "backup-"));
const disk: TestDisk = { target: "vda", format: "qcow2", path: join(work, "vda.qcow2") };

/** One block in a hundred, spread over the whole disk. */
async function changeOnePercent(vm: TestVm, pattern: number): Promise<void> {
  for (let offset = 0; offset < sizeBytes; offset += 100 * BLOCK_BYTES) {
    await vm.guestWrite("vda", offset, BLOCK_BYTES, pattern);
  }
}

async function backup(
  configPath: string,
  level: "full" | "incremental",
  ...flags: string[]
): Promise<number> {
  const command = [mainPath, "--config", configPath, ...flags, "backup", "run", "vm", `--${level}`];
  return (await measureProcess(sizeBytes, process.execPath, ...command)).seconds;
}

async function nbdcopy(vm: TestVm, ...flags: string[]): Promise<number> {
  const path = sockets.file("vm");
  const target = await freshImage(join(work, "target.qcow2"), sizeBytes);
  await vm.qmp("nbd-server-start", { addr: { type: "unix", data: { path } } });
  try {
    await vm.qmp("block-export-add", {
      type: "nbd",
      id: "bench",
      "node-name": formatNodeName(disk),
      name: "disk",
    });
    await using server = await BenchExport.qemuNbd(sockets.file("target"), target);
    const source = `nbd+unix:///disk?socket=${path}`;
    return (await measureProcess(sizeBytes, "nbdcopy", ...flags, source, server.uri)).seconds;
  } finally {
    await vm.qmp("nbd-server-stop");
    await rm(target.path);
  }
}

const seconds: Record<"full" | "incremental" | "throughAgent" | "nbdcopy" | "flushed", number[]> = {
  flushed: [],
  throughAgent: [],
  full: [],
  incremental: [],
  nbdcopy: [],
};
try {
  await copyFile(image.path, disk.path);
  await warm(disk.path);
  await mkdir(join(work, "backups"));
  await mkdir(join(work, "scratch"));
  await using vm = await TestVm.start({ directory: sockets.path, disks: [disk] });
  const configPath = await writeConfig(work, {
    domains: [domainConfig("vm", vm)],
    more: { runtimeDir: sockets.file("run") },
  });
  await using agent = await startFleece(["serve"], { configPath });
  await agent.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
  await backup(configPath, "full");
  for (let round = 0; round < Number(values.rounds); round += 1) {
    seconds.nbdcopy.push(await nbdcopy(vm));
    // A backup is on stable storage when it is reported; so is this copy.
    seconds.flushed.push(await nbdcopy(vm, "--flush"));
    seconds.full.push(await backup(configPath, "full", "--embedded"));
    await changeOnePercent(vm, 2 * round + 1);
    seconds.incremental.push(await backup(configPath, "incremental", "--embedded"));
    await changeOnePercent(vm, 2 * round + 2);
    seconds.throughAgent.push(await backup(configPath, "incremental"));
  }
} finally {
  await rm(work, { recursive: true, force: true });
}

const names = {
  full: "fleece backup run, full",
  incremental: "fleece backup run, incremental",
  throughAgent: "the same through an agent",
  nbdcopy: "nbdcopy of everything",
  flushed: "nbdcopy --flush of everything",
} as const;
const rows = (["full", "incremental", "throughAgent", "nbdcopy", "flushed"] as const).map((name) => [
  names[name],
  median(seconds[name]).toFixed(2),
  median(seconds[name].map((each, round) => each / (seconds.nbdcopy[round] ?? NaN))).toFixed(2),
  seconds[name].map((each) => each.toFixed(2)).join(" "),
]);
process.stdout.write(`${format([["", "seconds", "÷ nbdcopy", "all rounds"], ...rows])}\n`);
