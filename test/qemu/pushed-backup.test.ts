import { readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { findDaemons } from "../../src/drivers/end-daemon.js";
import { systemClock } from "../../src/drivers/system-clock.js";
import { planSnapshot } from "../../src/model/snapshot-plan.js";
import { isQemuEntry } from "../../src/model/undo.js";
import { runBackup, type BackupProgress } from "../../src/services/backup-run.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { copyToRaw, fileDigest, imageMap } from "../support/image-tool.js";
import type { JsonObject } from "../support/monitor.js";
import { mountTmpfs } from "../support/mount.js";
import { startSite, type Site, type SiteDisk } from "../support/site.js";
import { MemoryUndoLog } from "./repository/backup-fixture.js";

const MIB = 1024 * 1024;
const BLOCK = 65536;
/** Slow enough that a test can act while QEMU copies, in bytes per second. */
const SLOW = 4 * MIB;
const FULL_SPEED = 0;

const qcow2 = { format: "qcow2" } as const;
/**
 * The second disk makes the program stage all of them, with QEMU before 9.0. QEMU's monitor cannot write to it as the guest would: what a guest in
 * iothreads writes is a matter of staged-guest.test.ts.
 */
const IN_IOTHREAD: SiteDisk = {
  ...qcow2,
  target: "vdb",
  sizeBytes: 2 * MIB + 512,
  filledBytes: MIB,
  iothread: true,
};
const BIG = { ...qcow2, target: "vda", sizeBytes: 192 * MIB, filledBytes: 192 * MIB };

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined };

interface Backup {
  readonly id: string;
  readonly level: string;
  readonly disks: readonly Record<string, string>[];
}

async function startPushed(disks: readonly SiteDisk[], scratch?: JsonObject) {
  const at = await startSite({ disks });
  const { qemu } = (await at.vm.qmp("query-version")) as { qemu: { major: number } };
  // From 9.0 on nothing makes the program do it but its configuration.
  const exports = qemu.major < 9 ? "auto" : "staged";
  const more = { runtimeDir: at.directory.file("run"), ...(scratch === undefined ? {} : { scratch }) };
  await writeConfig(at.directory.path, { domains: [{ ...domainConfig("vm", at.vm), exports }], more });
  return {
    ...at,
    moment: async (target: string): Promise<string> => {
      const { path, format, iothread } = at.vm.disk(target);
      if (iothread !== true) await at.vm.guestFlush(target);
      const file = at.directory.file(`${target}.moment.raw`);
      await copyToRaw(path, format, file);
      return fileDigest(file);
    },
    backUp: () => at.json<Backup>("backup", "run", "vm"),
    /** Verified, and what a restore of each disk brings back. */
    restored: async (id: string): Promise<string[]> => {
      await at.json("backup", "verify", id);
      const to = at.directory.file(`restored-${id}`);
      await at.json("backup", "restore", id, "--to", to, "--format", "raw");
      return Promise.all(disks.map(({ target }) => fileDigest(`${to}/${target}.raw`)));
    },
  };
}

/** Takes a backup in this process, under a watch that looks as often as it can. */
async function backUpHere(at: Site, onProgress?: (progress: BackupProgress) => void, signal?: AbortSignal) {
  const context = await startAgent(await loadConfig(at.configPath), quiet);
  const sleep = (_ms: number, stop: AbortSignal) => delay(20, undefined, { signal: stop });
  const request = { domain: "vm", ...(onProgress === undefined ? {} : { onProgress }) };
  return runBackup(
    { ...context, clock: { ...systemClock, sleep } },
    { ...request, ...(signal === undefined ? {} : { signal }) },
  );
}

/** Waits for QEMU to copy as many large disks as that, and slows it down; resolves with the jobs' ids. */
async function slowDown(at: Site, count = 1): Promise<string[]> {
  const slowed = new Set<string>();
  while (slowed.size < count) {
    const jobs = (await at.vm.qmp("query-block-jobs")) as { device: string; len: number }[];
    for (const { device } of jobs.filter((job) => !slowed.has(job.device) && job.len > 8 * MIB)) {
      await at.vm.qmp("block-job-set-speed", { device, speed: SLOW });
      slowed.add(device);
    }
  }
  return [...slowed];
}

