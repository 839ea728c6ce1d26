import { describe, expect, it } from "vitest";
import { connectQmp, isEvent, isVersionAtLeast, type QmpEvent } from "../../../src/qmp/index.js";
import { addQcow2, connectTo, failureOf, type PeerKind, startPeer } from "./processes.js";

const kinds: readonly PeerKind[] = ["qemu-system-x86_64", "qemu-storage-daemon"];
const megabyte = 1024 * 1024;

describe.each(kinds)("QmpSession with %s", (kind) => {
  it("negotiates and gives the same version in greeting and query", async () => {
    const session = await connectTo(await startPeer(kind));
    const { qemu } = await session.execute("query-version");
    expect(session.version).toMatchObject(qemu);
    expect(isVersionAtLeast(session.version, 7, 2)).toBe(true);
  });

  it("adds a qcow2 node, shows it and deletes it", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addQcow2(peer, session, "disk", 64 * megabyte);
    const nodes = await session.execute("query-named-block-nodes", { flat: true });
    const disk = nodes.find((node) => node["node-name"] === "disk");
    expect(disk).toMatchObject({ drv: "qcow2", ro: false, image: { "virtual-size": 64 * megabyte } });
    const { edges } = await session.execute("x-debug-query-block-graph");
    expect(edges.map(({ name }) => name)).toContain("file");
    await session.execute("blockdev-del", { "node-name": "disk" });
    await session.execute("blockdev-del", { "node-name": "disk-file" });
    expect(await session.execute("query-named-block-nodes")).toEqual([]);
  });

  it("exports a node with a bitmap over NBD, and sees the export's end as an event", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addQcow2(peer, session, "disk", megabyte);
    await session.execute("block-dirty-bitmap-add", { node: "disk", name: "b", disabled: true });
    const path = peer.directory.file("nbd");
    await session.execute("nbd-server-start", { addr: { type: "unix", data: { path } } });
    const bitmaps = [{ node: "disk", name: "b" }];
    const description = { type: "nbd", id: "e", "node-name": "disk", bitmaps } as const;
    await session.execute("block-export-add", description);
    expect(await session.execute("query-block-exports")).toEqual([
      { type: "nbd", id: "e", "node-name": "disk", "shutting-down": false },
    ]);
    const gone = session.waitForEvent((event) => isEvent(event, "BLOCK_EXPORT_DELETED"), {
      timeoutMs: 60_000,
    });
    await session.execute("block-export-del", { id: "e", mode: "hard" });
    expect((await gone).data).toEqual({ id: "e" });
    await session.execute("nbd-server-stop");
  });

  it("passes on QEMU's class and text when it refuses", async () => {
    const session = await connectTo(await startPeer(kind));
    expect(await failureOf(session.execute("blockdev-del", { "node-name": "x" }))).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      command: "blockdev-del",
      qmpClass: "GenericError",
      qemuText: "Failed to find node with node-name='x'",
    });
  });

  it("carries a hundred calls in flight at once", async () => {
    const session = await connectTo(await startPeer(kind));
    const sizes = Array.from({ length: 100 }, (_, index) => index * 512);
    await Promise.all(
      sizes.map((size) =>
        session.execute("blockdev-add", { driver: "null-co", "node-name": `n${size}`, size }),
      ),
    );
    const nodes = await session.execute("query-named-block-nodes", { flat: true });
    expect(nodes.map(({ image }) => image["virtual-size"]).sort((a, b) => a - b)).toEqual(sizes);
  });

  it("keeps characters outside ASCII in both directions", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await addQcow2(peer, session, "disk", megabyte);
    const name = "Sicherung 漢 😀 \u0001";
    await session.execute("block-dirty-bitmap-add", { node: "disk", name });
    const nodes = await session.execute("query-named-block-nodes");
    expect(nodes.flatMap((node) => node["dirty-bitmaps"] ?? []).map((bitmap) => bitmap.name)).toEqual([name]);
  });

  it("tells a second client that the monitor is taken, until the first has gone", async () => {
    const peer = await startPeer(kind);
    const first = await connectTo(peer);
    const second = connectQmp({ socketPath: peer.socketPath, connectTimeoutMs: 200 });
    expect(await failureOf(second)).toMatchObject({ code: "QMP_NO_GREETING" });
    expect(await first.execute("query-jobs")).toEqual([]);
    await first.close();
    const third = await connectTo(peer, { connectTimeoutMs: 60_000 });
    expect(await third.execute("query-jobs")).toEqual([]);
  });

  it("gives each of many waiting clients the same answer, also when the queue is full", async () => {
    const peer = await startPeer(kind);
    await connectTo(peer);
    const attempts = Array.from({ length: 6 }, () =>
      failureOf(connectQmp({ socketPath: peer.socketPath, connectTimeoutMs: 300 })),
    );
    for (const failure of await Promise.all(attempts)) {
      expect(failure).toMatchObject({ code: "QMP_NO_GREETING" });
    }
  });

  it("fails a pending call when the peer is killed, then is refused at the socket left behind", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    // Stopped first, so that the call cannot be answered before the kill.
    process.kill(peer.process.pid, "SIGSTOP");
    const pending = failureOf(session.execute("query-jobs"));
    await peer.process.stop("SIGKILL");
    const failure = await pending;
    expect(failure).toMatchObject({ code: "QMP_DISCONNECTED", command: "query-jobs" });
    expect(await session.closed).toMatchObject({ code: "QMP_DISCONNECTED" });
    expect(await failureOf(connectQmp({ socketPath: peer.socketPath }))).toMatchObject({
      code: "QMP_REFUSED",
    });
  });

  it("times out while the peer hangs, and works on when it goes on", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    process.kill(peer.process.pid, "SIGSTOP");
    const late = failureOf(session.execute("query-jobs", undefined, { timeoutMs: 50 }));
    expect(await late).toMatchObject({ code: "QMP_TIMEOUT" });
    process.kill(peer.process.pid, "SIGCONT");
    expect(await session.execute("query-block-exports")).toEqual([]);
  });

  it("answers quit before the connection ends", async () => {
    const peer = await startPeer(kind);
    const session = await connectTo(peer);
    await session.execute("quit");
    expect(await session.closed).toMatchObject({ code: "QMP_DISCONNECTED" });
    expect((await peer.process.ended).exitCode).toBe(0);
  });

  it("says so when the monitor prints prettily", async () => {
    const peer = await startPeer(kind, { monitorOptions: ",pretty=on" });
    expect(await failureOf(connectQmp({ socketPath: peer.socketPath }))).toMatchObject({
      code: "QMP_NOT_QMP",
      message: expect.stringContaining("pretty=on") as unknown,
    });
  });
});

