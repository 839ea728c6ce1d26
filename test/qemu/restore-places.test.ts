import { constants, mkdir, open, readdir, readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { BoundProcess } from "../support/bound-process.js";
import { copyToRaw, compareImages } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { loopDevice } from "../support/loop-device.js";
import { type Site, startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const DISK_BYTES = 8 * MIB;

interface Restored {
  readonly directory?: string;
  readonly disks: readonly { readonly target: string; readonly kind: string; readonly file: string }[];
}

/** With a backup of a full and an incremental, and the content that it must bring back. */
async function withBackup(): Promise<{ at: Site; id: string; content: Buffer }> {
  const at = await startSite();
  await at.json("backup", "run", "vm");
  await at.vm.guestWrite("vda", MIB, MIB, 0x77);
  await at.vm.guestWriteZeroes("vda", 2 * MIB, MIB);
  const { id } = await at.json<{ id: string }>("backup", "run", "vm");
  await at.vm.quit();
  await copyToRaw(at.directory.file("vda.qcow2"), "qcow2", at.directory.file("expected"));
  return { at, id, content: await readFile(at.directory.file("expected")) };
}

/** Full of what must not be there afterwards. */
async function filled(at: Site, name: string, sizeBytes: number): Promise<string> {
  await writeFile(at.directory.file(name), Buffer.alloc(sizeBytes, 0xee));
  return at.directory.file(name);
}

async function nbdkit(at: Site, ...args: string[]): Promise<string> {
  const socket = at.directory.file(`s${args.length}`);
  const server = await BoundProcess.start("nbdkit", ["--foreground", "--unix", socket, ...args]);
  untilTestEnds(server);
  await expect.poll(() => readdir(at.directory.path), { timeout: 20_000 }).toContain(`s${args.length}`);
  return `nbd+unix:///?socket=${socket}`;
}

describe("backup restore --disk TARGET=PLACE", () => {
  it("restores one disk to a file of a chosen name, and others to the directory", async () => {
    const { at, id } = await withBackup();
    const restored = await at.json<Restored>(
      ...["backup", "restore", id, "--to", at.directory.file("out"), "--format=raw"],
      ...["--disk", `vda=${at.directory.file("web01-root.img")}`],
    );
    expect(restored.disks).toMatchObject([
      { target: "vda", kind: "FILE", file: at.directory.file("web01-root.img") },
      { target: "vdb", kind: "FILE", file: at.directory.file("out/vdb.raw") },
    ]);
    expect(await readdir(at.directory.file("out"))).toEqual(["vdb.raw"]);
    const of = (target: string, file: string): ReturnType<typeof compareImages> =>
      compareImages(at.directory.file(`${target}.qcow2`), "qcow2", at.directory.file(file), "raw");
    expect((await of("vda", "web01-root.img")).identical).toBe(true);
    expect((await of("vdb", "out/vdb.raw")).identical).toBe(true);
    const again = await at.run(
      "backup",
      "restore",
      id,
      "--disk",
      `vda=${at.directory.file("web01-root.img")}`,
    );
    expect(again).toMatchObject({ exitCode: 4, stdout: "" });
    expect((await readdir(at.directory.path)).filter((name) => name.includes(".partial-"))).toEqual([]);
  });

  it("writes over a block device, zeroes included, and leaves what is beyond the disk", async ({ skip }) => {
    const { at, id, content } = await withBackup();
    const file = await filled(at, "device", DISK_BYTES + MIB);
    const device = await loopDevice(file);
    if (device === undefined) return skip("loop devices are not permitted here");
    const { stdout } = await at.run("backup", "restore", id, "--disk", `vda=${device}`);
    expect(stdout).toContain(`${device} (device)`);
    const found = await readFile(device);
    expect(found.subarray(0, DISK_BYTES).equals(content)).toBe(true);
    expect(found.subarray(DISK_BYTES).equals(Buffer.alloc(MIB, 0xee))).toBe(true);
  });

  it("writes to no device that is too small, in use, or not there", async ({ skip }) => {
    const { at, id } = await withBackup();
    const device = await loopDevice(await filled(at, "device", DISK_BYTES - MIB));
    if (device === undefined) return skip("loop devices are not permitted here");
    const restore = (place: string) => at.run("backup", "restore", id, "--disk", `vda=${place}`);
    const small = await restore(device);
    expect(small.exitCode).toBe(2);
    expect(small.stderr).toContain(`Expected at least ${DISK_BYTES} bytes for disk vda, ${device} has`);
    const holder = await open(device, constants.O_RDONLY | constants.O_EXCL);
    try {
      expect((await restore(device)).stderr).toContain("(DISK_IN_USE)");
    } finally {
      await holder.close();
    }
    expect((await restore("/dev/fleece-none")).stderr).toContain("(PATH_NOT_FOUND)");
    expect((await readFile(device)).equals(Buffer.alloc(DISK_BYTES - MIB, 0xee))).toBe(true);
  });

  it("writes over an NBD export, also of a server that knows no zeroes", async () => {
    const { at, id, content } = await withBackup();
    const file = await filled(at, "exported", DISK_BYTES);
    const uri = await nbdkit(at, "--filter=nozero", "file", file);
    const restored = await at.json<Restored>("backup", "restore", id, "--disk", `vda=${uri}`);
    expect(restored.disks).toMatchObject([{ target: "vda", kind: "NBD", file: uri, format: "RAW" }]);
    expect((await readFile(file)).equals(content)).toBe(true);
  });

  it("refuses an NBD export that is too small or read-only, and says which", async () => {
    const { at, id } = await withBackup();
    const small = await nbdkit(at, "memory", "1M");
    const fixed = await nbdkit(at, "--readonly", "memory", "16M");
    for (const [uri, words] of [
      [small, /Expected at least \d+ bytes for disk vda/],
      [fixed, /it is read-only/],
      ["nbd+unix:///?socket=/none", /NBD_FAILED/],
      ["nbd:none", /INVALID_ARGUMENT/],
    ] as const) {
      const { exitCode, stderr } = await at.run("backup", "restore", id, "--disk", `vda=${uri}`);
      expect(exitCode).not.toBe(0);
      expect(stderr).toMatch(words);
    }
  });

  it("says so when damage ends it after a device or export was begun", async () => {
    const { at, id } = await withBackup();
    const image = at.directory.file(`backups/vm/${id}/vda.qcow2`);
    const bytes = await readFile(image);
    const start = bytes.indexOf(Buffer.alloc(512, 0x77));
    bytes.fill(0x66, start, start + 512);
    await writeFile(image, bytes);
    const uri = await nbdkit(at, "memory", String(DISK_BYTES));
    const { exitCode, stderr } = await at.run("backup", "restore", id, "--disk", `vda=${uri}`);
    expect(exitCode).toBe(6);
    expect(stderr).toContain(`what was restored to ${uri} is not complete`);
  });

  it("asks for a directory where a disk has no place, and for none where all have", async () => {
    const { at, id } = await withBackup();
    await mkdir(at.directory.file("new"));
    const place = (target: string): string => `${target}=${at.directory.file(`new/${target}`)}`;
    for (const args of [
      [],
      ["--disk", "vda"],
      ["--disk", place("vda"), "--disk", "vdb"],
      ["--disk", place("vda"), "--disk", place("vdb"), "--to", at.directory.file("out")],
      ["--disk", place("vda"), "--disk", `${place("vda")}2`],
    ]) {
      expect(await at.run("backup", "restore", id, ...args)).toMatchObject({ exitCode: 2, stdout: "" });
    }
    expect(await readdir(at.directory.file("new"))).toEqual([]);
  });
});
