import { beforeAll, describe, expect, it } from "vitest";
import { buildGuest, type GuestFiles } from "../guest/build-guest.js";
import { runCommand } from "../guest/commands.js";
import { makeDataDisk } from "../guest/data-disk.js";
import { bootGuest } from "../guest/guest-vm.js";
import { copyToRaw, createImage, imageMap } from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";
import type { TestDisk } from "../support/vm-arguments.js";

const mebibyte = 1 << 20;
const timeoutMs = 120_000;

describe("the test guest", () => {
  let files: GuestFiles;
  beforeAll(async () => {
    files = await buildGuest();
  });

  async function makeDisks(directory: string): Promise<[TestDisk, TestDisk]> {
    const [data, idle] = [`${directory}/vda.qcow2`, `${directory}/vdb.qcow2`];
    await makeDataDisk(data, { sizeBytes: 256 * mebibyte, contentBytes: 16 * mebibyte });
    await createImage(idle, 64 * mebibyte);
    return [
      { target: "vda", path: data, format: "qcow2" },
      { target: "vdb", path: idle, format: "qcow2" },
    ];
  }

  it("works on its first disk, leaves the second alone and shuts down clean", async () => {
    const directory = await temporaryDirectory();
    const disks = await makeDisks(directory.path);
    const guest = untilTestEnds(
      await bootGuest({ files, directory: directory.path, disks, tickSeconds: 0.01 }),
    );
    expect(await guest.work(25, { timeoutMs })).toBeGreaterThanOrEqual(25);
    await guest.poweroff();

    const expected = /^(HELLO|READY|WORK|R|END) |reboot: Power down/;
    expect(guest.lines.filter((line) => !expected.test(line))).toEqual([]);
    expect((await imageMap(disks[1].path, "qcow2")).filter((range) => range.data)).toEqual([]);
    const raw = directory.file("vda.raw");
    await copyToRaw(disks[0].path, "qcow2", raw);
    expect((await runCommand("e2fsck", ["-f", "-n", raw])).toString()).toContain("Pass 5");
  });

  it("obeys commands, and goes on after a restart with what is on its disk", async () => {
    const directory = await temporaryDirectory();
    const disks = await makeDisks(directory.path);
    const guest = untilTestEnds(await bootGuest({ files, directory: directory.path, disks }));
    await guest.work(2, { timeoutMs });
    expect(await guest.command("pause")).toEqual({ exitStatus: 0, lines: [] });
    const counter = Number((await guest.command("cat /data/state/counter")).lines[0]);
    const sums = await guest.sums();
    expect(sums.get("./photos/photo-0001.jpg")).toMatch(/^[0-9a-f]{64}$/);
    expect((await guest.command("false")).exitStatus).toBe(1);
    await guest.poweroff();

    const after = guest.lines.length;
    await guest.restart();
    const [, work] = await guest.waitFor(/^READY work=(\d+)/, { timeoutMs, after });
    expect(Number(work)).toBe(counter);
    await guest.command("pause");
    const later = await guest.sums();
    expect(later.get("./photos/photo-0001.jpg")).toBe(sums.get("./photos/photo-0001.jpg"));
  });
});
