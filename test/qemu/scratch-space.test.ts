import { readdir, stat } from "node:fs/promises";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { systemClock } from "../../src/drivers/system-clock.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { BlockReader } from "../../src/ports/block-io.js";
import { restoreBackup } from "../../src/services/backup-read.js";
import { runBackup } from "../../src/services/backup-run.js";
import type { ServiceContext } from "../../src/services/context.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";
import type { JsonObject } from "../support/monitor.js";
import { mountTmpfs } from "../support/mount.js";
import { startSite, type Site, type SiteOptions } from "../support/site.js";

const MIB = 1024 * 1024;

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined };

/** The services in this process, with a watch that looks as often as it can. */
async function startServices(scratch: JsonObject | undefined, options: SiteOptions = {}) {
  const site = await startSite(options);
  const more = { runtimeDir: site.directory.file("run"), ...(scratch === undefined ? {} : { scratch }) };

  await writeConfig(site.directory.path, { domains: [domainConfig("vm", site.vm)], more });
  const context = await startAgent(await loadConfig(site.configPath), quiet);
  const clock = {
    ...systemClock,
    sleep: (_ms: number, signal: AbortSignal) => delay(20, undefined, { signal }),
  };
  return { ...site, context: { ...context, clock } };
}

type Read = BlockReader["read"];

/** The same services, but what is read passes `read`. */
function withReads(
  context: ServiceContext,
  read: (original: Read, ...args: Parameters<Read>) => ReturnType<Read>,
) {
  return {
    ...context,
    readers: {
      open: async (...args: Parameters<ServiceContext["readers"]["open"]>) => {
        const reader = await context.readers.open(...args);
        const original: Read = (...request) => reader.read(...request);
        return {
          sizeBytes: reader.sizeBytes,
          extents: (signal) => reader.extents(signal),
          read: (...request) => read(original, ...request),
          release: (...request) => reader.release(...request),
          close: () => reader.close(),
          [Symbol.asyncDispose]: () => reader.close(),
        } satisfies BlockReader;
      },
    },
  };
}

/** Never reads anything: a backup with it can end in no other way than by its signal. */
function withStuckReads(context: ServiceContext, onFirst: () => Promise<void>): ServiceContext {
  let first: Promise<void> | undefined;
  return withReads(context, async (_original, _offset, _length, signal) => {
    await (first ??= onFirst());
    return new Promise((_resolve, reject) => {
      const fail = (): void => reject(signal?.reason instanceof Error ? signal.reason : new Error("Aborted"));
      if (signal?.aborted === true) fail();
      else signal?.addEventListener("abort", fail);
    });
  });
}

async function guestWrites({ vm }: Pick<Site, "vm">, target: string, length: number, pattern: number) {
  expect(await vm.guestWrite(target, 0, length, pattern)).toMatchObject({ ok: true });
  expect(await vm.guestRead(target, 0, length, pattern)).toMatchObject({ ok: true });
}

/** The guest has its disks to itself, and no trace of the backup is left. */
async function expectNothingLeft(at: Site): Promise<void> {
  const { nodes, exports, bitmaps } = await at.vm.blockState();
  expect([...nodes, ...exports].filter((item) => item.includes("fleece"))).toEqual([]);
  expect(bitmaps).toEqual([]);
  expect(await readdir(at.directory.file("scratch"))).toEqual([]);
}