describe("QmpSession with a machine", () => {
  it("stops and continues it, with events, and reads what describes it", async () => {
    const session = await connectTo(await startPeer("qemu-system-x86_64"));
    const events: string[] = [];
    session.onEvent((event: QmpEvent) => events.push(event.event));
    expect(await session.execute("query-status")).toMatchObject({ running: false, status: "prelaunch" });
    await session.execute("cont");
    expect(await session.execute("query-status")).toMatchObject({ running: true, status: "running" });
    await session.execute("stop");
    expect(events).toEqual(expect.arrayContaining(["RESUME", "STOP"]));
    expect((await session.execute("query-uuid")).UUID).toMatch(/^[0-9a-f-]{36}$/);
    expect(await session.execute("query-name")).toEqual({});
    expect(await session.execute("query-iothreads")).toEqual([]);
    expect(await session.execute("query-migrate")).toEqual({});
    expect(await session.execute("query-block")).toEqual([]);
    expect(await session.execute("query-block-jobs")).toEqual([]);
  });

  it("walks and reads the object tree, and runs a human command", async () => {
    const session = await connectTo(await startPeer("qemu-system-x86_64"));
    const members = await session.execute("qom-list", { path: "/machine" });
    expect(members.map(({ name }) => name)).toContain("peripheral");
    expect(await session.execute("qom-get", { path: "/machine", property: "type" })).toBe("none-machine");
    const text = await session.execute("human-monitor-command", { "command-line": "info version" });
    expect(text).toContain(`${session.version.major}.${session.version.minor}`);
  });

  it("does not find its commands in a storage daemon", async () => {
    const session = await connectTo(await startPeer("qemu-storage-daemon"));
    expect(await failureOf(session.execute("query-status"))).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      qmpClass: "CommandNotFound",
    });
  });
});