async function guestWrites(at: Site, length: number, pattern: number): Promise<void> {
  expect(await at.vm.guestWrite("vda", 0, length, pattern)).toMatchObject({ ok: true });
  expect(await at.vm.guestRead("vda", 0, length, pattern)).toMatchObject({ ok: true });
}

/** Process ids of the storage daemons of a site. */
async function daemons(at: Site): Promise<number[]> {
  const names = await readdir(at.directory.file("run")).catch(() => []);
  const found = await Promise.all(names.map((name) => findDaemons(at.directory.file(`run/${name}`))));
  return found.flat().map(({ pid }) => pid);
}

async function expectNothingLeft(at: Site): Promise<void> {
  expect(await readdir(at.directory.file("scratch"))).toEqual([]);
  expect(await daemons(at)).toEqual([]);
  expect(await readdir(at.directory.file("run"))).toEqual([]);
  expect(await readdir(at.directory.file("state/operations/vm"))).toEqual([]);
  const backups = await readdir(at.directory.file("backups/vm"));
  expect(backups.filter((name) => name.startsWith(".partial"))).toEqual([]);
  const { nodes, devices, bitmaps, exports, jobs } = await at.vm.blockState();
  expect([...nodes, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
  expect(bitmaps.filter(({ name }) => !name.startsWith("fleece:1:"))).toEqual([]);
  expect([...exports, ...jobs]).toEqual([]);
}

describe("a backup of disks that must be staged", () => {
  it("holds the frozen moment, in full and incrementally, with zeroed and discarded regions as zero clusters", async () => {
    const vda = { ...qcow2, target: "vda", sizeBytes: 8 * MIB + 35 * 512, filledBytes: 4 * MIB };
    const at = await startPushed([vda, IN_IOTHREAD]);
    // Data that is zero, and a last block that is short.
    await at.vm.guestWrite("vda", 5 * MIB, 2 * BLOCK, 0);
    await at.vm.guestWrite("vda", 8 * MIB, 35 * 512, 0x33);
    const first = [await at.moment("vda"), await at.moment("vdb")];
    const full = await at.backUp();
    expect(await at.restored(full.id)).toEqual(first);
    const stored = 4 * MIB + 35 * 512;
    expect(full.disks[0]).toMatchObject({ readBytes: `${stored}`, storedBytes: `${stored}` });
    expect(full.disks[1]).toMatchObject({ readBytes: `${MIB}`, storedBytes: `${MIB}` });

    await at.vm.guestWrite("vda", 5 * BLOCK + 100, BLOCK, 0x77);
    await at.vm.guestDiscard("vda", 20 * BLOCK, 2 * BLOCK);
    await at.vm.guestWriteZeroes("vda", 30 * BLOCK, BLOCK);
    await at.vm.guestWriteZeroes("vda", 32 * BLOCK, BLOCK, { unmap: true });
    await at.vm.guestWrite("vda", 34 * BLOCK, BLOCK, 0);
    await at.vm.guestWrite("vda", 36 * BLOCK + 512, 1024, 0);
    await at.vm.guestWriteZeroes("vda", 8 * MIB, 35 * 512);
    const second = [await at.moment("vda"), await at.moment("vdb")];
    const next = await at.backUp();
    expect(next.level).toBe("INCREMENTAL");
    expect(await at.restored(next.id)).toEqual(second);
    expect(second[0]).not.toBe(first[0]);
    expect(next.disks[0]).toMatchObject({
      mode: "CHANGES",
      readBytes: `${3 * BLOCK}`,
      storedBytes: `${3 * BLOCK}`,
      zeroBytes: `${5 * BLOCK + 35 * 512}`,
    });
    expect(next.disks[1]).toMatchObject({ readBytes: "0", storedBytes: "0", zeroBytes: "0" });
    const map = await imageMap(at.directory.file(`backups/vm/${next.id}/vda.qcow2`), "qcow2");
    const own = (zero: boolean) =>
      map
        .filter((range) => range.depth === 0 && range.zero === zero)
        .flatMap(({ offset, length }) =>
          Array.from({ length: Math.ceil(length / BLOCK) }, (_, index) => offset / BLOCK + index),
        );
    expect(own(false)).toEqual([5, 6, 36]);
    expect(own(true)).toEqual([20, 21, 30, 32, 34, 128]);
    await expectNothingLeft(at);
  });

  it("compares what was lost track of, and pushes the rest, in one backup", async () => {
    const raw: SiteDisk = { target: "vdc", format: "raw", sizeBytes: 4 * MIB, filledBytes: 2 * MIB };
    const vda = { ...qcow2, target: "vda", sizeBytes: 4 * MIB, filledBytes: 4 * MIB };
    const at = await startPushed([vda, IN_IOTHREAD, raw]);
    await at.backUp();
    // A raw disk's bitmaps end with the process.
    await at.vm.restart();
    await at.vm.guestWrite("vda", 3 * BLOCK, BLOCK, 0x44);
    await at.vm.guestWrite("vdc", 7 * BLOCK, BLOCK, 0x45);
    await at.vm.guestDiscard("vdc", 9 * BLOCK, BLOCK);
    const moments = [await at.moment("vda"), await at.moment("vdb"), await at.moment("vdc")];
    const next = await at.backUp();
    expect(next.disks).toMatchObject([{ mode: "CHANGES" }, { mode: "CHANGES" }, { mode: "COMPARE" }]);
    expect(next.disks[0]).toMatchObject({ storedBytes: `${BLOCK}`, zeroBytes: "0" });
    expect(next.disks[2]).toMatchObject({ storedBytes: `${BLOCK}`, zeroBytes: `${BLOCK}` });
    expect(await at.restored(next.id)).toEqual(moments);
    await expectNothingLeft(at);
  });

  it("shows how far QEMU has come, takes scratch space for the guest's writes alone, and copies disks side by side", async () => {
    const at = await startPushed([BIG, { ...BIG, target: "vdb", iothread: true }]);
    const moments = [await at.moment("vda"), await at.moment("vdb")];
    const seen: Extract<BackupProgress, { step: "disk" }>[] = [];
    const scratch: number[] = [];
    const backup = backUpHere(at, (progress) => {
      if (progress.step === "disk") seen.push(progress);
      else if (progress.step === "scratch") scratch.push(progress.usedBytes);
    });
    const jobs = await slowDown(at, 2);
    await guestWrites(at, 3 * MIB, 0xee);
    const whileCopying = (target: string) =>
      seen.filter((each) => each.target === target && each.positionBytes > 0 && each.storedBytes === 0);
    while (whileCopying("vda").length < 2 || whileCopying("vdb").length < 2 || scratch.length < 10) {
      await delay(20);
    }
    const files = await readdir(at.directory.file("scratch"));
    expect(files).toHaveLength(2);
    expect(files.filter((file) => file.startsWith("staged"))).toEqual([]);
    expect(Math.max(...scratch)).toBeLessThan(8 * MIB);
    for (const device of jobs) await at.vm.qmp("block-job-set-speed", { device, speed: FULL_SPEED });
    const { manifest, id } = await backup;
    expect(manifest.scratchPeakBytes).toBeGreaterThanOrEqual(3 * MIB);
    for (const target of ["vda", "vdb"]) {
      const all = seen.filter((each) => each.target === target);
      for (const [index, { positionBytes, readBytes }] of all.entries()) {
        expect(readBytes).toBeGreaterThanOrEqual(all[index - 1]?.readBytes ?? 0);
        if (positionBytes <= BIG.sizeBytes / 2) {
          expect(positionBytes).toBeGreaterThanOrEqual(all[index - 1]?.positionBytes ?? 0);
        }
      }
      expect(all.at(-1)).toMatchObject({ positionBytes: BIG.sizeBytes, storedBytes: BIG.sizeBytes });
    }
    expect(await at.restored(id)).toEqual(moments);
    await expectNothingLeft(at);
  });
});

describe("trouble while QEMU copies a disk into a backup", () => {
  it("is the limit of scratch space of one disk, which QEMU holds: the backup says so, and the guest writes on", async () => {
    const at = await startPushed([BIG, IN_IOTHREAD], { limit: "1M" });
    const backup = backUpHere(at).catch((error: unknown) => error);
    await slowDown(at);
    // Not where it has read already.
    expect(await at.vm.guestWrite("vda", 160 * MIB, 4 * MIB, 0xee)).toMatchObject({ ok: true });
    expect(await backup).toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringMatching(
        /disk vda is gone: its scratch space reached the limit of 1 MiB/,
      ) as string,
    });
    await guestWrites(at, 8 * MIB, 0xed);
    await expectNothingLeft(at);
  });

  it("is the limit of all disks together, which the watch holds at once, and the guest writes on", async () => {
    const vdc = { ...BIG, target: "vdc" };
    const at = await startPushed([BIG, IN_IOTHREAD, vdc], { limit: "3M" });
    const backup = backUpHere(at).catch((error: unknown) => error);
    await slowDown(at, 2);
    expect(await at.vm.guestWrite("vda", 160 * MIB, 2 * MIB, 0xee)).toMatchObject({ ok: true });
    expect(await at.vm.guestWrite("vdc", 160 * MIB, 2 * MIB, 0xee)).toMatchObject({ ok: true });
    expect(await backup).toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringMatching(
        /given up: its scratch space of .* is over the limit of 3 MiB/,
      ) as string,
    });
    await guestWrites(at, 8 * MIB, 0xed);
    await expectNothingLeft(at);
  });

  it("may be two that take a filter away at once, which QEMU would not survive", async () => {
    const at = await startPushed([{ ...BIG, sizeBytes: MIB, filledBytes: MIB }]);
    const context = await startAgent(await loadConfig(at.configPath), quiet);
    const driver = await context.drivers.open("vm");
    const state = await driver.inspect();
    const scratchDir = at.directory.file("scratch");
    const plan = planSnapshot(state, { id: "abcdefgh", targets: ["vda"], scratchDir });
    const log = new MemoryUndoLog();
    await driver.freeze(plan, log);
    // What is on the filter: its view, and the guard of the disk's size.
    const inQemu = log.entries.filter(isQemuEntry);
    for (const entry of inQemu.filter(({ kind }) => kind === "vm-node").slice(-2)) await driver.undo(entry);
    const filters = inQemu.filter(({ kind }) => kind === "vm-filter");
    await Promise.all([...filters, ...filters, ...filters].map((entry) => driver.undo(entry)));
    await guestWrites(at, MIB, 0xed);
    const { devices } = await at.vm.blockState();
    expect(devices.filter((device) => device.includes("fleece"))).toEqual([]);
    await driver.close();
  });

  it("is a cancellation: QEMU stops copying, and nothing is left", async () => {
    const at = await startPushed([BIG, IN_IOTHREAD]);
    const enough = new AbortController();
    const reason = new Error("Enough");
    const backup = backUpHere(at, undefined, enough.signal).catch((error: unknown) => error);
    await slowDown(at);
    enough.abort(reason);
    expect(await backup).toBe(reason);
    await guestWrites(at, MIB, 0xed);
    await expectNothingLeft(at);
  });

  it.each(["agent", "daemon"])(
    "is the death of the %s: the guest goes on, and the next backup is exact",
    async (who) => {
      const at = await startPushed([BIG, IN_IOTHREAD]);
      const command = await at.start("backup", "run", "vm");
      await slowDown(at);
      if (who === "agent") await command.kill("SIGKILL");
      else {
        for (const pid of await daemons(at)) process.kill(pid, "SIGKILL");
        const result = await command.result();
        expect(result.stderr).toMatch(/qemu-storage-daemon was ended by SIGKILL \(QEMU_FAILED\)/);
        expect(result.exitCode).toBe(1);
        await expectNothingLeft(at);
      }
      await guestWrites(at, MIB, 0xed);
      // Any command that changes the domain puts it in order first.
      if (who === "agent") {
        await at.json("block-snapshot", "create", "vm", "--name", "after");
        await at.json("block-snapshot", "delete", "vm", "after");
        await expectNothingLeft(at);
      }
      const moments = [await at.moment("vda"), await at.moment("vdb")];
      const { id } = await at.backUp();
      expect(await at.restored(id)).toEqual(moments);
      await expectNothingLeft(at);
    },
  );

  it("is a repository that is full (needs root for a mount)", async ({ skip }) => {
    const at = await startPushed([BIG, IN_IOTHREAD]);
    if (!(await mountTmpfs(at.directory.file("backups"), "size=32m"))) skip("mount is not permitted here");
    const result = await at.run("backup", "run", "vm");
    expect(result.stderr).toMatch(/no space left on device \(NO_SPACE\)/i);
    await guestWrites(at, MIB, 0xed);
    await expectNothingLeft(at);
  });
});
