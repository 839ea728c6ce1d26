import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import type { MappedExtent, NbdConnection } from "nbd-client-ts";
import { createImage, qemuImg, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { connection, nbdkit, qemuNbd, type ServerProcess } from "./support/servers.js";

const run = promisify(execFile);
const MIB = 1 << 20;
const BITMAP = "qemu:dirty-bitmap:b";
const ALLOCATION = "base:allocation";

interface Run {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

/** What nbdinfo, another client, sees of one context. */
async function nbdinfoMap(server: ServerProcess, context: string): Promise<Run[]> {
  const uri = `nbd+unix:///disk?socket=${server.socketPath}`;
  const { stdout } = await run("nbdinfo", ["--json", `--map=${context}`, uri], { maxBuffer: 64 * MIB });
  return merged(JSON.parse(stdout) as Run[]);
}

function merged(runs: Iterable<Run>): Run[] {
  const result: Run[] = [];
  for (const { offset, length, type } of runs) {
    const last = result.at(-1);
    if (last?.type === type) result[result.length - 1] = { ...last, length: last.length + length };
    else result.push({ offset, length, type });
  }
  return result;
}

async function walk(disk: NbdConnection): Promise<MappedExtent[]> {
  const extents: MappedExtent[] = [];
  for await (const extent of disk.extents()) extents.push(extent);
  return extents;
}

function ofContext(extents: readonly MappedExtent[], context: string): Run[] {
  return merged(extents.map(({ offset, length, flags }) => ({ offset, length, type: flags[context] ?? -1 })));
}

describe("NbdConnection.extents with qemu-nbd", () => {
  it("gives a bitmap and the allocation in one walk, as qemu-io wrote them and nbdinfo sees them", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 64 * MIB + 512);
    await writeImage(image, "qcow2", "write -P 1 0 4M", "write -P 2 20M 2M");
    await qemuImg("bitmap", "--add", "-f", "qcow2", "-g", "65536", image, "b");
    // Dirty: data over data, data in a hole, zeroes over data, a discard, and the last 512 bytes.
    await writeImage(
      image,
      "qcow2",
      "write -P 3 1M 1M",
      "write -P 4 40M 64k",
      "write -z 2M 512k",
      "write -P 5 64M 512",
    );
    await writeImage(image, "qcow2", "discard 20M 1M");

    const server = await qemuNbd(directory.file("s"), "-r", "-f", "qcow2", "-B", "b", image);
    const disk = await connection(server, { metaContexts: [ALLOCATION, BITMAP] });
    expect([...disk.contexts].sort()).toEqual([ALLOCATION, BITMAP]);
    const extents = await walk(disk);

    expect(ofContext(extents, BITMAP)).toEqual([
      { offset: 0, length: MIB, type: 0 },
      { offset: MIB, length: MIB + 512 * 1024, type: 1 },
      { offset: 2.5 * MIB, length: 17.5 * MIB, type: 0 },
      { offset: 20 * MIB, length: MIB, type: 1 },
      { offset: 21 * MIB, length: 19 * MIB, type: 0 },
      { offset: 40 * MIB, length: 65536, type: 1 },
      { offset: 40 * MIB + 65536, length: 24 * MIB - 65536, type: 0 },
      { offset: 64 * MIB, length: 512, type: 1 },
    ]);
    const dirtyAndZero = extents.filter(
      ({ flags }) => flags[BITMAP] === 1 && ((flags[ALLOCATION] ?? 0) & 2) !== 0,
    );
    expect(dirtyAndZero.map(({ offset, length }) => [offset / MIB, length / MIB])).toEqual([
      [2, 0.5],
      [20, 1],
    ]);
    for (const context of [ALLOCATION, BITMAP]) {
      expect(ofContext(extents, context)).toEqual(await nbdinfoMap(server, context));
    }
  });

  it("walks thousands of extents over several requests", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    const clusterBytes = 4096;
    const pairs = 5_000;
    await qemuImg("create", "-q", "-f", "qcow2", "-o", `cluster_size=${clusterBytes}`, image, "2G");
    // Every other cluster of the first 40 MiB is dirty and allocated.
    await qemuImg("bitmap", "--add", "-f", "qcow2", "-g", String(clusterBytes), image, "b");
    const writer = await qemuNbd(directory.file("w"), "-f", "qcow2", image);
    const writing = await connection(writer);
    const block = Buffer.alloc(clusterBytes, 7);
    for (let index = 0; index < pairs; index += 100) {
      const writes = Array.from({ length: 100 }, (_, n) =>
        writing.write((index + n) * 2 * clusterBytes, block),
      );
      await Promise.all(writes);
    }
    await writing.close();
    await writer.process.stop("SIGTERM");

    const server = await qemuNbd(directory.file("s"), "-r", "-f", "qcow2", "-B", "b", image);
    const extents = await walk(await connection(server, { metaContexts: [ALLOCATION, BITMAP] }));
    expect(extents).toHaveLength(2 * pairs);
    extents.forEach(({ offset, flags }, index) => {
      expect(offset).toBe(index * clusterBytes);
      expect(flags).toEqual({ [ALLOCATION]: index % 2 === 0 ? 0 : 3, [BITMAP]: index % 2 === 0 ? 1 : 0 });
    });
    expect(extents.at(-1)?.length).toBe(2 ** 31 - (2 * pairs - 1) * clusterBytes);
  });

  it("walks a part of the disk", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 8 * MIB);
    await writeImage(image, "qcow2", "write -P 1 2M 1M");
    const server = await qemuNbd(directory.file("s"), "-r", "-f", "qcow2", image);
    const disk = await connection(server, { metaContexts: [ALLOCATION] });
    const extents: MappedExtent[] = [];
    for await (const extent of disk.extents({ offset: MIB + 1, length: 1.5 * MIB })) extents.push(extent);
    expect(ofContext(extents, ALLOCATION)).toEqual([
      { offset: MIB + 1, length: MIB - 1, type: 3 },
      { offset: 2 * MIB, length: 0.5 * MIB + 1, type: 0 },
    ]);
  });

  it("gives one extent where one is asked for", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 8 * MIB);
    await writeImage(image, "qcow2", "write -P 1 2M 1M");
    const server = await qemuNbd(directory.file("s"), "-r", "-f", "qcow2", image);
    const disk = await connection(server, { metaContexts: [ALLOCATION] });
    const status = await disk.blockStatus(MIB, 4 * MIB, { reqOne: true });
    expect(status).toEqual(new Map([[ALLOCATION, [{ offset: MIB, length: MIB, flags: 3 }]]]));
  });
});

describe("NbdConnection.extents with nbdkit", () => {
  it("gives the map of a sparse disk as nbdinfo sees it", async () => {
    const directory = await temporaryDirectory();
    const server = await nbdkit(directory.file("s"), "data", "data=@65536 1 @1048576 2*100000 @16777215 0");
    const disk = await connection(server, { exportName: "", metaContexts: [ALLOCATION] });
    const extents = ofContext(await walk(disk), ALLOCATION);
    expect(extents.length).toBeGreaterThan(2);
    expect(extents).toEqual(await nbdinfoMap(server, ALLOCATION));
  });
});
