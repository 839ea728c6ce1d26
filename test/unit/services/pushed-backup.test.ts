import { describe, expect, it } from "vitest";
import { runBackup } from "../../../src/services/backup-run.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const BLOCK = 65_536;

describe("runBackup of disks that QEMU pushes", () => {
  it("succeeds when the monitor is lost after all disks were copied", async () => {
    const { path } = await temporaryDirectory();
    const disks = ["vda", "vdb"].map((target) => ({ target, sizeBytes: 4 * BLOCK }));
    const world = new FakeWorld(path, { disks, staged: true });
    for (const { target } of disks) world.domain.write(target, BLOCK, 512, 0x77);
    const before = await world.traces();
    const { context } = world.process();
    let reads = 0;
    const readers: typeof context.readers = {
      open: (address, signal) => {
        reads += 1;
        if (reads === disks.length) world.domain.disconnect();
        return context.readers.open(address, signal);
      },
    };
    const { id } = await runBackup({ ...context, parallelDisks: 1, readers }, { domain: "vm" });
    expect(reads).toBe(disks.length);
    for (const { target } of disks) {
      expect(world.repository.content(id, target).equals(world.domain.disk(target).content)).toBe(true);
    }
    expect(await world.traces()).toEqual(before);
  });
});
