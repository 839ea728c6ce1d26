import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { mkdir, readdir, readFile, readlink } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { StorageDaemonImages } from "../../../src/drivers/images.js";
import { NbdReaderFactory } from "../../../src/drivers/nbd-io.js";
import { StorageDaemon } from "../../../src/drivers/storage-daemon.js";
import type { Extent } from "../../../src/model/extents.js";
import type { ExportAddress } from "../../../src/model/snapshot-plan.js";
import { createImage, fillImage, imageMap, readImage, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { mountRamfs } from "../../support/mount.js";
import { noise } from "./backup-fixture.js";

const MIB = 2 ** 20;
const SIZE = 8 * MIB;

/** A daemon with an image as node `disk`: 1 MiB of data at 1 MiB and at 4 MiB, the rest never written. */
async function daemonWithDisk(): Promise<{ daemon: StorageDaemon; directory: string }> {
  const { path } = await temporaryDirectory();
  const image = join(path, "disk.qcow2");
  await createImage(image, SIZE);
  for (const at of [1, 4]) await fillImage(image, "qcow2", { offset: at * MIB, length: MIB, pattern: 7 });
  const daemon = untilTestEnds(
    await StorageDaemon.start({ directory: join(path, "d"), lifetime: "process" }),
  );
  const file = { driver: "file", filename: image } as const;
  await daemon.execute("blockdev-add", { driver: "qcow2", "node-name": "disk", file });
  return { daemon, directory: path };
}

async function exportNode(daemon: StorageDaemon, node: string, bitmap?: string): Promise<ExportAddress> {
  await daemon.execute("block-export-add", {
    ...{ type: "nbd", id: "e", "node-name": node, name: "vda" },
    ...(bitmap === undefined ? {} : { bitmaps: [bitmap] }),
  });
  return {
    ...{ target: "vda", exportName: "vda", socketPath: daemon.nbdSocketPath, sizeBytes: SIZE },
    ...(bitmap === undefined ? {} : { changesContext: `qemu:dirty-bitmap:${bitmap}` }),
  };
}

async function allExtents(address: ExportAddress): Promise<Extent[]> {
  await using reader = await new NbdReaderFactory().open(address);
  const extents: Extent[] = [];
  for await (const extent of reader.extents()) extents.push(extent);
  return extents;
}

describe("NbdReaderFactory", () => {
  it("reports holes as zero and everything as changed when no checkpoint is asked about", async () => {
    const { daemon } = await daemonWithDisk();
    expect(await allExtents(await exportNode(daemon, "disk"))).toEqual([
      { offset: 0, length: MIB, changed: true, zero: true },
      { offset: MIB, length: MIB, changed: true, zero: false },
      { offset: 2 * MIB, length: 2 * MIB, changed: true, zero: true },
      { offset: 4 * MIB, length: MIB, changed: true, zero: false },
      { offset: 5 * MIB, length: 3 * MIB, changed: true, zero: true },
    ]);
  });

  it("reports what a bitmap has as changed, also where that is zero now", async () => {
    const { path } = await temporaryDirectory();
    const image = join(path, "disk.qcow2");
    await createImage(image, SIZE);
    const { changeImageBitmap } = await import("../../../src/drivers/qemu-tools.js");
    await fillImage(image, "qcow2", { offset: MIB, length: 2 * MIB, pattern: 7 });
    await changeImageBitmap(image, { action: "add", bitmap: "b", persistent: true, granularityBytes: 65536 });
    await writeImage(image, "qcow2", `write -z ${2 * MIB} ${MIB}`, `write -P 9 ${5 * MIB} ${MIB}`);
    const daemon = untilTestEnds(
      await StorageDaemon.start({ directory: join(path, "d"), lifetime: "process" }),
    );
    const common = { "read-only": true } as const;
    const file = { ...common, driver: "file", filename: image } as const;
    await daemon.execute("blockdev-add", { ...common, driver: "qcow2", "node-name": "disk", file });
    expect(await allExtents(await exportNode(daemon, "disk", "b"))).toEqual([
      { offset: 0, length: MIB, changed: false, zero: true },
      { offset: MIB, length: MIB, changed: false, zero: false },
      { offset: 2 * MIB, length: MIB, changed: true, zero: true },
      { offset: 3 * MIB, length: 2 * MIB, changed: false, zero: true },
      { offset: 5 * MIB, length: MIB, changed: true, zero: false },
      { offset: 6 * MIB, length: 2 * MIB, changed: false, zero: true },
    ]);
  });

  it("fails when the export lacks the changes or has another size", async () => {
    const { daemon } = await daemonWithDisk();
    const address = await exportNode(daemon, "disk");
    const readers = new NbdReaderFactory();
    const changesContext = "qemu:dirty-bitmap:none";
    await expect(readers.open({ ...address, changesContext })).rejects.toMatchObject({ code: "NBD_FAILED" });
    await expect(readers.open({ ...address, sizeBytes: SIZE * 2 })).rejects.toThrow(/Expected disk vda with/);
    await expect(readers.open({ ...address, exportName: "x" })).rejects.toMatchObject({ code: "NBD_FAILED" });
  });

  it("says SNAPSHOT_BROKEN where a filter has not preserved what is read", async () => {
    const { daemon, directory } = await daemonWithDisk();
    await createImage(join(directory, "scratch"), SIZE);
    const file = { driver: "file", filename: join(directory, "scratch") } as const;
    await daemon.execute("blockdev-add", { driver: "qcow2", "node-name": "scratch", file });
    await daemon.execute("block-dirty-bitmap-add", { node: "disk", name: "nothing", disabled: true });
    await daemon.execute("blockdev-add", {
      ...{ driver: "copy-before-write", "node-name": "filter", file: "disk", target: "scratch" },
      bitmap: { node: "disk", name: "nothing" },
    });
    await daemon.execute("blockdev-add", {
      driver: "snapshot-access",
      "node-name": "access",
      file: "filter",
    });
    await using reader = await new NbdReaderFactory().open(await exportNode(daemon, "access"));
    await expect(reader.read(0, 4096)).rejects.toMatchObject({ code: "SNAPSHOT_BROKEN" });
  });

  it("says NBD_FAILED when the server is killed under a reader", async () => {
    const { daemon } = await daemonWithDisk();
    const reader = untilTestEnds(await new NbdReaderFactory().open(await exportNode(daemon, "disk")));
    expect(await reader.read(MIB, 4)).toEqual(Buffer.alloc(4, 7));
    process.kill(daemon.pid, "SIGKILL");
    await daemon.ended;
    await expect(reader.read(0, 4096)).rejects.toMatchObject({ code: "NBD_FAILED" });
  });

  it("throws the reason of an abort", async () => {
    const { daemon } = await daemonWithDisk();
    const address = await exportNode(daemon, "disk");
    const reason = new Error("enough");
    const signal = AbortSignal.abort(reason);
    await expect(new NbdReaderFactory().open(address, signal)).rejects.toBe(reason);
    await using reader = await new NbdReaderFactory().open(address);
    await expect(reader.read(0, 4096, signal)).rejects.toBe(reason);
  });
});

/** Whether somebody has the file open with O_DIRECT (proc(5), /proc/pid/fdinfo). */
async function isOpenPastCache(path: string): Promise<boolean> {
  const found: boolean[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      if ((await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")) !== path) continue;
      const flags = /^flags:\s*(\d+)/m.exec(await readFile(`/proc/${pid}/fdinfo/${fd}`, "utf8"))?.[1] ?? "";
      found.push((Number.parseInt(flags, 8) & constants.O_DIRECT) !== 0);
    }
  }
  expect(found).not.toEqual([]);
  return found.includes(true);
}

describe("StorageDaemonImages", () => {
  it("writes past the page cache what nobody reads back, where the file system can", async (context) => {
    const { path } = await temporaryDirectory();
    const factory = new StorageDaemonImages({ runtimeRoot: join(path, "run") });
    const ramfs = join(path, "ramfs");
    await mkdir(ramfs);
    if (!(await mountRamfs(ramfs))) context.skip("this user may not mount");
    const cases = [
      { name: "plain", past: true },
      { name: "pushed", pushed: true, past: false },
      { name: "compressed", compressed: true, sizeBytes: SIZE, past: false },
      { name: "ramfs/plain", past: false },
    ] as const;
    for (const { name, past, ...shape } of cases) {
      // Ends within a sector of most disks.
      const odd = { target: "vda", path: join(path, name), format: "qcow2", sizeBytes: SIZE + 512 } as const;
      const image = { ...odd, ...shape };
      await using images = await factory.create([image]);
      expect({ name, past: await isOpenPastCache(image.path) }).toEqual({ name, past });
      const content = Buffer.alloc(image.sizeBytes);
      for (const offset of [MIB, image.sizeBytes - 65536 - (image.sizeBytes % 65536)]) {
        const data = noise(Math.min(MIB, image.sizeBytes - offset), offset);
        data.copy(content, offset);
        await images.writer("vda").write(offset, data);
      }
      await images.finish();
      const digest = createHash("sha256").update(content).digest("hex");
      expect((await readImage(image.path, "qcow2")).digest, name).toBe(digest);
    }
  });

  it("hides a parent's data by explicit zeroes without ever opening the parent", async () => {
    const { path } = await temporaryDirectory();
    const size = SIZE + 3 * 512;
    const factory = new StorageDaemonImages({ runtimeRoot: join(path, "run") });
    const image = join(path, "child");
    await using images = await factory.create([
      { target: "vda", path: image, format: "qcow2", sizeBytes: size, backing: "parent" },
    ]);
    const writer = images.writer("vda");
    await writer.write(65536, noise(65536, 1));
    await writer.writeZeroes(0, 4 * 65536);
    await writer.writeZeroes(SIZE, 3 * 512);
    await images.finish();
    // Only now there is a parent.
    await createImage(join(path, "parent"), size);
    await fillImage(join(path, "parent"), "qcow2", { offset: 0, length: size, pattern: 7 });
    expect((await imageMap(image, "qcow2")).map(({ offset, zero, depth }) => [offset, zero, depth])).toEqual([
      [0, true, 0],
      [4 * 65536, false, 1],
      [SIZE, true, 0],
    ]);
  });

  it("writes raw images too, and leaves nothing when one of several cannot be made", async () => {
    const { path } = await temporaryDirectory();
    const factory = new StorageDaemonImages({ runtimeRoot: join(path, "run") });
    const raw = { target: "vda", path: join(path, "a,b.raw"), format: "raw", sizeBytes: SIZE } as const;
    const taken = { target: "vdb", path, format: "qcow2", sizeBytes: SIZE } as const;
    await expect(factory.create([raw, taken])).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
    await using images = await factory.create([raw]);
    await images.writer("vda").write(MIB, noise(MIB, 2));
    await images.finish();
    const content = Buffer.alloc(SIZE);
    noise(MIB, 2).copy(content, MIB);
    expect((await readFile(raw.path)).equals(content)).toBe(true);
    expect(await readdir(join(path, "run"))).toEqual([]);
  });
});
