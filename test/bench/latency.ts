import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { z } from "zod";
import { buildGuest } from "../guest/build-guest.js";
import { chooseAccelerator } from "../guest/accelerator.js";
import { makeDataDisk } from "../guest/data-disk.js";
import { guestAgentArguments, startGuestAgent, withGuestAgent } from "../guest/guest-agent.js";
import { bootGuest, type GuestVm } from "../guest/guest-vm.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { runFleece } from "../support/fleece.js";
import { createImage, fillImage, qemuImg } from "../support/image-tool.js";
import type { JsonObject } from "../support/monitor.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import type { TestDisk } from "../support/vm-arguments.js";
import { cacheDirectory } from "./support/exports.js";
import { format } from "./support/figures.js";

/**
 * `npm run bench:latency -- [--seconds 10] [--mib 512] [--directory DIR]`: what a guest's writes feel of a block snapshot,
 * before it, in the second in which it is created, while it is active, and after it; with one disk and with four, quiesced
 * or not. The guest writes 64 KiB at random places past its page cache, on the first disk of a quiesced series into a file
 * of a file system. QEMU counts how long each write took, as the guest's device sees it; a frozen file system holds
 * writes before they come there, for the time in the last column. Needs a build.
 *
 * `--backup 20ms`: what they feel of full backups of one disk instead, which are taken one after the other; first without regard for
 * them, then with that as `guestLatency`.
 */
const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "10" },
    mib: { type: "string", default: "512" },
    directory: { type: "string", default: cacheDirectory },
    backup: { type: "string" },
  },
});
const seconds = Number(values.seconds);
const mib = Number(values.mib);
const TARGETS = ["vda", "vdb", "vdc", "vdd"] as const;
/** Upper ends of the histogram's bins, in milliseconds. */
const BOUNDS_MS = [
  0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000,
];

const statsSchema = z.array(
  z.object({
    qdev: z.string().optional(),
    stats: z.object({
      wr_latency_histogram: z.object({ bins: z.array(z.number()) }).optional(),
      failed_wr_operations: z.number(),
    }),
  }),
);
const snapshotSchema = z.looseObject({ heldMs: z.string().default("0"), frozenMs: z.string().default("") });
const LOAD_FILE_MIB = 64;

/** One loop for each disk. `$RANDOM` has 15 bits, as many 64 KiB blocks as 2 GiB has. */
async function startLoad(guest: GuestVm, targets: readonly string[], quiesced: boolean): Promise<void> {
  if (quiesced) await guest.command(`dd if=/dev/zero of=/data/load bs=1M count=${LOAD_FILE_MIB} && sync`);
  for (const target of targets) {
    const inFile = quiesced && target === targets[0];
    const [path, size] = inFile ? ["/data/load", LOAD_FILE_MIB] : [`/dev/${target}`, mib];
    const write = `dd if=/dev/zero of=${path} bs=64k count=1 seek=$((RANDOM % ${size * 16})) conv=notrunc oflag=direct`;
    const { exitStatus } = await guest.command(`${write} && (while ${write}; do :; done) >/dev/null 2>&1 &`);
    if (exitStatus !== 0) throw new Error(`The guest cannot write to ${target}`);
  }
}

async function reset(guest: GuestVm, targets: readonly string[]): Promise<void> {
  const boundaries = BOUNDS_MS.map((bound) => bound * 1e6);
  for (const target of targets) {
    const id = `/machine/peripheral/${target}/virtio-backend`;
    await guest.vm.qmp("block-latency-histogram-set", { id, "boundaries-write": boundaries });
  }
}

type Phase = { readonly writes: number; readonly p50: string; readonly p99: string; readonly worst: string };

async function measure(
  guest: GuestVm,
  targets: readonly string[],
  action: () => Promise<void>,
): Promise<Phase> {
  await reset(guest, targets);
  await action();
  const devices = statsSchema.parse(await guest.vm.qmp("query-blockstats"));
  const bins = BOUNDS_MS.concat(Infinity).map(() => 0);
  for (const { stats } of devices) {
    if (stats.failed_wr_operations > 0) throw new Error("A write of the guest failed");
    for (const [index, count] of (stats.wr_latency_histogram?.bins ?? []).entries()) {
      bins[index] = (bins[index] ?? 0) + count;
    }
  }
  const writes = bins.reduce((sum, count) => sum + count, 0);
  const below = (share: number): string => {
    let seen = 0;
    const at = bins.findIndex((count) => (seen += count) >= share * writes);
    const bound = BOUNDS_MS[at];
    return bound === undefined ? `> ${BOUNDS_MS.at(-1) ?? 0}` : `< ${bound}`;
  };
  return { writes, p50: below(0.5), p99: below(0.99), worst: below(1) };
}

