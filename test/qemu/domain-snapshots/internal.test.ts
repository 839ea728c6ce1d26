import { describe, expect, it } from "vitest";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { createInternal } from "../../../src/services/domain-snapshots/internal.js";
import { revertCost, revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { CounterGuest } from "../../guest/counter-guest.js";
import { createImage, qemuImg } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { TestVm } from "../../support/vm.js";
import { startSceneAgent, Scene } from "./scene.js";
import { blocksOf } from "./support/disk-content.js";
import { TARGETS } from "./support/scene-model.js";

const MIB = 1 << 20;

async function namesIn(file: string): Promise<string[]> {
  const info = JSON.parse(await qemuImg("info", "-U", "--output=json", file)) as {
    snapshots?: { name: string }[];
  };
  return (info.snapshots ?? []).map(({ name }) => name);
}

async function contents(scene: Scene): Promise<number[][]> {
  return await Promise.all(TARGETS.map((target) => blocksOf(scene.directory.file(`${target}.img`), "qcow2")));
}

describe("Internal domain snapshots of a running domain", () => {
  it("put RAM and disks back to one moment, keep the present, and are deleted", async () => {
    const directory = await temporaryDirectory();
    const disks = [];
    for (const target of TARGETS) {
      const path = directory.file(`${target}.img`);
      await createImage(path, 64 * MIB);
      disks.push({ target, path, format: "qcow2" as const });
    }
    const guest = untilTestEnds(await CounterGuest.boot({ directory: directory.path, disks, name: "vm" }));
    const { counter, vm } = guest;
    const context = await startSceneAgent(directory);
    const made = await createInternal(context, { domain: "vm", name: "a", kind: "internal" });
    expect(made).toMatchObject({
      state: "running",
      kind: "internal",
      memory: { kind: "internal", target: "vda" },
    });
    const atMost = counter.count();
    await counter.waitCount(atMost + 20);

    await vm.qmp("block-dirty-bitmap-add", { node: "vda-format", name: "fleece:1:1:1:cp", persistent: true });
    const request = { domain: "vm", name: "a" };
    await expect(revertDomainSnapshot(context, request)).rejects.toMatchObject({
      code: "FORCE_NEEDED",
      message: expect.stringContaining("cp") as string,
    });
    await vm.qmp("block-dirty-bitmap-remove", { node: "vda-format", name: "fleece:1:1:1:cp" });
    const before = counter.console.lines.length;
    const reverted = await revertDomainSnapshot(context, request);
    expect(reverted).toMatchObject({ state: "running", endedCheckpoints: [] });
    await counter.waitTurns(2);
    const counted = counter.console.lines.slice(before).flatMap((line) => /^T (\d+)$/.exec(line)?.[1] ?? []);
    expect(Math.min(...counted.map(Number))).toBeLessThan(atMost + 20);
    expect(counter.mismatches()).toEqual([]);
    expect(await counter.check()).toMatch(/^ok /);

    // What it was before is a snapshot, too, and from there it goes on.
    const kept = reverted.keptAs ?? "";
    await revertDomainSnapshot(context, { domain: "vm", name: kept, force: true });
    await counter.waitTurns(2);
    expect(counter.count()).toBeGreaterThanOrEqual(atMost + 20);
    expect(counter.mismatches()).toEqual([]);
    for (const name of ["a", kept]) await deleteDomainSnapshot(context, { domain: "vm", name });
    for (const { path } of disks) expect(await namesIn(path)).toEqual([]);
    await counter.waitTurns(1);
    expect(await context.domainSnapshots.read("vm")).toMatchObject({ snapshots: [] });
    expect(await context.store.operations()).toEqual([]);
  });

  it("without memory are made at one moment, and cannot be put back under the guest", async () => {
    const scene = untilTestEnds(await Scene.create({ running: true }));
    await scene.write("vda", 0, 4, 1);
    const made = await createInternal(scene.context, { domain: "vm", name: "a", diskOnly: true });
    expect(made).toMatchObject({ consistency: "crash" });
    expect(made.memory).toBeUndefined();
    await expect(
      createInternal(scene.context, { domain: "vm", name: "a", diskOnly: true }),
    ).rejects.toMatchObject({
      code: "ALREADY_EXISTS",
    });
    await expect(
      revertDomainSnapshot(scene.context, { domain: "vm", name: "a", force: true }),
    ).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
    await scene.write("vda", 0, 4, 2);
    await scene.stop();
    await revertDomainSnapshot(scene.context, { domain: "vm", name: "a" });
    expect((await contents(scene))[0]?.slice(0, 5)).toEqual([1, 1, 1, 1, 0]);
  });

  it("keep what the machine was, and need force to be loaded into another one", async () => {
    const scene = untilTestEnds(await Scene.create({ running: true }));
    const { context } = scene;
    const made = await createInternal(context, { domain: "vm", name: "a" });
    expect(made.machine).toMatchObject({
      cpus: 1,
      arguments: expect.arrayContaining(["-blockdev"]) as unknown,
    });
    await scene.stop();
    scene.vm = await TestVm.start({
      directory: scene.directory.path,
      disks: TARGETS.map((target) => ({
        ...{ target, path: scene.directory.file(`${target}.img`), format: "qcow2" as const },
      })),
      extraArguments: ["-device", "virtio-rng-pci,id=rng0"],
    });
    const request = { domain: "vm", name: "a" };
    const { risks } = await revertCost(context, request);
    expect(risks).toEqual([expect.stringMatching(/^device virtio-rng-pci .* was not there$/)]);
    await expect(revertDomainSnapshot(context, request)).rejects.toMatchObject({
      code: "FORCE_NEEDED",
      facts: { risks },
    });
    expect(await revertDomainSnapshot(context, { ...request, force: true })).toMatchObject({
      state: "running",
    });
    const diskOnly = await createInternal(context, { domain: "vm", name: "b", diskOnly: true });
    expect(diskOnly).not.toHaveProperty("machine");
  });

  it("do not survive, with nothing left behind, when one disk cannot hold them", async () => {
    const scene = untilTestEnds(await Scene.create({ running: true, format: "raw" }));
    await expect(createInternal(scene.context, { domain: "vm", name: "a" })).rejects.toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringContaining("raw for disk vda") as string,
    });
    expect(await namesIn(scene.directory.file("vdb.img"))).toEqual([]);
    expect(await scene.context.store.operations()).toEqual([]);
  });
});

