import { describe, expect, it } from "vitest";
import { fileDigest } from "../../support/image-tool.js";
import { startCounterScene } from "./counter-scene.js";

describe("createDomainSnapshot of a running domain", () => {
  it("takes memory and disks of one moment, with the guest paused, and with it running", async () => {
    const scene = await startCounterScene(["qcow2", "raw", "qcow2"]);
    const { guest } = scene;
    const ballast = await guest.counter.check();

    const before = guest.counter.count();
    const paused = await scene.create({ name: "paused" });
    await scene.expectCounting();
    const between = guest.counter.count();
    const live = await scene.create({ name: "live", live: true });
    await scene.expectCounting();

    expect(paused).toMatchObject({ name: "paused", state: "running", kind: "external", live: false });
    expect(live).toMatchObject({ parent: "paused", live: true, state: "running" });
    expect(paused.pausedMs).toBeGreaterThan(0);
    expect(paused.disks.map(({ target, format }) => [target, format])).toEqual([
      ["vda", "qcow2"],
      ["vdb", "raw"],
      ["vdc", "qcow2"],
    ]);
    if (paused.memory?.kind !== "external") throw new Error("Expected memory in a file");
    expect(await fileDigest(paused.memory.file)).toBe(paused.memory.sha256);
    const all = await scene.context.domainSnapshots.read("vm");
    expect(all).toMatchObject({ current: "live", snapshots: [paused, live] });
    expect(all.layers.map(({ target, home, active }) => [target, home, active])).toEqual(
      guest.vm.disks.map(({ target, path }) => [
        target,
        path,
        scene.directory.file(`state/domain-snapshots/vm/${target}-live.qcow2`),
      ]),
    );
    expect(live.disks[0]?.file).toBe(scene.directory.file("state/domain-snapshots/vm/vda-paused.qcow2"));

    for (const [snapshot, least, most] of [
      [paused, before, between],
      [live, between, guest.counter.count()],
    ] as const) {
      const second = await scene.load(snapshot);
      expect(await second.vm.qmp("query-status")).toMatchObject({ running: false });
      await second.vm.qmp("cont");
      await second.counter.waitTurns(1);
      // Two turns at most: one that was under way at the moment, and the first one after it.
      expect(second.counter.count()).toBeGreaterThan(least);
      expect(second.counter.count()).toBeLessThanOrEqual(most + 2);
      await second.counter.waitTurns(2);
      expect(second.counter.mismatches()).toEqual([]);
      expect(await second.counter.check()).toBe(ballast);
      await second[Symbol.asyncDispose]();
    }

    // The detector itself: memory of one snapshot, disks of the other.
    const wrong = await scene.load(paused, live);
    await wrong.vm.qmp("cont");
    await wrong.counter.waitTurns(2);
    expect(wrong.counter.mismatches()).not.toEqual([]);
  });
});
