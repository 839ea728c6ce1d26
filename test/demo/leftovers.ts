import { readdir, readFile } from "node:fs/promises";
import type { BlockState } from "../support/block-state.js";
import type { Backup, Checkpoint } from "./figures.js";
import type { Proofs } from "./proofs.js";
import { domain, type Scene } from "./scene.js";

/** Proves that the backups left nothing but themselves and their checkpoints. */
export async function proveNothingLeft(
  { workplace, guest }: Scene,
  proofs: Proofs,
  before: BlockState,
  backups: readonly Backup[],
  checkpoints: readonly Checkpoint[],
): Promise<void> {
  const now = await guest.vm.blockState();
  const parts = ["nodes", "devices", "exports", "jobs", "objects"] as const;
  proofs.add({
    claim: "QEMU's nodes, devices, exports, jobs and objects are as before",
    expected: "no difference",
    got: parts.flatMap((part) => difference(before[part], now[part])).join(", ") || "no difference",
  });
  const ours = checkpoints.flatMap(({ disks }) => disks.map(({ bitmap }) => bitmap));
  proofs.add({
    claim: "Bitmaps in QEMU",
    expected: `${backups.length * guest.vm.disks.length}, each of a checkpoint`,
    got: bitmaps(now, ours),
  });
  const left = [
    ...(await namesIn(workplace.file("scratch"))),
    ...(await namesIn(workplace.file("state", "operations", domain))),
    ...(await namesIn(workplace.sockets.file("run"))),
    ...(await namesIn(workplace.file("backups", domain))).filter(
      (name) => name !== ".lock" && !backups.some(({ id }) => id === name),
    ),
  ];
  proofs.add({
    claim: "Scratch images, journals, sockets, partial backups",
    expected: "none",
    got: left.join(", ") || "none",
  });
  proofs.add({
    claim: "Storage daemons of the backups",
    expected: "none",
    got: (await daemonsUnder([workplace.folder, workplace.sockets.path])).join(", ") || "none",
  });
}

function bitmaps({ bitmaps: found }: BlockState, ours: readonly string[]): string {
  const foreign = found.filter(({ name }) => !ours.includes(name)).map(({ name }) => name);
  return `${found.length}, ${foreign.length === 0 ? "each of a checkpoint" : `foreign: ${foreign.join(", ")}`}`;
}

function difference(before: readonly string[], now: readonly string[]): string[] {
  return [
    ...now.filter((entry) => !before.includes(entry)).map((entry) => `new: ${entry}`),
    ...before.filter((entry) => !now.includes(entry)).map((entry) => `gone: ${entry}`),
  ];
}

/** A folder that was never made is as good as an empty one. */
async function namesIn(folder: string): Promise<string[]> {
  return readdir(folder).catch(() => []);
}

async function daemonsUnder(folders: readonly string[]): Promise<string[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const lines = await Promise.all(
    pids.map(async (pid) => ({
      pid,
      line: await readFile(`/proc/${pid}/cmdline`, "latin1").catch(() => ""),
    })),
  );
  return lines
    .filter(({ line }) => /(?:qemu-storage-daemon|qemu-nbd)/.test(line))
    .filter(({ line }) => folders.some((folder) => line.includes(folder)))
    .map(({ pid }) => `process ${pid}`);
}
