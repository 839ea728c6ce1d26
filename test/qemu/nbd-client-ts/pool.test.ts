import { describe, expect, it } from "vitest";
import { changes, connectNbdPool, copyExport } from "nbd-client-ts";
import { createImage, qemuImg, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { connection, qemuNbd } from "./support/servers.js";

const MIB = 1 << 20;
const BITMAP = "qemu:dirty-bitmap:b";
const metaContexts = ["base:allocation", BITMAP];

async function bitmapExport(...args: string[]) {
  const directory = await temporaryDirectory();
  const image = directory.file("d.qcow2");
  await createImage(image, 32 * MIB);
  await writeImage(image, "qcow2", "write -P 1 0 8M");
  await qemuImg("bitmap", "--add", "-f", "qcow2", "-g", "65536", image, "b");
  await writeImage(image, "qcow2", "write -P 2 1M 1M", "write -z 4M 1M", "write -P 3 20M 64k");
  return await qemuNbd(directory.file("s"), "-f", "qcow2", "-B", "b", ...args, image);
}

describe("connectNbdPool with qemu-nbd", () => {
  it("reads over several connections what one reads, with the changes apart from the zeroes", async () => {
    const server = await bitmapExport("-r");
    const { socketPath } = server;
    const options = { socketPath, exportName: "disk", metaContexts, connections: 3 };
    const disk = untilTestEnds(await connectNbdPool(options));
    expect(disk).toMatchObject({ connections: 3, readOnly: true });
    const single = await connection(server);
    expect(Buffer.compare(await disk.read(0, 32 * MIB), await single.read(0, 32 * MIB))).toBe(0);

    const changed = [];
    for await (const each of changes(disk.extents(), { bitmapContext: BITMAP })) {
      if (each.changed) changed.push([each.offset / MIB, each.length / MIB, each.zero]);
    }
    expect(changed).toEqual([
      [1, 1, false],
      [4, 1, true],
      [20, 1 / 16, false],
    ]);
  });

  it("writes over several connections, and one flush covers them", async () => {
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 32 * MIB);
    const server = await qemuNbd(directory.file("s"), "-f", "qcow2", image);
    const { socketPath } = server;
    const disk = untilTestEnds(await connectNbdPool({ socketPath, exportName: "disk", connections: 2 }));
    expect(disk.connections).toBe(disk.canMultiConn ? 2 : 1);
    const data = Buffer.alloc(16 * MIB, 0x5a);
    await disk.write(MIB, data, { fua: true });
    await disk.flush();
    const single = await connection(server);
    expect(Buffer.compare(await single.read(MIB, data.length), data)).toBe(0);
  });

  it("is a source of copyExport, and a destination", async () => {
    const from = await bitmapExport("-r");
    const directory = await temporaryDirectory();
    const image = directory.file("d.qcow2");
    await createImage(image, 32 * MIB);
    const to = await qemuNbd(directory.file("s"), "-f", "qcow2", image);
    const over = (socketPath: string, connections: number, contexts: string[]) =>
      connectNbdPool({ socketPath, exportName: "disk", connections, metaContexts: contexts });
    const source = untilTestEnds(await over(from.socketPath, 3, ["base:allocation"]));
    const destination = untilTestEnds(await over(to.socketPath, 2, []));
    expect(source.connections).toBe(3);
    const progress = await copyExport(source, destination, { bufferBytes: 256 << 10, buffers: 12 });
    expect(progress.doneOffset).toBe(32 * MIB);
    expect(progress.copiedBytes + progress.zeroedBytes).toBe(32 * MIB);
    expect(progress.copiedBytes).toBeLessThan(9 * MIB);
    const [copied, original] = [await connection(to), await connection(from)];
    expect(Buffer.compare(await copied.read(0, 32 * MIB), await original.read(0, 32 * MIB))).toBe(0);
  });
});
