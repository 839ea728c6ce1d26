import { writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { connectNbd, listExports } from "nbd-client-ts";
import { createImage, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { connection, nbdkit, qemuNbd, storageDaemon } from "./support/servers.js";

const MIB = 1 << 20;

/** A storage daemon whose reads and writes crawl, so that requests stay in flight. */
async function slowDaemon() {
  const directory = await temporaryDirectory();
  const image = directory.file("raw");
  await createImage(image, 64 * MIB, { format: "raw" });
  await writeImage(image, "raw", "write -P 1 0 64M");
  return await storageDaemon(
    directory.file("s"),
    "--object",
    "throttle-group,id=slow,x-bps-total=65536",
    "--blockdev",
    `driver=file,node-name=file,filename=${image}`,
    "--blockdev",
    "driver=throttle,node-name=d,file=file,throttle-group=slow",
    "--export",
    "type=nbd,id=e,node-name=d,name=disk,writable=on",
  );
}

describe("NbdConnection with a server that is killed", () => {
  it("fails all requests in flight with the same first error", async () => {
    const server = await slowDaemon();
    const disk = await connection(server);
    await disk.read(0, 512);
    const calls = [
      ...Array.from({ length: 20 }, (_, index) => disk.read(index * MIB, MIB)),
      disk.write(30 * MIB, Buffer.alloc(MIB)),
    ];
    const settled = Promise.allSettled(calls);
    await server.process.stop("SIGKILL");
    const first = await disk.closed;
    expect(first).toMatchObject({ code: "CONNECTION_LOST", scope: "connection" });
    const rejected = (await settled).filter((each) => each.status === "rejected");
    expect(rejected.length).toBeGreaterThan(10);
    for (const each of rejected) expect(each.reason).toMatchObject({ code: "CONNECTION_LOST", cause: first });
    await expect(disk.read(0, 1)).rejects.toMatchObject({ code: "CONNECTION_LOST" });
  });
});

describe("NbdConnection with a server that is too slow", () => {
  it("ends with TIMEOUT, and the server lives on for others", async () => {
    const server = await slowDaemon();
    const disk = await connection(server, { requestTimeoutMs: 200 });
    const reads = Array.from({ length: 4 }, (_, index) => disk.read(index * MIB, MIB));
    const codes = (await Promise.allSettled(reads)).map((each) =>
      each.status === "rejected" ? (each.reason as { code?: string }).code : "done",
    );
    expect(codes).toContain("TIMEOUT");
    expect(await disk.closed).toMatchObject({ code: "TIMEOUT" });
    const other = await connection(server);
    expect(other.sizeBytes).toBe(64 * MIB);
    other.destroy();
  });
});

describe("connectNbd with qemu-nbd", () => {
  it("tells an absent export, and the server serves the next client", async () => {
    const directory = await temporaryDirectory();
    await createImage(directory.file("raw"), MIB, { format: "raw" });
    const server = await qemuNbd(directory.file("s"), "-f", "raw", directory.file("raw"));
    const { socketPath } = server;
    for (const metaContexts of [[], ["base:allocation"]]) {
      const connecting = connectNbd({ socketPath, exportName: "none", metaContexts });
      await expect(connecting).rejects.toMatchObject({ code: "EXPORT_NOT_FOUND", scope: "connection" });
    }
    const missing = connectNbd({ socketPath, exportName: "disk", metaContexts: ["qemu:dirty-bitmap:none"] });
    await expect(missing).rejects.toMatchObject({ code: "CONTEXT_NOT_OFFERED" });
    expect((await connection(server)).sizeBytes).toBe(MIB);
    expect(await listExports({ socketPath })).toEqual([{ name: "disk", description: "" }]);
  });

  it("tells a server that is gone but left its socket", async () => {
    const directory = await temporaryDirectory();
    await createImage(directory.file("raw"), MIB, { format: "raw" });
    const server = await qemuNbd(directory.file("s"), "-f", "raw", directory.file("raw"));
    await server.process.stop("SIGKILL");
    const connecting = connectNbd({ socketPath: server.socketPath, exportName: "disk" });
    await expect(connecting).rejects.toMatchObject({
      code: "CONNECT_FAILED",
      cause: { code: "ECONNREFUSED" },
    });
  });

  it("tells a server that requires TLS", async () => {
    const directory = await temporaryDirectory();
    const key = directory.file("keys.psk");
    await writeFile(key, `someone:${"5a".repeat(32)}\n`, { mode: 0o600 });
    const server = await nbdkit(directory.file("s"), "--tls=require", `--tls-psk=${key}`, "memory", "1M");
    const connecting = connectNbd({ socketPath: server.socketPath, exportName: "" });
    await expect(connecting).rejects.toMatchObject({ code: "TLS_REQUIRED" });
  });
});
