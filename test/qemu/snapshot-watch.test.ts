import { readdir } from "node:fs/promises";
import { connectNbd } from "nbd-client-ts";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { getBlockSnapshotHandler, listBlockSnapshotsHandler } from "../../src/api/block-snapshots.js";
import { listBlockExportsHandler } from "../../src/api/block-exports.js";
import { startExports } from "../../src/services/block-exports.js";
import { createBlockSnapshot, deleteBlockSnapshot } from "../../src/services/block-snapshots.js";
import { watchSnapshots } from "../../src/services/snapshot-watch.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const OVER_LIMIT = /given up: its scratch space of 4\.\d MiB is over the limit of 3 MiB/;
const FULL = /disk vda is gone: its scratch space reached the limit of 3 MiB/;

/** An open snapshot of both disks whose exports are read, with a limit of 3 MiB. */
async function startScene() {
  const at = await startSite();
  await writeConfig(at.directory.path, {
    domains: [domainConfig("vm", at.vm)],
    more: { runtimeDir: at.directory.file("run"), scratch: { limit: "3M" } },
  });
  const ignore = (): void => undefined;
  const log = { debug: ignore, info: ignore, warn: ignore };
  const context = await startAgent(await loadConfig(at.configPath), log);
  await createBlockSnapshot(context, { domain: "vm", name: "night", checkpoint: {}, leaseMs: 600_000 });
  const [address] = await startExports(context, { domain: "vm", snapshot: "night" });
  if (address === undefined) throw new Error("Expected an export");
  const connect = () => connectNbd({ socketPath: address.socketPath, exportName: address.exportName });
  const write = async (target: string, lengthBytes: number): Promise<void> => {
    expect(await at.vm.guestWrite(target, 0, lengthBytes, 0xee)).toMatchObject({ ok: true });
  };
  const show = () => getBlockSnapshotHandler(context, { domain: "vm", name: "night" });
  return { at, context, connect, write, show };
}

type Scene = Awaited<ReturnType<typeof startScene>>;

/** The guest has its disks to itself, nobody is offered anything, and only a deletion as failed is possible. */
async function expectEnded({ at, context, show }: Scene, why: RegExp): Promise<void> {
  const { devices, exports } = await at.vm.blockState();
  expect(devices.filter((device) => device.includes("fleece"))).toEqual([]);
  expect(exports).toEqual([]);
  expect(await show()).toMatchObject({ broken: expect.stringMatching(why) as string, exports: [] });
  await expect(deleteBlockSnapshot(context, "vm", "night", "success")).rejects.toMatchObject({
    code: "SNAPSHOT_BROKEN",
    message: expect.stringMatching(why) as string,
  });
  const { nodes, bitmaps } = await at.vm.blockState();
  expect(nodes.filter((node) => node.includes("fleece"))).toEqual([]);
  expect(bitmaps).toEqual([]);
  expect(await readdir(at.directory.file("scratch"))).toEqual([]);
}

describe("watchSnapshots", () => {
  it("leaves a snapshot alone that is sound and keeps to its scratch space", async () => {
    const scene = await startScene();
    await scene.write("vda", MIB);
    const before = await scene.at.vm.blockState();
    await watchSnapshots(scene.context, "vm");
    expect(await scene.at.vm.blockState()).toEqual(before);
    expect(await scene.show()).not.toHaveProperty("broken", expect.any(String));
    await deleteBlockSnapshot(scene.context, "vm", "night", "success");
  });

  it("ends the exports of a broken one under its readers, who would get the disk of today", async () => {
    const scene = await startScene();
    await using reader = await scene.connect();
    expect((await reader.read(0, 512))[0]).toBe(0x5a);
    await scene.write("vda", 4 * MIB);
    // Nothing but the state tells that this is not the frozen content any more. Which parts are lost is a matter of chance.
    expect((await reader.read(0, 4 * MIB)).includes(0xee)).toBe(true);
    const broken = expect.stringMatching(FULL) as string;
    expect(await scene.show()).toMatchObject({ broken, exports: [{ broken }, { broken }] });
    expect(
      await listBlockSnapshotsHandler(scene.context, { domain: "vm", pageSize: 0, pageToken: "" }),
    ).toMatchObject({
      snapshots: [{ broken }],
    });
    expect(await listBlockExportsHandler(scene.context, {})).toMatchObject({
      exports: [{ broken }, { broken }],
    });
    await watchSnapshots(scene.context, "vm");
    await expect(reader.read(0, 512)).rejects.toMatchObject({ scope: "connection" });
    await expect(scene.connect()).rejects.toThrow();
    await watchSnapshots(scene.context, "vm");
    await expectEnded(scene, FULL);
  });

  it("gives up one whose images together are over the limit, and says so until it is deleted", async () => {
    const scene = await startScene();
    await scene.write("vda", 2 * MIB);
    await scene.write("vdb", 2 * MIB);
    expect(await scene.show()).not.toHaveProperty("broken", expect.any(String));
    await watchSnapshots(scene.context, "vm");
    const ended = await scene.at.vm.blockState();
    await watchSnapshots(scene.context, "vm");
    expect(await scene.at.vm.blockState()).toEqual(ended);
    await scene.write("vda", 8 * MIB);
    await expectEnded(scene, OVER_LIMIT);
  });

  it("does nothing while another operation is at work on the domain, and all of it afterwards", async () => {
    const scene = await startScene();
    await scene.write("vda", 4 * MIB);
    const before = await scene.at.vm.blockState();
    const lock = await scene.context.store.lockDomain("vm", "test");
    await watchSnapshots(scene.context, "vm");
    expect(await scene.at.vm.blockState()).toEqual(before);
    expect(await scene.show()).not.toHaveProperty("broken", expect.any(String));
    await lock.release();
    await watchSnapshots(scene.context, "vm");
    await expectEnded(scene, FULL);
  });

  it("says of a domain that was stopped that its snapshot is broken", async () => {
    const scene = await startScene();
    await scene.at.vm.quit();
    await watchSnapshots(scene.context, "vm");
    expect(await scene.show()).toMatchObject({
      broken: "Domain vm was stopped after the block snapshot was taken",
      exports: [],
    });
  });
});
