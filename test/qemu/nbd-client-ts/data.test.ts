import { readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { createImage, copyToRaw } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { content } from "./support/content.js";
import { connection, nbdkit, qemuNbd, storageDaemon } from "./support/servers.js";

const MIB = 1 << 20;

describe("NbdConnection with qemu-nbd", () => {
  it("reads back what it wrote at odd offsets, and so does the image", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 32 * MIB);
    const server = await qemuNbd(directory.file("s"), "-f", "qcow2", image);
    const model = Buffer.alloc(32 * MIB);
    const disk = await connection(server);
    expect(disk).toMatchObject({
      sizeBytes: 32 * MIB,
      readOnly: false,
      structuredReplies: true,
      canFlush: true,
    });

    const writes = [0, 1, 2, 3, 4, 5].map(async (index) => {
      const offset = index * 5 * MIB + index * 511;
      const data = content(3 * MIB + index * 7 + 1, index);
      model.set(data, offset);
      await disk.write(offset, data, { fua: index % 2 === 0 });
    });
    await Promise.all(writes);
    const reads = [0, 1, 4095, MIB - 1, 7 * MIB + 13, 31 * MIB].map(async (offset) => {
      const length = Math.min(32 * MIB - offset, 5 * MIB + 3);
      expect(model.subarray(offset, offset + length).equals(await disk.read(offset, length))).toBe(true);
    });
    await Promise.all(reads);
    expect(model.equals(await disk.read(0, 32 * MIB))).toBe(true);

    await disk.flush();
    await disk.close();
    await server.process.stop("SIGTERM");
    await copyToRaw(image, "qcow2", directory.file("raw"));
    expect(model.equals(await readFile(directory.file("raw")))).toBe(true);
  });

  it("writes zeroes with and without holes, and trims", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 8 * MIB);
    const server = await qemuNbd(directory.file("s"), "--discard=unmap", "-f", "qcow2", image);
    const disk = await connection(server, { metaContexts: ["base:allocation"] });
    const model = content(8 * MIB, 1);
    await disk.write(0, model);

    await disk.writeZeroes(1000, 700_001);
    model.fill(0, 1000, 701_001);
    await disk.writeZeroes(2 * MIB, MIB, { noHole: true });
    model.fill(0, 2 * MIB, 3 * MIB);
    await disk.writeZeroes(4 * MIB, MIB, { fastZero: disk.canFastZero });
    model.fill(0, 4 * MIB, 5 * MIB);
    await disk.trim(6 * MIB, MIB);
    model.fill(0, 6 * MIB, 7 * MIB); // qcow2 without a backing file reads zeroes there

    expect(model.equals(await disk.read(0, 8 * MIB))).toBe(true);
    const zeroOrHole = [];
    for await (const { offset, length, flags } of disk.extents()) {
      if (offset >= MIB && flags["base:allocation"] !== 0) zeroOrHole.push([offset / MIB, length / MIB]);
    }
    expect(zeroOrHole).toEqual([
      [2, 1],
      [4, 1],
      [6, 1],
    ]);
  });

  it("reads the end of an export whose size is no multiple of 4096", async () => {
    const directory = await temporaryDirectory();
    const data = content(MIB + 512 * 3, 9);
    await writeFile(directory.file("raw"), data);
    const server = await qemuNbd(directory.file("s"), "-r", "-f", "raw", directory.file("raw"));
    const disk = await connection(server);
    expect(disk).toMatchObject({ sizeBytes: data.length, readOnly: true, canMultiConn: true });
    expect(data.subarray(MIB).equals(await disk.read(MIB, 512 * 3))).toBe(true);
    expect(data.subarray(-1).equals(await disk.read(data.length - 1, 1))).toBe(true);
  });
});

describe("NbdConnection with qemu-storage-daemon", () => {
  /** An export of a raw file whose node insists on blocks of the given size. */
  async function blockExport(block: number, sizeBytes: number, writable: "on" | "off") {
    const directory = await temporaryDirectory();
    await writeFile(directory.file("raw"), content(sizeBytes, 3));
    return await storageDaemon(
      directory.file("s"),
      "--blockdev",
      `driver=file,node-name=file,filename=${directory.file("raw")}`,
      "--blockdev",
      `driver=blkdebug,node-name=d,image=file,align=${block}`,
      "--export",
      `type=nbd,id=e,node-name=d,name=disk,writable=${writable}`,
    );
  }

  it.each([512, 4096])("keeps to a minimum block size of %d bytes", async (block) => {
    const sizeBytes = MIB + block;
    const disk = await connection(await blockExport(block, sizeBytes, "on"));
    expect(disk).toMatchObject({ sizeBytes, blockSize: { minimumBytes: block } });
    const model = content(sizeBytes, 3);
    const data = content(8192, 4);
    model.set(data, 4096);
    await disk.write(4096, data);
    expect(model.subarray(4095, 9000).equals(await disk.read(4095, 4905))).toBe(true);
    expect(model.equals(await disk.read(0, sizeBytes))).toBe(true);
    await expect(disk.write(1, data)).rejects.toMatchObject({ code: "UNALIGNED" });
  });

  it("reads and walks to an end that is no multiple of the minimum block size", async () => {
    const sizeBytes = MIB + 512;
    const server = await blockExport(4096, sizeBytes, "off");
    const disk = await connection(server, { metaContexts: ["base:allocation"] });
    expect(disk).toMatchObject({ sizeBytes, blockSize: { minimumBytes: 4096 } });
    const model = content(sizeBytes, 3);
    expect(model.equals(await disk.read(0, sizeBytes))).toBe(true);
    expect(model.subarray(MIB + 100).equals(await disk.read(MIB + 100, 412))).toBe(true);
    const extents = [];
    for await (const extent of disk.extents({ offset: 100 })) extents.push(extent);
    expect(extents).toEqual([{ offset: 100, length: sizeBytes - 100, flags: { "base:allocation": 0 } }]);
  });
});

describe("NbdConnection with nbdkit", () => {
  it("works with simple replies", async () => {
    const directory = await temporaryDirectory();
    const server = await nbdkit(directory.file("s"), "--no-sr", "memory", "8M");
    const disk = await connection(server, { metaContexts: ["base:allocation"], optionalContexts: true });
    expect(disk).toMatchObject({ structuredReplies: false, contexts: [] });
    const data = content(5 * MIB, 5);
    await disk.write(512, data);
    expect(data.equals(await disk.read(512, data.length))).toBe(true);
    expect((await disk.read(6 * MIB + 3, 1000)).every((byte) => byte === 0)).toBe(true);
  });

  it("fails only the request that the server fails", async () => {
    const directory = await temporaryDirectory();
    const server = await nbdkit(
      directory.file("s"),
      "eval",
      "get_size=echo 1M",
      "pread=echo EIO no >&2; exit 1",
    );
    const disk = await connection(server);
    for (let attempt = 0; attempt < 2; attempt += 1) {
      await expect(disk.read(0, 512)).rejects.toMatchObject({ code: "REQUEST_FAILED", errno: "EIO" });
    }
  });
});
