import { fileURLToPath } from "node:url";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { PROTO_DIRECTORY } from "../../src/api/proto.js";
import { StateDirectory } from "../../src/drivers/state-directory.js";
import { agentSocket, startAgent, VendorClient, type Fields } from "../support/agent.js";
import { BoundProcess } from "../support/bound-process.js";
import { untilTestEnds } from "../support/lifetime.js";
import { qemuImg } from "../support/image-tool.js";
import { Scene } from "./support/scene.js";
import { sampled } from "../support/sample.js";

const script = fileURLToPath(new URL("../support/vendor.mjs", import.meta.url));

/** Far more than a lease that is waited for takes to be ended. */
const ENDED = { timeout: 60_000, interval: 100 };
const LEASE_MS = 2000;

async function sceneWithAgent() {
  const scene = await Scene.start(2);
  await scene.backUp();
  const agent = await startAgent(scene.at);
  return { scene, agent };
}

async function expectLeaseEnds(scene: Scene): Promise<void> {
  await expect.poll(() => scene.expectClean().then(() => "clean", String), ENDED).toBe("clean");
}

async function expectNextIsRight(scene: Scene): Promise<void> {
  await scene.touch();
  const next = await scene.backUp();
  expect(next.level, next.reason).toBe("INCREMENTAL");
  await scene.expectClean();
  await scene.expectVerified();
}

describe("a vendor's client that gets SIGKILL", () => {
  it.each(sampled(["reading", "creating", "exported", "deleting", "created"], 3))(
    "when it has come to %s leaves nothing once its lease has ended, and the next backup is right",
    async (point) => {
      const { scene } = await sceneWithAgent();
      const args = [script, agentSocket(scene.at), PROTO_DIRECTORY, String(LEASE_MS), point];
      const vendor = untilTestEnds(await BoundProcess.start(process.execPath, args));
      const isThere = () => new RegExp(`^${point}$`, "m").test(vendor.stdout);
      await expect.poll(() => [isThere(), vendor.stderr], { ...ENDED, interval: 1 }).toEqual([true, ""]);
      await vendor.stop("SIGKILL");
      await scene.touch();
      await expectLeaseEnds(scene);
      const names = await scene.checkpoints();
      // Once delete was sent it is the vendor's word that all was read.
      if (point !== "deleting") expect(names).not.toContain("night");
      await expectNextIsRight(scene);
    },
  );
});

describe("the agent, killed and started again", () => {
  it("leaves exports readable meanwhile, and ends the snapshot when its lease does", async () => {
    const { scene, agent } = await sceneWithAgent();
    const { at } = scene;
    const disk = at.vm.disk("vda").path;
    await scene.touch();
    const frozen = await scene.readRaw(disk, "qcow2");
    const client = new VendorClient(at);
    await client.call("BlockSnapshots.Create", { domain: "vm", name: "night", leaseMs: 3_600_000 });
    const { exports } = await client.call("BlockExports.Start", { domain: "vm", snapshot: "night" });
    const [vda] = exports as readonly Fields[];
    const read = async (): Promise<Buffer> => {
      const copy = at.directory.file("copy.raw");
      await qemuImg("convert", "-O", "raw", String(vda?.["uri"]), copy);
      return scene.readRaw(copy, "raw");
    };
    await agent.kill("SIGKILL");
    await scene.touch();
    expect((await read()).equals(frozen)).toBe(true);
    await startAgent(at);
    await scene.touch();
    expect((await read()).equals(frozen)).toBe(true);
    const later = new VendorClient(at);
    expect(await later.call("BlockSnapshots.Get", { domain: "vm", name: "night" })).toMatchObject({
      exports: [{ target: "vda" }, { target: "vdb" }],
    });
    await later.call("BlockSnapshots.Renew", { domain: "vm", name: "night", leaseMs: 1000 });
    await expectLeaseEnds(scene);
    const gone = later.call("BlockSnapshots.Get", { domain: "vm", name: "night" });
    await expect(gone).rejects.toThrow(/has ended at .*: its lease ended at \S+ and was not renewed/);
    await expectNextIsRight(scene);
  });

  it("ends a snapshot whose lease ended while there was no agent", async () => {
    const { scene, agent } = await sceneWithAgent();
    const client = new VendorClient(scene.at);
    await client.call("BlockSnapshots.Create", { domain: "vm", name: "night", leaseMs: 1000 });
    await agent.kill("SIGKILL");
    await new Promise((resolve) => setTimeout(resolve, 1100));
    await startAgent(scene.at);
    await expectLeaseEnds(scene);
    await expectNextIsRight(scene);
  });
});

describe("the lease of a block snapshot", () => {
  it("is renewed while another operation holds the domain, and ends after it", async () => {
    const { scene } = await sceneWithAgent();
    const client = new VendorClient(scene.at);
    const night = { domain: "vm", name: "night" };
    await client.call("BlockSnapshots.Create", { ...night, disks: ["vda"], leaseMs: 60_000 });
    const store = new StateDirectory(scene.at.directory.file("state"));
    const lock = await store.lockDomain("vm", "a long backup of vdb");
    await client.call("BlockSnapshots.Renew", { ...night, leaseMs: 600_000 });
    expect(await client.call("BlockSnapshots.Get", night)).toMatchObject({ name: "night", leaseMs: 600_000 });
    const { leaseEndTime } = await client.call("BlockSnapshots.Renew", { ...night, leaseMs: 1000 });
    const { seconds, nanos } = leaseEndTime as { readonly seconds: number; readonly nanos: number };
    while (Date.now() <= seconds * 1000 + nanos / 1e6) await delay(20);
    // It has ended, but nobody else may work on the domain yet.
    await expect(client.call("BlockSnapshots.Renew", night)).rejects.toThrow(/was not renewed/);
    expect((await scene.at.files()).some((file) => file.startsWith("state/operations/"))).toBe(true);
    await lock.release();
    await expectLeaseEnds(scene);
  });
});
