import { describe, expect, it } from "vitest";
import type { BitmapInfo, QmpSession } from "../../../src/qmp/index.js";
import { addQcow2, connectTo, failureOf, startPeer } from "./processes.js";

const megabyte = 1024 * 1024;

async function bitmapsOf(session: QmpSession, node: string): Promise<BitmapInfo[]> {
  const nodes = await session.execute("query-named-block-nodes", { flat: true });
  return nodes.find((candidate) => candidate["node-name"] === node)?.["dirty-bitmaps"] ?? [];
}

async function sessionWithDisk(): Promise<QmpSession> {
  const peer = await startPeer("qemu-storage-daemon");
  const session = await connectTo(peer);
  await addQcow2(peer, session, "disk", 4 * megabyte);
  return session;
}

/** Marks the whole disk dirty, as a writer would: a backup of zeroes onto it. */
async function writeAll(session: QmpSession): Promise<void> {
  const zeroes = {
    driver: "null-co",
    "node-name": "zeroes",
    size: 4 * megabyte,
    "read-zeroes": true,
  } as const;
  await session.execute("blockdev-add", zeroes);
  await session.runJob("blockdev-backup", { "job-id": "w", device: "zeroes", target: "disk", sync: "full" });
}

describe("bitmap commands", () => {
  it("adds and merges in one transaction", async () => {
    const session = await sessionWithDisk();
    await session.execute("block-dirty-bitmap-add", { node: "disk", name: "old", persistent: true });
    await writeAll(session);
    await session.execute("transaction", {
      actions: [
        { type: "block-dirty-bitmap-add", data: { node: "disk", name: "sum", disabled: true } },
        { type: "block-dirty-bitmap-merge", data: { node: "disk", target: "sum", bitmaps: ["old"] } },
        { type: "block-dirty-bitmap-clear", data: { node: "disk", name: "old" } },
      ],
    });
    const [sum, old] = (await bitmapsOf(session, "disk")).sort((a, b) => a.count - b.count).reverse();
    expect(sum).toMatchObject({ name: "sum", count: 4 * megabyte, recording: false, persistent: false });
    expect(old).toMatchObject({ name: "old", count: 0, recording: true, persistent: true, busy: false });
  });

  it("leaves nothing of a transaction whose last action fails", async () => {
    const session = await sessionWithDisk();
    await session.execute("block-dirty-bitmap-add", { node: "disk", name: "old" });
    await writeAll(session);
    const before = await bitmapsOf(session, "disk");
    const transaction = session.execute("transaction", {
      actions: [
        { type: "block-dirty-bitmap-add", data: { node: "disk", name: "new", persistent: true } },
        { type: "block-dirty-bitmap-disable", data: { node: "disk", name: "old" } },
        { type: "block-dirty-bitmap-clear", data: { node: "disk", name: "old" } },
        { type: "block-dirty-bitmap-merge", data: { node: "disk", target: "new", bitmaps: ["absent"] } },
      ],
    });
    expect(await failureOf(transaction)).toMatchObject({
      code: "QMP_COMMAND_FAILED",
      qemuText: "Dirty bitmap 'absent' not found",
    });
    expect(await bitmapsOf(session, "disk")).toEqual(before);
  });

  it("disables, enables, merges from another node, clears and removes", async () => {
    const session = await sessionWithDisk();
    await session.execute("block-dirty-bitmap-add", { node: "disk", name: "a", granularity: 65_536 });
    await writeAll(session);
    await session.execute("block-dirty-bitmap-disable", { node: "disk", name: "a" });
    expect(await bitmapsOf(session, "disk")).toMatchObject([{ name: "a", recording: false }]);
    await session.execute("block-dirty-bitmap-enable", { node: "disk", name: "a" });
    const copy = { driver: "null-co", "node-name": "copy", size: 4 * megabyte } as const;
    await session.execute("blockdev-add", copy);
    await session.execute("block-dirty-bitmap-add", { node: "copy", name: "b", granularity: 65_536 });
    const bitmaps = [{ node: "disk", name: "a" }];
    await session.execute("block-dirty-bitmap-merge", { node: "copy", target: "b", bitmaps });
    expect(await bitmapsOf(session, "copy")).toMatchObject([{ name: "b", count: 4 * megabyte }]);
    await session.execute("block-dirty-bitmap-clear", { node: "copy", name: "b" });
    expect(await bitmapsOf(session, "copy")).toMatchObject([{ name: "b", count: 0 }]);
    await session.execute("block-dirty-bitmap-remove", { node: "disk", name: "a" });
    expect(await bitmapsOf(session, "disk")).toEqual([]);
  });

  it("takes a snapshot onto an overlay in a transaction", async () => {
    const peer = await startPeer("qemu-system-x86_64");
    const session = await connectTo(peer);
    await addQcow2(peer, session, "base", megabyte);
    await addQcow2(peer, session, "made", megabyte);
    await session.execute("blockdev-del", { "node-name": "made" });
    await session.execute("blockdev-add", {
      driver: "qcow2",
      "node-name": "top",
      file: "made-file",
      backing: null,
    });
    await session.execute("transaction", {
      actions: [
        { type: "blockdev-snapshot", data: { node: "base", overlay: "top" } },
        { type: "block-dirty-bitmap-add", data: { node: "top", name: "c" } },
      ],
    });
    expect(await bitmapsOf(session, "top")).toMatchObject([{ name: "c" }]);
    const { edges } = await session.execute("x-debug-query-block-graph");
    expect(edges.map(({ name }) => name)).toContain("backing");
  });

  it("builds the fleecing chain of copy-before-write and snapshot-access", async () => {
    const peer = await startPeer("qemu-storage-daemon");
    const session = await connectTo(peer);
    await addQcow2(peer, session, "disk", megabyte);
    await addQcow2(peer, session, "scratch", megabyte);
    await session.execute("blockdev-add", {
      driver: "copy-before-write",
      "node-name": "cbw",
      file: "disk",
      target: "scratch",
      "on-cbw-error": "break-snapshot",
      "cbw-timeout": 2,
    });
    await session.execute("blockdev-add", { driver: "snapshot-access", "node-name": "access", file: "cbw" });
    const drivers = (await session.execute("query-named-block-nodes", { flat: true })).map(({ drv }) => drv);
    expect(drivers).toEqual(expect.arrayContaining(["copy-before-write", "snapshot-access"]));
  });
});
