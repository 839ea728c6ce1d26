import { lstat, readdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { changeImageBitmap, createImage, imageInfo, runTool } from "../../../src/drivers/qemu-tools.js";
import { StorageDaemon } from "../../../src/drivers/storage-daemon.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

/** What QEMU would take for options, a protocol or a pseudo-protocol if it could. */
const HOSTILE_NAMES = ["a,b=c:d e.qcow2", "json:{}", "nbd:x", "-f", "ä\n.qcow2"];
const SIZE = 10 * 2 ** 20 + 512;

describe("createImage", () => {
  it.each(HOSTILE_NAMES)("makes a private qcow2 image called %j", async (name) => {
    const { path } = await temporaryDirectory();
    const image = join(path, name);
    await createImage({ path: image, format: "qcow2", sizeBytes: SIZE });
    expect(await readdir(path)).toEqual([name]);
    expect((await lstat(image)).mode & 0o777).toBe(0o600);
    expect(await imageInfo(image, "qcow2")).toMatchObject({ sizeBytes: SIZE, bitmaps: [] });
    await changeImageBitmap(image, { action: "add", bitmap: "x", persistent: true, granularityBytes: 65536 });
    expect((await imageInfo(image, "qcow2")).bitmaps).toHaveLength(1);
  });

  it("makes a raw image", async () => {
    const { path } = await temporaryDirectory();
    await createImage({ path: join(path, "x.raw"), format: "raw", sizeBytes: SIZE });
    expect((await lstat(join(path, "x.raw"))).size).toBe(SIZE);
  });

  it("writes the name of a backing file that need not exist", async () => {
    const { path } = await temporaryDirectory();
    const options = { path: join(path, "x"), format: "qcow2", sizeBytes: SIZE } as const;
    await createImage({ ...options, backing: "../a:b,c/vda.qcow2" });
    expect(await imageInfo(join(path, "x"), "qcow2")).toMatchObject({
      backingFile: "../a:b,c/vda.qcow2",
      backingFormat: "qcow2",
    });
  });

  it("refuses what exists, and never follows a link", async () => {
    const { path } = await temporaryDirectory();
    await symlink(join(path, "elsewhere"), join(path, "link"));
    await writeFile(join(path, "file"), "");
    for (const name of ["link", "file"]) {
      const options = { path: join(path, name), format: "qcow2", sizeBytes: SIZE } as const;
      await expect(createImage(options)).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
    }
    expect(await readdir(path)).toEqual(["file", "link"]);
  });

  const sizes = [512, 2 ** 29, 2 ** 29 + 512, 2 ** 43 + 512, 2 ** 51];
  it.each(sizes)(
    "makes the qcow2 image of %d bytes that qemu-img makes, without its unused clusters",
    async (sizeBytes) => {
      const { path } = await temporaryDirectory();
      const [ours, theirs] = [join(path, "ours"), join(path, "theirs")];
      await createImage({ path: ours, format: "qcow2", sizeBytes, backing: "base" });
      await runTool("qemu-img", [
        "create",
        "-q",
        "-u",
        "-F",
        "qcow2",
        "-b",
        "base",
        "-f",
        "qcow2",
        theirs,
        String(sizeBytes),
      ]);
      const facts = async (image: string): Promise<unknown> => {
        const info: unknown = JSON.parse(
          await runTool("qemu-img", ["info", "--output=json", "-f", "qcow2", image]),
        );
        // From 8.0 on `children` tells of the files, which are not to be the same.
        const own = { filename: "", "actual-size": 0, "full-backing-filename": "", children: [] };
        return { ...Object(info), ...own } as unknown;
      };
      expect(await facts(ours)).toEqual(await facts(theirs));
      await createImage({ path: join(path, "base"), format: "qcow2", sizeBytes: 512 });
      const check = JSON.parse(
        await runTool("qemu-img", ["check", "--output=json", "-f", "qcow2", ours]),
      ) as unknown;
      expect(check).toMatchObject({ "check-errors": 0 });
      expect(check).not.toHaveProperty("leaks");
      expect(check).not.toHaveProperty("corruptions");
    },
  );

  it("makes an image that takes data to its last sector, in new clusters only", async () => {
    const { path } = await temporaryDirectory();
    const image = join(path, "x");
    const sizeBytes = 2 ** 40 + 512;
    await createImage({ path: image, format: "qcow2", sizeBytes });
    const writes = ["write -P 7 0 64k", `write -P 8 ${2 ** 40} 512`].flatMap((command) => ["-c", command]);
    await runTool("qemu-io", ["-f", "qcow2", ...writes, image]);
    const reads = ["read -P 7 0 64k", "read -P 0 64k 64k", `read -P 8 ${2 ** 40} 512`];
    const said = await runTool("qemu-io", [
      "-f",
      "qcow2",
      ...reads.flatMap((command) => ["-c", command]),
      image,
    ]);
    expect(said).not.toContain("Pattern verification failed");
    await runTool("qemu-img", ["check", "-q", "-f", "qcow2", image]);
  });

  it("makes no file of a size that the format does not hold", async () => {
    const { path } = await temporaryDirectory();
    const options = { path: join(path, "x"), format: "qcow2", sizeBytes: 2 ** 51 + 512 } as const;
    await expect(createImage(options)).rejects.toMatchObject({ code: "UNSUPPORTED" });
    expect(await readdir(path)).toEqual([]);
  });
});

describe("changeImageBitmap", () => {
  it("adds, disables, merges and removes", async () => {
    const { path } = await temporaryDirectory();
    const image = join(path, "x");
    await createImage({ path: image, format: "qcow2", sizeBytes: SIZE });
    for (const bitmap of ["fleece:1:1:0:a", "b"]) {
      await changeImageBitmap(image, { action: "add", bitmap, persistent: true, granularityBytes: 65536 });
    }
    await changeImageBitmap(image, { action: "disable", bitmap: "fleece:1:1:0:a" });
    await changeImageBitmap(image, { action: "merge", source: "b", bitmap: "fleece:1:1:0:a" });
    await changeImageBitmap(image, { action: "remove", bitmap: "b" });
    expect((await imageInfo(image, "qcow2")).bitmaps).toEqual([
      { name: "fleece:1:1:0:a", granularityBytes: 65536, recording: false, inUse: false },
    ]);
    await changeImageBitmap(image, { action: "enable", bitmap: "fleece:1:1:0:a" });
    expect((await imageInfo(image, "qcow2")).bitmaps[0]?.recording).toBe(true);
  });

  it("says with QEMU's words what is wrong", async () => {
    const { path } = await temporaryDirectory();
    const image = join(path, "x");
    await createImage({ path: image, format: "qcow2", sizeBytes: SIZE });
    await expect(changeImageBitmap(image, { action: "remove", bitmap: "none" })).rejects.toMatchObject({
      code: "QEMU_FAILED",
      message: expect.stringContaining("Dirty bitmap 'none' not found") as unknown,
    });
  });
});

describe("imageInfo", () => {
  it("says DISK_IN_USE while another program writes to the image, unless it is forced", async () => {
    const { path } = await temporaryDirectory();
    const image = join(path, "x");
    await createImage({ path: image, format: "qcow2", sizeBytes: SIZE });
    const directory = join(path, "d");
    const daemon = untilTestEnds(await StorageDaemon.start({ directory, lifetime: "process" }));
    const file = { driver: "file", filename: image } as const;
    await daemon.execute("blockdev-add", { driver: "qcow2", "node-name": "n", file });
    await expect(imageInfo(image, "qcow2")).rejects.toMatchObject({
      code: "DISK_IN_USE",
      message: `Another program holds ${image}: Could not open '${image}': Failed to get shared "write" lock`,
    });
    const add = { action: "add", bitmap: "b", persistent: true, granularityBytes: 65536 } as const;
    await expect(changeImageBitmap(image, add)).rejects.toMatchObject({ code: "DISK_IN_USE" });
    expect(await imageInfo(image, "qcow2", { forceShare: true })).toMatchObject({ sizeBytes: SIZE });
  });

  it("says PATH_NOT_FOUND for a missing file and QEMU_FAILED for another format", async () => {
    const { path } = await temporaryDirectory();
    await expect(imageInfo(join(path, "x"), "qcow2")).rejects.toMatchObject({ code: "PATH_NOT_FOUND" });
    await writeFile(join(path, "x"), "x".repeat(1024));
    await expect(imageInfo(join(path, "x"), "qcow2")).rejects.toMatchObject({
      code: "QEMU_FAILED",
      message: expect.stringContaining("Image is not in qcow2 format") as unknown,
    });
  });
});

describe("runTool", () => {
  it("names the package of a program that is missing", async () => {
    await expect(runTool("fleece-no-such-tool", [])).rejects.toMatchObject({
      code: "TOOL_MISSING",
      message: "Cannot find the program fleece-no-such-tool",
    });
    const path = process.env["PATH"];
    process.env["PATH"] = "/nonexistent";
    try {
      await expect(runTool("qemu-img", ["--version"])).rejects.toThrow(/package qemu-utils/);
    } finally {
      process.env["PATH"] = path;
    }
  });

  it("ends a tool at its deadline, and throws the reason of an abort", async () => {
    await expect(runTool("sleep", ["600"], { timeoutMs: 20 })).rejects.toMatchObject({
      code: "QEMU_FAILED",
      message: "sleep did not end within 0.02 s",
    });
    const reason = new Error("enough");
    const abort = new AbortController();
    const running = runTool("sleep", ["600"], { signal: abort.signal });
    abort.abort(reason);
    await expect(running).rejects.toBe(reason);
    await expect(runTool("sleep", ["600"], { signal: abort.signal })).rejects.toBe(reason);
  });
});