describe("the limit of scratch space", () => {
  it("is held by QEMU without a process of ours: the guest writes on, and the snapshot says why it is broken", async () => {
    const at = await startServices({ limit: "1M" });
    await at.json("block-snapshot", "create", "vm", "--name", "night", "--checkpoint");
    await at.json("export", "start", "vm", "--snapshot", "night");
    await guestWrites(at, "vda", 4 * MIB, 0xee);
    const shown = await at.json<Record<string, string>>("block-snapshot", "show", "vm", "night");
    expect(shown["scratchLimitBytes"]).toBe(String(MIB));
    expect(Number(shown["scratchUsedBytes"])).toBeGreaterThan(0);
    for (const file of await readdir(at.directory.file("scratch"))) {
      expect((await stat(at.directory.file(`scratch/${file}`))).size).toBeLessThanOrEqual(MIB);
    }
    const result = await at.run("block-snapshot", "delete", "vm", "night");
    expect(result.stderr).toMatch(
      /disk vda is gone: its scratch space reached the limit of 1 MiB.*\(SNAPSHOT_BROKEN\)/,
    );
    expect(result.exitCode).toBe(1);
    await guestWrites(at, "vda", 8 * MIB, 0xed);
    await expectNothingLeft(at);
  });

  it("is no trouble below it: the snapshot is intact, and the limit of a domain wins", async () => {
    const at = await startServices({ limit: "1M" });

    const domain = { ...domainConfig("vm", at.vm), scratch: { limit: "6M" } };
    await writeConfig(at.directory.path, {
      domains: [domain],
      more: { runtimeDir: at.directory.file("run"), scratch: { limit: "1M" } },
    });
    await at.json("block-snapshot", "create", "vm", "--name", "night");
    await at.json("export", "start", "vm", "--snapshot", "night");
    await guestWrites(at, "vda", 4 * MIB, 0xee);
    const shown = await at.json<Record<string, string>>("block-snapshot", "show", "vm", "night");
    expect(shown["scratchLimitBytes"]).toBe(String(6 * MIB));
    expect(Number(shown["scratchUsedBytes"])).toBeGreaterThan(4 * MIB);
    await at.json("block-snapshot", "delete", "vm", "night");
    await expectNothingLeft(at);
  });

  it("ends a backup at once when QEMU has refused a write beyond it", async () => {
    const at = await startServices({ limit: "1M" });
    const context = withStuckReads(at.context, () => guestWrites(at, "vda", 4 * MIB, 0xee));
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringContaining("its scratch space reached the limit of 1 MiB") as string,
    });
    await expectNothingLeft(at);
  });

  it("holds for all disks together while a backup is taken", async () => {
    const at = await startServices({ limit: "3M" });
    const context = withStuckReads(at.context, async () => {
      await guestWrites(at, "vda", 2 * MIB, 0xee);
      await guestWrites(at, "vdb", 2 * MIB, 0xee);
    });
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringMatching(
        /given up: its scratch space of 4\.\d MiB is over the limit of 3 MiB/,
      ) as string,
    });
    await guestWrites(at, "vda", 8 * MIB, 0xed);
    await expectNothingLeft(at);
  });
});

describe("the reserve of the scratch directory", () => {
  it("refuses a snapshot and a backup when less is free", async () => {
    const at = await startServices({ reserve: "4096T" });
    const before = await at.state();
    for (const args of [
      ["backup", "run", "vm"],
      ["block-snapshot", "create", "vm"],
    ]) {
      const result = await at.run(...args);
      expect(result.stderr).toMatch(/has .* free, which is less than the reserve of 4096 TiB.*\(NO_SPACE\)/);
      expect(result.exitCode).toBe(1);
    }
    expect(await at.state()).toEqual(before);
  });

  it("ends a backup when the guest's writes use it up, and the guest goes on (needs root for a mount)", async ({
    skip,
  }) => {
    const at = await startServices({ reserve: "5M" });
    if (!(await mountTmpfs(at.directory.file("scratch"), "size=8m"))) skip("mount is not permitted here");
    const context = withStuckReads(at.context, () => guestWrites(at, "vda", 4 * MIB, 0xee));
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringMatching(
        /given up: .* MiB free, which is less than the reserve of 5 MiB/,
      ) as string,
    });
    await guestWrites(at, "vda", 8 * MIB, 0xed);
    await expectNothingLeft(at);
  });
});

describe("a scratch file system that is full", () => {
  it("ends a backup at once, and the guest goes on (needs root for a mount)", async ({ skip }) => {
    const at = await startServices(undefined);
    if (!(await mountTmpfs(at.directory.file("scratch"), "size=2m"))) skip("mount is not permitted here");
    const context = withStuckReads(at.context, () => guestWrites(at, "vda", 4 * MIB, 0xee));
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({
      code: "SNAPSHOT_BROKEN",
      message: expect.stringContaining("likely because scratch space ran out") as string,
    });
    await expectNothingLeft(at);
  });
});

describe("the time that a guest's write waits for scratch space", () => {
  it("is what QEMU can count, and the log says so where that is less than what is configured", async () => {
    const at = await startServices({ cbwTimeout: "9s" });
    const { major, minor } = (
      (await at.vm.qmp("query-version")) as { qemu: { major: number; minor: number } }
    ).qemu;
    const warnings: string[] = [];
    const warn = (_facts: object, message: string): void => void warnings.push(message);
    const context = await startAgent(await loadConfig(at.configPath), { ...quiet, warn });
    await runBackup(context, { domain: "vm" });
    const counts = major > 9 || (major === 9 && minor >= 1);
    expect(warnings).toEqual(
      counts ? [] : [expect.stringMatching(/waits at most 4 s for scratch space: QEMU \S+ miscounts more/)],
    );
  });
});