async function series(targets: readonly string[], quiesced: boolean): Promise<string[][]> {
  await using sockets = await TemporaryDirectory.create();
  const work = await mkdtemp(join(values.directory, "latency-"));
  try {
    const disks: TestDisk[] = targets.map((target) => ({
      target,
      format: "qcow2",
      path: join(work, `${target}.qcow2`),
    }));
    for (const { path } of disks) {
      await qemuImg("create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", path, `${mib}M`);
    }
    const [first] = disks;
    if (quiesced && first !== undefined) {
      await makeDataDisk(first.path, { sizeBytes: mib * 2 ** 20, contentBytes: 2 ** 24 });
    }
    await mkdir(join(work, "scratch"));
    await mkdir(join(work, "backups"));
    const plain = await buildGuest();
    const files = quiesced ? await withGuestAgent(plain, work) : plain;
    if (files === undefined) return [[`${targets.length} × quiesced`, "qemu-guest-agent cannot be had here"]];
    const guestAgent = sockets.file("qga");
    const accelerator = await chooseAccelerator(files);
    await using guest = await bootGuest({
      files,
      directory: sockets.path,
      disks,
      accelerator,
      worksOnDisk: quiesced,
      extraArguments: quiesced ? guestAgentArguments(guestAgent) : [],
    });
    if (quiesced) await startGuestAgent(guest);
    const configPath = await writeConfig(work, {
      domains: [{ ...domainConfig("vm", guest.vm), ...(quiesced ? { guestAgent } : {}) }],
      more: { runtimeDir: sockets.file("run") },
    });
    const fleece = async (...words: string[]) => {
      const result = await runFleece(["--embedded", "--json", ...words], { configPath });
      if (result.exitCode !== 0) throw new Error(result.stderr);
      return snapshotSchema.parse(result.json());
    };
    await startLoad(guest, targets, quiesced);
    const pause = () => delay(seconds * 1000);
    await pause();
    const before = await measure(guest, targets, pause);
    let costs: readonly string[] = [];
    const creation = await measure(guest, targets, async () => {
      const how = quiesced ? ["--quiesce"] : [];
      const words = ["block-snapshot", "create", "vm", "--name", "bench", "--checkpoint", ...how];
      const { heldMs, frozenMs } = await fleece(...words);
      costs = [heldMs, frozenMs];
    });
    const during = await measure(guest, targets, pause);
    await fleece("block-snapshot", "delete", "vm", "bench");
    const after = await measure(guest, targets, pause);
    const count = `${targets.length} disk${targets.length === 1 ? "" : "s"}`;
    const name = `${count}${quiesced ? ", quiesced" : ""} (${accelerator})`;
    const row = (phase: string, { writes, p50, p99, worst }: Phase, more: readonly string[] = []) => [
      ...[name, phase, String(writes), p50, p99, worst],
      ...more,
    ];
    return [
      row("before", before),
      row("while it is created", creation, costs),
      row("active", during),
      row("after", after),
    ];
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Of one disk that is full of data. */
async function backupSeries(guestLatency: string): Promise<string[][]> {
  await using sockets = await TemporaryDirectory.create();
  const work = await mkdtemp(join(values.directory, "latency-"));
  try {
    const disk: TestDisk = { target: "vda", format: "qcow2", path: join(work, "vda.qcow2") };
    await createImage(disk.path, mib * 2 ** 20, { format: "qcow2" });
    await fillImage(disk.path, "qcow2", { offset: 0, length: mib * 2 ** 20, pattern: 0x5a });
    for (const name of ["scratch", "backups"]) await mkdir(join(work, name));
    const files = await buildGuest();
    const accelerator = await chooseAccelerator(files);
    await using guest = await bootGuest({ files, directory: sockets.path, disks: [disk], accelerator });
    await startLoad(guest, ["vda"], false);
    const pause = () => delay(seconds * 1000);
    const backups = (limits: JsonObject | undefined) => async (): Promise<void> => {
      const more = { runtimeDir: sockets.file("run"), ...(limits === undefined ? {} : { limits }) };
      const configPath = await writeConfig(work, { domains: [domainConfig("vm", guest.vm)], more });
      const endMs = performance.now() + seconds * 1000;
      while (performance.now() < endMs) {
        const result = await runFleece(["--embedded", "backup", "run", "vm", "--full"], { configPath });
        if (result.exitCode !== 0) throw new Error(result.stderr);
      }
    };
    const row = async (phase: string, action: () => Promise<void>): Promise<string[]> => {
      const { writes, p50, p99, worst } = await measure(guest, ["vda"], action);
      return [`1 disk (${accelerator})`, phase, String(writes), p50, p99, worst];
    };
    await pause();
    return [
      await row("none", pause),
      await row("backups", backups(undefined)),
      await row(`backups, guestLatency ${guestLatency}`, backups({ guestLatency })),
      await row("none", pause),
    ];
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

await mkdir(values.directory, { recursive: true });
const rows: string[][] = values.backup === undefined ? [] : await backupSeries(values.backup);
for (const quiesced of values.backup === undefined ? [false, true] : []) {
  for (const count of [1, 4]) rows.push(...(await series(TARGETS.slice(0, count), quiesced)));
}
const head = [
  "",
  values.backup === undefined ? "snapshot" : "meanwhile",
  "writes",
  "half, ms",
  "99 %, ms",
  "all, ms",
  "held, ms",
  "frozen, ms",
];
process.stdout.write(`${format([head, ...rows])}\n`);
