import { readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { connectNbdPool, type NbdPoolOptions } from "nbd-client-ts";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { content } from "./support/content.js";
import { connection, nbdkit, type ServerProcess } from "./support/servers.js";

const KIB = 1024;
const MIB = 1 << 20;

async function filtered(...args: string[]): Promise<ServerProcess> {
  const directory = await temporaryDirectory();
  return await nbdkit(directory.file("s"), ...args);
}

/** With a log of what reaches the server, `Write`, `Zero`, `Flush`, … in the order of their coming. */
async function logged(...args: string[]) {
  const directory = await temporaryDirectory();
  const path = directory.file("log");
  const server = await nbdkit(directory.file("s"), "--filter=log", ...args, `logfile=${path}`);
  const calls = async () => {
    const lines = (await readFile(path, "utf8")).split("\n");
    return lines.flatMap(
      (line) => /connection=(\d+) (\w+) id=\d+ ?(.*?) ?\.\.\.$/.exec(line)?.slice(1) ?? [],
    );
  };
  return { server, calls };
}

async function pool(server: ServerProcess, options: Partial<NbdPoolOptions> = {}) {
  const { socketPath } = server;
  return untilTestEnds(await connectNbdPool({ socketPath, exportName: "disk", ...options }));
}

describe("NbdConnection with nbdkit's filter", () => {
  it("blocksize-policy, which fails every request of a wrong size or alignment", async () => {
    const server = await filtered(
      "--filter=blocksize-policy",
      "memory",
      String(3 * MIB),
      "blocksize-minimum=4096",
      "blocksize-preferred=65536",
      "blocksize-maximum=192K",
      "blocksize-error-policy=error",
    );
    const disk = await connection(server, { metaContexts: ["base:allocation"] });
    expect(disk.blockSize).toEqual({ minimumBytes: 4096, preferredBytes: 65536, maximumBytes: 192 * KIB });
    const model = content(3 * MIB, 1);
    await disk.write(0, model);
    await disk.writeZeroes(4096, MIB);
    model.fill(0, 4096, 4096 + MIB);
    await disk.trim(2 * MIB + 1, 10_000); // one whole block, which the memory plugin reads as zeroes
    model.fill(0, 2 * MIB + 4096, 2 * MIB + 8192);
    expect(model.subarray(1, 3 * MIB - 1).equals(await disk.read(1, 3 * MIB - 2))).toBe(true);
    let end = 100;
    for await (const { offset, length } of disk.extents({ offset: 100 })) {
      expect(offset).toBe(end);
      end += length;
    }
    expect(end).toBe(3 * MIB);
  });

  it("error, which fails writes with ENOSPC and leaves reads alone", async () => {
    const server = await filtered("--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%");
    const disk = await connection(server);
    await expect(disk.write(0, Buffer.alloc(512))).rejects.toMatchObject({
      code: "REQUEST_FAILED",
      errno: "ENOSPC",
      command: "WRITE",
    });
    expect(await disk.read(0, 512)).toEqual(Buffer.alloc(512));
  });

  it("error, which fails extents: a walk rejects, and the connection goes on", async () => {
    const server = await filtered("--filter=error", "memory", "1M", "error-extents-rate=100%");
    const disk = await connection(server, { metaContexts: ["base:allocation"] });
    await expect(disk.extents().next()).rejects.toMatchObject({ code: "REQUEST_FAILED", errno: "EIO" });
    expect(await disk.read(0, 512)).toEqual(Buffer.alloc(512));
  });

  it("delay, while the caller aborts and reads on", async () => {
    const server = await filtered("--filter=delay", "pattern", "1M", "delay-read=500ms");
    const disk = await connection(server);
    const controller = new AbortController();
    const into = Buffer.alloc(4096, 0xee);
    const aborted = disk.read(8, 4096, { into, signal: controller.signal });
    setImmediate(() => controller.abort());
    await expect(aborted).rejects.toMatchObject({ code: "ABORTED" });
    expect((await disk.read(4096, 8)).at(-2)).toBe(0x10); // the pattern is each offset
    expect(into.every((byte) => byte === 0xee)).toBe(true);
  });

  it("rate, under which a large read comes slowly and complete", async () => {
    const server = await filtered("--filter=rate", "pattern", "4M", "rate=64M");
    const disk = await connection(server);
    const data = Buffer.from(await disk.read(0, 4 * MIB));
    for (let at = 0; at < data.length; at += 8) expect(data.readUInt32BE(at + 4)).toBe(at);
  });

  it("truncate, which makes the export end within a block", async () => {
    const size = MIB + 5;
    const server = await filtered(
      "--filter=blocksize-policy",
      "--filter=truncate",
      "memory",
      "2M",
      `truncate=${size}`,
      "blocksize-minimum=512",
      "blocksize-preferred=512",
      "blocksize-maximum=64K",
    );
    const disk = await connection(server, { metaContexts: ["base:allocation"] });
    expect(disk.sizeBytes).toBe(size);
    const tail = content(5, 1);
    await disk.write(MIB, tail);
    expect(tail.equals(await disk.read(MIB, 5))).toBe(true);
    expect(tail.subarray(4).equals(await disk.read(size - 1, 1))).toBe(true);
    await disk.writeZeroes(MIB - 512, 517);
    expect(await disk.read(MIB, 5)).toEqual(Buffer.alloc(5));
    await disk.trim(0, size);
    const last = [];
    for await (const { offset, length } of disk.extents()) last.push(offset + length);
    expect(last.at(-1)).toBe(size);
  });

  it("swab, which swaps the bytes of the pattern", async () => {
    const server = await filtered("--filter=swab", "pattern", "1M", "swab-bits=16");
    const disk = await connection(server);
    expect(Buffer.from(await disk.read(0x1232, 6)).toString("hex")).toBe("000000003012");
  });

  it("nozero, without WRITE_ZEROES or with slow ones only", async () => {
    const none = await connection(await filtered("--filter=nozero", "memory", "1M", "zeromode=none"));
    expect(none).toMatchObject({ canWriteZeroes: false, canFastZero: false });
    await expect(none.writeZeroes(0, 512)).rejects.toMatchObject({ code: "NOT_SUPPORTED" });
    const slow = await connection(
      await filtered("--filter=nozero", "memory", "1M", "zeromode=emulate", "fastzeromode=slow"),
    );
    await slow.write(0, content(512, 1));
    await expect(slow.writeZeroes(0, 512, { fastZero: true })).rejects.toMatchObject({ errno: "ENOTSUP" });
    expect(content(512, 1).equals(await slow.read(0, 512))).toBe(true);
    await slow.writeZeroes(0, 512);
    expect(await slow.read(0, 512)).toEqual(Buffer.alloc(512));
  });

  it("fua, without FUA: a durable write is flushed", async () => {
    const { server, calls } = await logged("--filter=fua", "memory", "1M");
    const disk = await connection(server);
    expect(disk).toMatchObject({ canFua: false, canFlush: true });
    await disk.write(512, content(512, 1), { fua: true });
    await disk.close();
    expect((await calls()).filter((each) => each === "Write" || each === "Flush")).toEqual([
      "Write",
      "Flush",
    ]);
  });

  it("fua, with FUA: the flag is sent, and no flush", async () => {
    const { server, calls } = await logged("--filter=fua", "memory", "1M", "fuamode=pass");
    const disk = await connection(server);
    await disk.write(512, content(512, 1), { fua: true });
    await disk.close();
    const seen = await calls();
    expect(seen).toContain("offset=0x200 count=0x200 fua=1");
    expect(seen).not.toContain("Flush");
  });

  it("nocache, with a CACHE command and without", async () => {
    const { server, calls } = await logged("--filter=nocache", "memory", "1M", "cachemode=nop");
    const disk = await connection(server);
    await disk.cache(1, 1000);
    await disk.close();
    expect(await calls()).toContain("Cache");
    const without = await connection(await filtered("--filter=nocache", "memory", "1M", "cachemode=none"));
    await expect(without.cache(0, 1)).rejects.toMatchObject({ code: "NOT_SUPPORTED" });
  });

  it("exitwhen, whose server serves its client to the end, then leaves", async () => {
    const directory = await temporaryDirectory();
    const flag = directory.file("leave");
    const server = await nbdkit(
      directory.file("s"),
      "--filter=exitwhen",
      "memory",
      "1M",
      `exit-when-file-created=${flag}`,
      "exit-when-poll=1",
    );
    const disk = await connection(server);
    await disk.write(0, content(512, 2));
    await writeFile(flag, "");
    expect(content(512, 2).equals(await disk.read(0, 512))).toBe(true); // it waits for its clients
    await disk.close();
    await expect.poll(() => server.process.running, { timeout: 60_000 }).toBe(false);
    await expect(connection(server)).rejects.toMatchObject({ scope: "connection" });
  });
});

describe("NbdConnection.read with df", () => {
  it("reads what nbdkit serves sparsely, in one chunk each", async () => {
    const server = await filtered("data", "data=@65536 1 @1048576 2*100000 @4194303 0");
    const disk = await connection(server);
    expect(disk.canDf).toBe(true);
    const whole = await disk.read(0, disk.sizeBytes);
    expect(Buffer.compare(whole, await disk.read(0, disk.sizeBytes, { df: true }))).toBe(0);
    expect([whole[65536], whole[1048576]]).toEqual([1, 2]);
  });
});

describe("connectNbdPool with nbdkit", () => {
  it("spreads reads and writes over four connections, all of which see them", async () => {
    const { server, calls } = await logged("memory", "32M");
    const disk = await pool(server);
    expect(disk).toMatchObject({ connections: 4, shortfall: undefined });
    const model = content(31 * MIB - 512, 5);
    await disk.write(512, model);
    await disk.flush();
    expect(model.equals(await disk.read(512, model.length))).toBe(true);
    await disk.close();
    const seen = await calls();
    const writers = seen.filter((_each, index) => seen[index + 1] === "Write");
    expect([...new Set(writers)]).toHaveLength(4);
  });

  it("keeps to one connection when the filter multi-conn takes the permission away", async () => {
    const server = await filtered("--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable");
    const disk = await pool(server);
    expect(disk).toMatchObject({ connections: 1, shortfall: { code: "NOT_SUPPORTED" } });
    await disk.write(0, content(1024, 1));
    expect(content(1024, 1).equals(await disk.read(0, 1024))).toBe(true);
  });
});