describe("what a backup has read", () => {
  const DISK_BYTES = 64 * MIB;
  const disks = [{ target: "vda", format: "qcow2", sizeBytes: DISK_BYTES, filledBytes: DISK_BYTES }] as const;

  async function usedBytes(at: Site): Promise<number> {
    const directory = at.directory.file("scratch");
    const files = await readdir(directory);
    const sizes = await Promise.all(
      files.map(async (file) => (await stat(path.join(directory, file))).blocks * 512),
    );
    return sizes.reduce((sum, size) => sum + size, 0);
  }

  it("takes no scratch space any more, although the guest rewrites the disk again and again", async () => {
    // Without giving up what was read, the limit would be reached in the middle.
    const at = await startServices({ limit: "24M" }, { disks });
    const moment = at.directory.file("moment.raw");
    await copyToRaw(at.directory.file("vda.qcow2"), "qcow2", moment);
    let turn: Promise<unknown> = Promise.resolve();
    let readBytes = 0;
    let lastUsedBytes = Infinity;
    // One read at a time, and before each the guest rewrites all that was read, and 8 MiB of what was not.
    const context = withReads(at.context, (original, ...request) => {
      const next = turn.then(async () => {
        const length = Math.min(DISK_BYTES, readBytes + 8 * MIB);
        expect(await at.vm.guestWrite("vda", 0, length, 1 + ((readBytes / MIB) % 200))).toMatchObject({
          ok: true,
        });
        const content = await original(...request);
        readBytes += content.length;
        lastUsedBytes = await usedBytes(at);
        return content;
      });
      turn = next.catch(() => undefined);
      return next;
    });
    const entry = await runBackup(context, { domain: "vm" });
    expect(readBytes).toBe(DISK_BYTES);
    expect(lastUsedBytes).toBeLessThan(6 * MIB);
    expect(entry.manifest.scratchPeakBytes).toBeLessThan(24 * MIB);
    const to = at.directory.file("restored");
    await restoreBackup(at.context, { id: entry.id, directory: to, format: "raw" });
    expect(await fileDigest(`${to}/vda.raw`)).toBe(await fileDigest(moment));
    await at.vm.guestFlush("vda");
    expect(await readdir(at.directory.file("scratch"))).toEqual([]);
  });

  it("is right although the guest writes, zeroes and discards across all boundaries meanwhile", async () => {
    const at = await startServices(undefined, { disks });
    let stop = false;
    let writes = 0;
    const disturb = async (): Promise<void> => {
      for (let random = 12345; !stop; writes++) {
        random = (random * 1103515245 + 12345) % 2 ** 31;
        const offset = 512 * (random % ((DISK_BYTES - MIB) / 512));
        const length = 512 * (1 + (random % 1500));
        const verdict = await [
          () => at.vm.guestWrite("vda", offset, length, 1 + (writes % 200)),
          () => at.vm.guestWriteZeroes("vda", offset, length, { unmap: writes % 2 === 0 }),
          () => at.vm.guestDiscard("vda", offset, length),
        ][writes % 3]?.();
        expect(verdict).toMatchObject({ ok: true });
      }
    };
    const check = async (level: "full" | "incremental"): Promise<void> => {
      const moment = at.directory.file("moment.raw");
      await at.vm.guestFlush("vda");
      await copyToRaw(at.directory.file("vda.qcow2"), "qcow2", moment);
      let disturbed: Promise<void> | undefined;
      const context = withReads(at.context, (original, ...request) => {
        disturbed ??= disturb();
        return original(...request);
      });
      stop = false;
      const entry = await runBackup(context, { domain: "vm", level }).finally(() => (stop = true));
      await disturbed;
      const to = at.directory.file(`restored-${entry.id}`);
      await restoreBackup(at.context, { id: entry.id, directory: to, format: "raw" });
      expect(await fileDigest(`${to}/vda.raw`), `${level} after ${writes} writes`).toBe(
        await fileDigest(moment),
      );
    };
    await check("full");
    await check("incremental");
    await check("incremental");
    expect(writes).toBeGreaterThan(10);
  });

  it("is given up in whole blocks alone: QEMU aborts at parts of them", async () => {
    const sizeBytes = 4 * MIB + 512;
    const at = await startServices(undefined, {
      disks: [{ target: "vda", format: "qcow2", sizeBytes, filledBytes: sizeBytes }],
    });
    const readers = {
      open: async (...args: Parameters<ServiceContext["readers"]["open"]>) => {
        const reader = await at.context.readers.open(...args);
        await reader.release(0, 512);
        await reader.release(BLOCK_SIZE, 512);
        await reader.release(BLOCK_SIZE + 512, BLOCK_SIZE);
        await reader.release(2 * BLOCK_SIZE - 512, BLOCK_SIZE);
        await reader.release(sizeBytes - 512, 512);
        return reader;
      },
    };
    const moment = at.directory.file("moment.raw");
    await copyToRaw(at.directory.file("vda.qcow2"), "qcow2", moment);
    const entry = await runBackup({ ...at.context, readers }, { domain: "vm" });
    await guestWrites(at, "vda", 4 * MIB, 0xed);
    const to = at.directory.file("restored");
    await restoreBackup(at.context, { id: entry.id, directory: to, format: "raw" });
    expect(await fileDigest(`${to}/vda.raw`)).toBe(await fileDigest(moment));
  });
});