describe("Internal domain snapshots of an inactive domain", () => {
  it("put all disks back, and checkpoints end with a warning", async () => {
    const scene = untilTestEnds(await Scene.create());
    await scene.write("vda", 0, 4, 1);
    await scene.write("vdb", 8, 4, 2);
    const then = await contents(scene);
    await createInternal(scene.context, { domain: "vm", name: "a" });
    await scene.checkpoint("cp");
    await scene.write("vda", 2, 4, 3);
    const now = await contents(scene);
    const request = { domain: "vm", name: "a" };
    await expect(revertDomainSnapshot(scene.context, request)).rejects.toMatchObject({
      code: "FORCE_NEEDED",
    });
    expect(await contents(scene)).toEqual(now);
    expect(await revertDomainSnapshot(scene.context, { ...request, force: true })).toMatchObject({
      endedCheckpoints: ["cp"],
      state: "inactive",
    });
    expect(await contents(scene)).toEqual(then);
    // Within one second, too, what is kept gets a name of its own.
    const { clock } = scene.context;
    const still = Object.assign(Object.create(clock) as typeof clock, { now: () => 1_700_000_000_000 });
    const kept: string[] = [];
    for (let time = 0; time < 2; time++) {
      const { keptAs = "" } = await revertDomainSnapshot({ ...scene.context, clock: still }, request);
      kept.push(keptAs);
    }
    expect((await namesIn(scene.directory.file("vda.img"))).toSorted()).toEqual(["a", ...new Set(kept)]);
    for (const name of kept) await deleteDomainSnapshot(scene.context, { domain: "vm", name });
    await deleteDomainSnapshot(scene.context, request);
    expect(await namesIn(scene.directory.file("vda.img"))).toEqual([]);
    expect(await contents(scene)).toEqual(then);
  });

  it("are rolled back on the disks that have one when another disk is in use", async () => {
    const scene = untilTestEnds(await Scene.create());
    const [vda, vdb] = TARGETS.map((target) => scene.directory.file(`${target}.img`));
    // The same name by another hand: qemu-img would make a second one without a word.
    await qemuImg("snapshot", "-c", "a", vdb ?? "");
    await expect(createInternal(scene.context, { domain: "vm", name: "a" })).rejects.toMatchObject({
      code: "ALREADY_EXISTS",
    });
    expect(await namesIn(vdb ?? "")).toEqual(["a"]);
    await qemuImg("snapshot", "-d", "a", vdb ?? "");
    const undo = { register: () => Promise.resolve(), settle: () => Promise.resolve() };
    const images = await scene.context.internals.open(await scene.document());
    const failing = {
      ...scene.context,
      internals: {
        open: () =>
          Promise.resolve(
            Object.assign(Object.create(images) as typeof images, {
              state: "inactive",
              checkIdle: () => images.checkIdle(),
              disks: () => images.disks(),
              remove: (name: string) => images.remove(name, { id: "x", undo }),
              resume: () => images.resume(),
              [Symbol.asyncDispose]: () => images[Symbol.asyncDispose](),
              save: async (name: string) => {
                await qemuImg("snapshot", "-c", name, vda ?? "");
                throw new Error("the second disk failed");
              },
            }),
          ),
      },
    };
    await expect(createInternal(failing, { domain: "vm", name: "a" })).rejects.toThrow(
      "the second disk failed",
    );
    expect(await namesIn(vda ?? "")).toEqual([]);
    expect(await scene.context.store.operations()).toEqual([]);
  });

  it("are refused above external ones", async () => {
    const scene = untilTestEnds(await Scene.create());
    await scene.snapshot("external");
    await expect(createInternal(scene.context, { domain: "vm", name: "a" })).rejects.toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringContaining("external") as string,
    });
  });
});
