import { mkdir, symlink } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { DomainSnapshotProgress } from "../../../src/model/domain-snapshot.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { mountTmpfs } from "../../support/mount.js";
import { QmpProxy } from "../../support/qmp-proxy.js";
import { type Bitmaps, makeRow, Scene } from "./scene.js";
import { TARGETS } from "./support/scene-model.js";
import { MortalProcess } from "./support/stepped-context.js";
import { ALL_FAULTS } from "../../support/sample.js";

/** All faults, or a sample of them: see test/faults/README.md. */
const EVERY = ALL_FAULTS ? 1 : 20;

/** Recovery, then the rest of the deletion if it is not done. All must be as the model has it after each. */
async function recoverAndFinish(scene: Scene, name: string, bitmaps: Bitmaps = "exact"): Promise<void> {
  await recoverAll(scene.context);
  const isThere = (await scene.document()).snapshots.some((snapshot) => snapshot.name === name);
  if (!isThere) scene.model.forget(name);
  await scene.check({ bitmaps });
  if (!isThere) return;
  await deleteDomainSnapshot(scene.context, { domain: "vm", name });
  scene.model.forget(name);
  await scene.check({ bitmaps });
}

async function writeMore(scene: Scene): Promise<void> {
  for (const target of TARGETS) await scene.write(target, 2, 3, 123);
  await scene.check();
}

describe.each([true, false])("A deletion whose process is killed, with the domain running: %s", (running) => {
  it.each(ALL_FAULTS ? ["three", "two"] : [running ? "three" : "two"])(
    "is finished or undone by the next command: %s",
    async (name) => {
      let writes = Infinity;
      for (let at = 1; at <= writes; at += EVERY) {
        await using scene = await Scene.create({ running });
        await makeRow(scene);
        const process = new MortalProcess(scene.context, at);
        const deletion = deleteDomainSnapshot(process.context, { domain: "vm", name });
        await Promise.race([deletion, process.died]);
        await process.buried();
        if (process.writes < at) writes = process.writes;
        await recoverAndFinish(scene, name);
        await writeMore(scene);
        await scene.stop();
        await scene.check();
      }
      expect(writes).toBeGreaterThan(10);
    },
  );
});

describe("A deletion", () => {
  it.each(ALL_FAULTS ? ["three", "two"] : ["two"])(
    "that is cancelled leaves all as it was, and can be repeated: %s",
    async (name) => {
      const scene = untilTestEnds(await Scene.create({ running: true }));
      await makeRow(scene);
      const controller = new AbortController();
      const onProgress = ({ phase }: DomainSnapshotProgress): void => {
        if (phase === "merging") controller.abort(new Error("enough"));
      };
      const { signal } = controller;
      const request = { domain: "vm", name };
      await expect(deleteDomainSnapshot(scene.context, request, { signal, onProgress })).rejects.toThrow(
        "enough",
      );
      await scene.check();
      await recoverAndFinish(scene, name);
      await scene.stop();
      await scene.check();
    },
  );

  it("during which QEMU is killed loses nothing but checkpoints", async () => {
    const scene = untilTestEnds(await Scene.create({ running: true }));
    await makeRow(scene);
    for (const target of TARGETS) await scene.vm?.guestFlush(target);
    let killed: Promise<void> | undefined;
    const onProgress = ({ phase }: DomainSnapshotProgress): void => {
      if (phase === "merging") killed ??= scene.kill();
    };
    const request = { domain: "vm", name: "three" };
    await expect(deleteDomainSnapshot(scene.context, request, { onProgress })).rejects.toMatchObject({
      code: "DOMAIN_UNREACHABLE",
    });
    await killed;
    await recoverAndFinish(scene, "three", "lost");
  });

  it("into a full file system leaves the chain as it was", async ({ skip }) => {
    const small = (await temporaryDirectory()).file("small");
    await mkdir(small);
    if (!(await mountTmpfs(small, "size=900k"))) skip("cannot run here: this user may not mount");
    const scene = untilTestEnds(
      await Scene.create({
        running: true,
        prepare: (directory) => symlink(`${small}/vda.img`, directory.file("vda.img")),
      }),
    );
    await scene.snapshot("one");
    for (const target of TARGETS) await scene.write(target, 0, 24, 5);
    const request = { domain: "vm", name: "one" };
    await expect(deleteDomainSnapshot(scene.context, request)).rejects.toMatchObject({ code: "NO_SPACE" });
    await scene.check();
    await scene.write("vda", 4, 4, 6);
    await scene.check();
  });

  const losses = [
    ["block-commit", "replies"],
    ["job-complete", "replies"],
    ["block-commit", "commands"],
    ["transaction", "replies"],
    ["job-complete", "commands"],
    ["job-dismiss", "commands"],
    ["blockdev-del", "commands"],
  ] as const;
  it.each(ALL_FAULTS ? losses : losses.slice(0, 1))(
    "whose monitor is lost at %s (its %s) knows what QEMU did",
    async (command, lost) => {
      const scene = untilTestEnds(await Scene.create({ running: true, vmName: "real" }));
      await makeRow(scene);
      await using proxy = await QmpProxy.listen(scene.directory.file("vm.qmp"), scene.vm?.qmpPath ?? "");
      const stalled = proxy.stallAt(new RegExp(`"${command}"`), lost).then(() => proxy.hangUp());
      const deletion = deleteDomainSnapshot(scene.context, { domain: "vm", name: "three" });
      await Promise.all([stalled, expect(deletion).rejects.toMatchObject({ code: "DOMAIN_UNREACHABLE" })]);
      await recoverAndFinish(scene, "three");
      await writeMore(scene);
      await scene.stop();
      await scene.check();
    },
  );
});
