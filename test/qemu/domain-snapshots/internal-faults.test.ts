import { describe, expect, it } from "vitest";
import { createInternal } from "../../../src/services/domain-snapshots/internal.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { TestVm } from "../../support/vm.js";
import { Scene } from "./scene.js";
import { blocksOf } from "./support/disk-content.js";
import { TARGETS } from "./support/scene-model.js";

/**
 * A snapshot `a` that this QEMU cannot load: it has more RAM than the one of which it was taken. QEMU finds that out after the disks.
 * The snapshot is as of a version that recorded no machine: else the revert would be refused.
 */
async function withUnfitSnapshot(): Promise<Scene> {
  const scene = untilTestEnds(await Scene.create({ running: true }));
  for (const target of TARGETS) await scene.write(target, 0, 4, 1);
  await createInternal(scene.context, { domain: "vm", name: "a" });
  const { snapshots, ...document } = await scene.document();
  const unrecorded = snapshots.map(({ machine: _, ...snapshot }) => snapshot);
  await scene.context.domainSnapshots.write({ ...document, snapshots: unrecorded });
  for (const target of TARGETS) await scene.write(target, 0, 4, 2);
  await scene.stop();
  const disks = TARGETS.map((target) => {
    return { target, path: scene.directory.file(`${target}.img`), format: "qcow2" as const };
  });
  scene.vm = await TestVm.start({ directory: scene.directory.path, disks, memoryMib: 128 });
  return scene;
}

async function statusOf(scene: Scene): Promise<unknown> {
  return ((await scene.vm?.qmp("query-status")) as { readonly status: string }).status;
}

async function firstBlocks(scene: Scene): Promise<(number | undefined)[]> {
  const contents = TARGETS.map((target) => blocksOf(scene.directory.file(`${target}.img`), "qcow2"));
  return (await Promise.all(contents)).map(([first]) => first);
}

describe("An internal snapshot whose memory QEMU cannot load", () => {
  it("leaves the guest in the present that was kept, disks and memory", async () => {
    const scene = await withUnfitSnapshot();
    await expect(revertDomainSnapshot(scene.context, { domain: "vm", name: "a" })).rejects.toMatchObject({
      code: "MEMORY_LOAD_FAILED",
      message: expect.stringContaining("as it was before") as string,
    });
    expect(await statusOf(scene)).toBe("running");
    expect(await firstBlocks(scene)).toEqual([2, 2]);
    expect((await scene.document()).current).toMatch(/^before-a-/);
    expect(await scene.context.store.operations()).toEqual([]);
  });

  it("never runs a guest on half of it when the present was not kept", async () => {
    const scene = await withUnfitSnapshot();
    const request = { domain: "vm", name: "a", force: true };
    await expect(revertDomainSnapshot(scene.context, request)).rejects.toMatchObject({
      code: "MEMORY_LOAD_FAILED",
      message: expect.stringContaining("stays stopped") as string,
    });
    await recoverAll(scene.context);
    expect(await statusOf(scene)).not.toBe("running");
    expect(await scene.context.store.operations()).toEqual([]);
  });
});
