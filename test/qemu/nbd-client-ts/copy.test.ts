import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { copyExport, NbdCopyError, type NbdConnection } from "nbd-client-ts";
import { compareImages, createImage, imageMap, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { content } from "./support/content.js";
import { connection, nbdkit, storageDaemon, type ServerProcess } from "./support/servers.js";

const run = promisify(execFile);
const MIB = 1 << 20;
const ALLOCATION = { metaContexts: ["base:allocation"] };

/** A qcow2 image behind a storage daemon. */
async function qcow2Export(socketPath: string, image: string, writable: boolean): Promise<ServerProcess> {
  return await storageDaemon(
    socketPath,
    "--blockdev",
    `driver=qcow2,node-name=d,discard=unmap,file.driver=file,file.filename=${image}`,
    "--export",
    `type=nbd,id=e,node-name=d,name=disk,writable=${writable ? "on" : "off"}`,
  );
}

/** An image with data, holes, zero clusters, and an end that is no multiple of anything larger than 512. */
async function sourceImage(path: string): Promise<void> {
  await createImage(path, 64 * MIB + 512);
  await writeImage(path, "qcow2", "write -P 1 0 5M", "write -P 2 20M 64k", "write -P 3 33554000 1M");
  await writeImage(path, "qcow2", "write -z 1M 2M", "discard 21M 1M", "write -P 4 64M 512");
}

async function everything(disk: NbdConnection): Promise<Buffer> {
  return Buffer.from(await disk.read(0, disk.sizeBytes));
}

describe("copyExport from one storage daemon to another", () => {
  it.each([false, true])("copies content and holes (destination known to be zero: %s)", async (isZero) => {
    const directory = await temporaryDirectory();
    const [from, to] = [directory.file("from.qcow2"), directory.file("to.qcow2")];
    await sourceImage(from);
    await createImage(to, 64 * MIB + 512);
    if (!isZero) await writeImage(to, "qcow2", "write -P 9 0 64M");
    const source = await connection(await qcow2Export(directory.file("a"), from, false), ALLOCATION);
    const server = await qcow2Export(directory.file("b"), to, true);
    const destination = await connection(server);
    const progress = await copyExport(source, destination, { destinationIsZero: isZero });
    expect(progress.doneOffset).toBe(64 * MIB + 512);
    expect(progress.copiedBytes).toBeLessThan(6 * MIB);
    await destination.close();
    await server.process.stop("SIGTERM");
    expect(await compareImages(from, "qcow2", to, "qcow2")).toMatchObject({ identical: true });
    const dataBytes = (await imageMap(to, "qcow2"))
      .filter(({ data }) => data)
      .reduce((sum, { length }) => sum + length, 0);
    expect(dataBytes).toBeLessThan(6 * MIB);
  });

  it("makes what nbdcopy makes", async () => {
    const directory = await temporaryDirectory();
    const [from, ours, theirs] = ["from", "ours", "theirs"].map((name) => directory.file(name));
    if (from === undefined || ours === undefined || theirs === undefined) throw new Error("unreachable");
    await sourceImage(from);
    for (const image of [ours, theirs]) await createImage(image, 64 * MIB + 512);
    const sourceServer = await qcow2Export(directory.file("a"), from, false);
    const ourServer = await qcow2Export(directory.file("b"), ours, true);
    const theirServer = await qcow2Export(directory.file("c"), theirs, true);
    const destination = await connection(ourServer);
    await copyExport(await connection(sourceServer, ALLOCATION), destination);
    const uri = (server: ServerProcess) => `nbd+unix:///disk?socket=${server.socketPath}`;
    await run("nbdcopy", [uri(sourceServer), uri(theirServer)]);
    const other = await connection(theirServer);
    expect((await everything(destination)).equals(await everything(other))).toBe(true);
  });
});

describe("copyExport with nbdkit's error filter", () => {
  async function target() {
    const directory = await temporaryDirectory();
    const image = directory.file("to.qcow2");
    await createImage(image, 16 * MIB);
    return { image, disk: await connection(await qcow2Export(directory.file("s"), image, true)) };
  }

  async function source(...filter: string[]) {
    const directory = await temporaryDirectory();
    const data = content(16 * MIB, 1);
    data.fill(0, 4 * MIB, 8 * MIB);
    await writeFile(directory.file("raw"), data);
    const file = `file=${directory.file("raw")}`;
    const server = await nbdkit(
      directory.file("s"),
      "-e",
      "disk",
      "--filter=error",
      "file",
      file,
      ...filter,
      `error-file=${directory.file("fail")}`,
    );
    return { data, fail: directory.file("fail"), disk: await connection(server, ALLOCATION) };
  }

  it("fails when a read fails, and can go on from where it stopped", async () => {
    const from = await source("error-pread=EIO", "error-pread-rate=1");
    const to = await target();
    const stopAt = 8 * MIB;
    const copy = copyExport(from.disk, to.disk, {
      onProgress: ({ doneOffset }) => {
        if (doneOffset >= stopAt) failing ??= writeFile(from.fail, "");
      },
    });
    let failing: Promise<void> | undefined;
    const error: unknown = await copy.then(
      () => undefined,
      (failure: unknown) => failure,
    );
    await failing;
    // A fast copy may be over before the fault is there; then it must be right, and the next one fails at 0.
    if (error === undefined) {
      expect(from.data.equals(await everything(to.disk))).toBe(true);
      await expect(copyExport(from.disk, to.disk)).rejects.toMatchObject({ errno: "EIO", side: "source" });
      return;
    }
    if (!(error instanceof NbdCopyError)) throw new Error("Expected an NbdCopyError", { cause: error });
    expect(error).toMatchObject({ code: "REQUEST_FAILED", errno: "EIO", side: "source" });
    const { doneOffset } = error.progress;
    const done = await to.disk.read(0, doneOffset);
    expect(from.data.subarray(0, doneOffset).equals(done)).toBe(true);
  });

  it("fails at every rate of read errors rather than leave a gap", async () => {
    const from = await source("error-pread=EIO", "error-pread-rate=20%");
    await writeFile(from.fail, "");
    let attempts = 0;
    let complete = false;
    const to = await target();
    let offset = 0;
    while (!complete && attempts < 500) {
      attempts += 1;
      try {
        await copyExport(from.disk, to.disk, { offset, bufferBytes: 256 << 10 });
        complete = true;
      } catch (error) {
        if (!(error instanceof NbdCopyError)) throw error;
        expect(error.errno).toBe("EIO");
        offset = error.progress.doneOffset;
      }
    }
    expect(complete).toBe(true);
    expect(attempts).toBeGreaterThan(1);
    expect(from.data.equals(await everything(to.disk))).toBe(true);
  });

  it("copies all the same when the extents cannot be had", async () => {
    const from = await source("error-extents=EIO", "error-extents-rate=1");
    await writeFile(from.fail, "");
    const to = await target();
    await copyExport(from.disk, to.disk);
    expect(from.data.equals(await everything(to.disk))).toBe(true);
  });

  it.each(["pwrite", "zero"])("fails when a %s of the destination fails", async (call) => {
    const directory = await temporaryDirectory();
    const image = directory.file("from.qcow2");
    await sourceImage(image);
    const from = await connection(await qcow2Export(directory.file("a"), image, false), ALLOCATION);
    const server = await nbdkit(
      directory.file("b"),
      "-e",
      "disk",
      "--filter=error",
      "memory",
      "65M",
      `error-${call}=ENOSPC`,
      `error-${call}-rate=1`,
    );
    const copy = copyExport(from, await connection(server));
    await expect(copy).rejects.toMatchObject({ side: "destination", errno: "ENOSPC" });
  });
});
