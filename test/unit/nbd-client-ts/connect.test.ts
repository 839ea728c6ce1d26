import { describe, expect, it } from "vitest";
import { connectNbd, listExports, type NbdConnectOptions } from "nbd-client-ts";
import { temporaryDirectory } from "../../support/lifetime.js";
import { connected, failureOf, serving } from "./support/connected.js";
import {
  dataChunk,
  exportInfo,
  greeting,
  OPT,
  optionReply,
  REP,
  REP_ERR,
  simpleReply,
} from "./support/server-bytes.js";

async function failureWith(options: NbdConnectOptions) {
  return await failureOf(connectNbd(options));
}

describe("connectNbd", () => {
  it("gives what the server says about the export", async () => {
    const connection = await connected((peer) => peer.hungUp(), {
      offered: { sizeBytes: 12345, transmissionFlags: 1 | 2 | 256, contexts: { 3: "base:allocation" } },
    });
    expect(connection).toMatchObject({
      exportName: "disk",
      sizeBytes: 12345,
      readOnly: true,
      canMultiConn: true,
      canFlush: false,
      canTrim: false,
      canWriteZeroes: false,
      canFua: false,
      structuredReplies: true,
      contexts: ["base:allocation"],
      blockSize: { minimumBytes: 1, preferredBytes: 4096, maximumBytes: 32 << 20 },
    });
  });

  it("ignores transmission flags without HAS_FLAGS", async () => {
    const connection = await connected((peer) => peer.hungUp(), { offered: { transmissionFlags: 0xfffe } });
    expect(connection).toMatchObject({ readOnly: false, canFlush: false, canTrim: false });
  });

  it("connects over TCP", async () => {
    const server = await serving(async (peer) => {
      await peer.enter();
      const { cookie, offset } = await peer.receiveRequest();
      await peer.send(dataChunk(cookie, offset, Buffer.from("tcp"), true));
      await peer.hungUp();
    });
    const port = await server.moveToTcp();
    const connection = await connectNbd({ host: "127.0.0.1", port, exportName: "disk" });
    expect(Buffer.from(await connection.read(7, 3)).toString()).toBe("tcp");
    connection.destroy();
  });

  it("tells an absent socket, with the system's error as cause", async () => {
    const directory = await temporaryDirectory();
    const failure = await failureWith({ socketPath: directory.file("none"), exportName: "" });
    expect(failure).toMatchObject({ code: "CONNECT_FAILED", scope: "connection", cause: { code: "ENOENT" } });
  });

  it("tells a port where nobody listens", async () => {
    const failure = await failureWith({ host: "127.0.0.1", port: 1, exportName: "" });
    expect(failure).toMatchObject({ code: "CONNECT_FAILED", cause: { code: "ECONNREFUSED" } });
  });

  it("tells a server that hangs up in the handshake", async () => {
    const server = await serving((peer) => {
      peer.hangUp();
      return Promise.resolve();
    });
    const failure = await failureWith({ socketPath: server.socketPath, exportName: "" });
    expect(failure).toMatchObject({ code: "CONNECTION_LOST" });
  });

  it("gives up on a server that accepts and then is silent", async () => {
    const server = await serving((peer) => peer.hungUp());
    const failure = await failureWith({
      socketPath: server.socketPath,
      exportName: "",
      connectTimeoutMs: 50,
    });
    expect(failure).toMatchObject({ code: "TIMEOUT" });
  });

  it("stops at once when its signal aborts, before or while connecting", async () => {
    const server = await serving((peer) => peer.hungUp());
    const options = { socketPath: server.socketPath, exportName: "" };
    const early = await failureWith({ ...options, signal: AbortSignal.abort("no") });
    expect(early).toMatchObject({ code: "ABORTED", cause: "no" });
    const controller = new AbortController();
    const connecting = failureWith({ ...options, signal: controller.signal });
    controller.abort("changed my mind");
    expect(await connecting).toMatchObject({ code: "ABORTED", cause: "changed my mind" });
  });

  it("refuses data that the server sends before any request", async () => {
    const server = await serving(async (peer) => {
      await peer.send(greeting());
      await peer.receive(4);
      await peer.receiveOption();
      await peer.send(optionReply(OPT.STRUCTURED_REPLY, REP.ACK));
      await peer.receiveOption();
      const ack = optionReply(OPT.GO, REP.ACK);
      await peer.send(Buffer.concat([optionReply(OPT.GO, REP.INFO, exportInfo(512)), ack, simpleReply(1)]));
      await peer.hungUp();
    });
    const options = { socketPath: server.socketPath, exportName: "", extendedHeaders: false };
    const failure = await failureWith(options);
    expect(failure).toMatchObject({ code: "UNSOLICITED_DATA" });
  });

  it("ends the handshake with ABORT when the server lacks the export", async () => {
    let last: number | undefined;
    const server = await serving(async (peer) => {
      await peer.send(greeting());
      await peer.receive(4);
      await peer.receiveOption();
      await peer.send(optionReply(OPT.STRUCTURED_REPLY, REP.ACK));
      await peer.receiveOption();
      await peer.send(optionReply(OPT.GO, REP_ERR.UNKNOWN));
      last = (await peer.receiveOption()).option;
      await peer.hungUp();
    });
    const options = { socketPath: server.socketPath, exportName: "none", extendedHeaders: false };
    const failure = await failureWith(options);
    expect(failure).toMatchObject({ code: "EXPORT_NOT_FOUND" });
    await expect.poll(() => last).toBe(OPT.ABORT);
  });

  const misuses: readonly [what: string, options: NbdConnectOptions][] = [
    ["neither socket nor host", { exportName: "" }],
    ["both socket and host", { socketPath: "/tmp/s", host: "localhost", exportName: "" }],
    ["a socket and a port", { socketPath: "/tmp/s", port: 1, exportName: "" }],
    [
      "a socket path that the system would cut off",
      { socketPath: `/tmp/${"s".repeat(103)}`, exportName: "" },
    ],
    ["a port out of range", { host: "localhost", port: 65536, exportName: "" }],
    ["an export name of more than 4096 bytes", { socketPath: "/tmp/s", exportName: "é".repeat(2049) }],
    [
      "a wildcard for contexts",
      { socketPath: "/tmp/s", exportName: "", metaContexts: ["qemu:dirty-bitmap:"] },
    ],
    ["a timeout of nothing", { socketPath: "/tmp/s", exportName: "", connectTimeoutMs: 0 }],
    [
      "a timeout that a timer cannot hold",
      { socketPath: "/tmp/s", exportName: "", requestTimeoutMs: 2 ** 31 },
    ],
  ];

  it.each(misuses)("refuses %s", async (_what, options) => {
    expect(await failureWith(options)).toMatchObject({ code: "INVALID_ARGUMENT", scope: "usage" });
  });
});

describe("listExports", () => {
  it("gives up on a server that is silent", async () => {
    const server = await serving((peer) => peer.hungUp());
    const listing = listExports({ socketPath: server.socketPath, connectTimeoutMs: 50 });
    expect(await failureOf(listing)).toMatchObject({ code: "TIMEOUT" });
  });
});
