import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { BoundProcess } from "../support/bound-process.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { FleeceProcess } from "../support/fleece.js";
import {
  compareImages,
  createImage,
  fillImage,
  imageInfo,
  imageMap,
  readImage,
} from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";
import { TestVm } from "../support/vm.js";
import type { DiskBus, TestDisk } from "../support/vm-arguments.js";

const mebibyte = 1 << 20;
const sizeBytes = 16 * mebibyte;

async function makeDisk(
  directory: string,
  target: string,
  bus: DiskBus,
  iothread = false,
): Promise<TestDisk> {
  const path = `${directory}/${target}.qcow2`;
  await createImage(path, sizeBytes);
  return { target, path, format: "qcow2", bus, iothread };
}

describe("TestVm", () => {
  it.each<DiskBus>(["virtio-blk", "scsi", "ide"])("puts what the guest writes on a %s disk", async (bus) => {
    const directory = await temporaryDirectory();
    const disk = await makeDisk(directory.path, "disk0", bus);
    const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [disk] }));

    expect(await vm.guestWrite("disk0", mebibyte, mebibyte, 0x33)).toMatchObject({ ok: true });
    expect(await vm.guestRead("disk0", mebibyte, mebibyte, 0x33)).toMatchObject({ ok: true });
    expect(await vm.guestRead("disk0", mebibyte, mebibyte, 0x34)).toMatchObject({ ok: false });
    expect(await vm.guestWrite("disk0", sizeBytes, mebibyte, 1)).toMatchObject({ ok: false });
    await vm.quit();

    const expected = directory.file("expected.raw");
    await createImage(expected, sizeBytes, { format: "raw" });
    await fillImage(expected, "raw", { offset: mebibyte, length: mebibyte, pattern: 0x33 });
    expect(await compareImages(disk.path, "qcow2", expected, "raw")).toMatchObject({ identical: true });
    expect(await readImage(disk.path, "qcow2")).toEqual(await readImage(expected, "raw"));
  });

  it("unmaps what the guest discards", async () => {
    const directory = await temporaryDirectory();
    const disk = await makeDisk(directory.path, "disk0", "virtio-blk");
    const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [disk] }));
    await vm.guestWrite("disk0", 0, 4 * mebibyte, 0x55);
    await vm.guestDiscard("disk0", mebibyte, mebibyte);
    await vm.guestWriteZeroes("disk0", 2 * mebibyte, mebibyte, { unmap: true });
    await vm.quit();

    const dataRanges = (await imageMap(disk.path, "qcow2")).filter((range) => range.data);
    expect(dataRanges.map(({ offset, length }) => [offset, length])).toEqual([
      [0, mebibyte],
      [3 * mebibyte, mebibyte],
    ]);
    expect((await imageInfo(disk.path, "qcow2")).allocatedBytes).toBeLessThan(3 * mebibyte);
  });

  it("keeps persistent bitmaps over a clean restart and loses them with a kill", async () => {
    const directory = await temporaryDirectory();
    const disk = await makeDisk(directory.path, "disk0", "scsi");
    const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [disk] }));
    await vm.qmp("block-dirty-bitmap-add", { node: vm.nodeName("disk0"), name: "b", persistent: true });
    const before = await vm.blockState();
    expect(before.bitmaps).toMatchObject([{ name: "b", recording: true, persistent: true }]);

    await vm.restart();
    expect(await vm.blockState()).toEqual(before);
    await vm.kill();
    await vm.restart();
    expect((await vm.blockState()).bitmaps).toMatchObject([{ name: "b", inconsistent: true }]);
  });

  it("offers its disks with iothreads, and further QMP sockets", async () => {
    const directory = await temporaryDirectory();
    const disks = [
      await makeDisk(directory.path, "vda", "virtio-blk", true),
      await makeDisk(directory.path, "sda", "scsi", true),
    ];
    const vm = untilTestEnds(
      await TestVm.start({ directory: directory.path, disks, extraQmp: 1, paused: true }),
    );
    expect(await vm.blockState()).toMatchObject({
      objects: ["iothread-sda iothread", "iothread-vda iothread"],
    });
    expect(vm.extraQmpPaths).toHaveLength(1);
    await expect(vm.guestWrite("vda", 0, 512, 1)).rejects.toThrow("iothread");
  });

  it("says in QEMU's words why it cannot start", async () => {
    const directory = await temporaryDirectory();
    const disk = { target: "disk0", path: directory.file("none.qcow2"), format: "qcow2" } as const;
    await expect(TestVm.start({ directory: directory.path, disks: [disk] })).rejects.toThrow("none.qcow2");
  });

  it("is gone when the process that started it is killed", async () => {
    const directory = await temporaryDirectory();
    const script = fileURLToPath(new URL("../support/hold-vm.ts", import.meta.url));
    const holder = spawn(process.execPath, ["--import", "tsx", script, directory.path], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [line] = (await once(holder.stdout, "data")) as [Buffer];
    const pid = Number(line.toString());
    expect(await isRunning(pid)).toBe(true);
    holder.kill("SIGKILL");
    while (await isRunning(pid)) await delay(10);
    expect(await isRunning(pid)).toBe(false);
  });
});

describe("FleeceProcess", () => {
  it("lets a test wait for output and kill the command there", async () => {
    const script = "echo begun; echo '{}' >&2; sleep 60";
    const started = untilTestEnds(new FleeceProcess(await BoundProcess.start("sh", ["-c", script])));
    await started.waitForOutput(/beg(un)/, { timeoutMs: 60_000 });
    const result = await started.kill();
    expect(result).toMatchObject({ exitCode: null, signal: "SIGKILL", stdout: "begun\n" });
    expect(() => result.json()).toThrow("begun");
  });

  it("says what the command printed when it ends without the expected output", async () => {
    const started = untilTestEnds(new FleeceProcess(await BoundProcess.start("sh", ["-c", "echo other"])));
    await expect(started.waitForOutput(/begun/, { timeoutMs: 60_000 })).rejects.toThrow("other");
  });
});

describe("writeConfig", () => {
  it("writes the least configuration that works, with the VM's disks", async () => {
    const directory = await temporaryDirectory();
    const disk = await makeDisk(directory.path, "vda", "virtio-blk");
    const vm = { qmpPath: directory.file("vm.qmp"), disks: [disk] };
    const path = await writeConfig(directory.path, { domains: [domainConfig("web01", vm)] });
    expect(parse(await readFile(path, "utf8"))).toEqual({
      stateDir: directory.file("state"),
      scratchDir: directory.file("scratch"),
      domains: [
        {
          name: "web01",
          qmp: directory.file("vm.qmp"),
          disks: [{ target: "vda", file: disk.path, format: "qcow2" }],
        },
      ],
      repositories: [{ name: "default", path: directory.file("backups") }],
    });
  });
});

/** A zombie is not running: its parent may never collect it. */
async function isRunning(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return status !== "" && !/^\d+ \(.*\) [ZX]/.test(status);
}
