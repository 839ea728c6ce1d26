import { existsSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { imageInfo } from "../../support/image-tool.js";
import { makeRow, Scene } from "./scene.js";
import { TARGETS } from "./support/scene-model.js";

/** `npm run test:model` runs many more than the default test run. */
const RUNS = Number(process.env["FLEECE_MODEL_RUNS"] ?? 1);
const STEPS = Number(process.env["FLEECE_MODEL_STEPS"] ?? 14);
/** The same histories each time in `npm test`; new ones in `npm run test:model`. */
const SEED = process.env["FLEECE_MODEL_RUNS"] === undefined ? { seed: 1 } : {};

async function remove(scene: Scene, name: string) {
  const outcome = await deleteDomainSnapshot(scene.context, { domain: "vm", name });
  scene.model.forget(name);
  await scene.check();
  return outcome;
}

describe.each([true, false])("Deleting a domain snapshot, with the domain running: %s", (running) => {
  it.each([
    ["oldest first", ["one", "two", "three"]],
    ["from the middle", ["two", "three", "one"]],
  ])("keeps all others and the present, and loses no change: %s", async (_, order) => {
    const scene = untilTestEnds(await Scene.create({ running }));
    await makeRow(scene);
    for (const name of order) await remove(scene, name);
    for (const target of TARGETS) {
      const { file, home } = await scene.layer(target);
      expect(file).toBe(home);
      expect((await imageInfo(home, "qcow2")).backing).toBeUndefined();
    }
    if (running) {
      for (const target of TARGETS) await scene.write(target, 30, 1, 7);
      await scene.stop();
    }
    await scene.check();
  });

  it("goes back to a raw home file, unless layers above need bitmaps that it cannot hold", async () => {
    const home = { format: "raw", file: expect.stringMatching(/vda\.img$/) as string };
    const back = untilTestEnds(await Scene.create({ running, format: "raw" }));
    await makeRow(back);
    for (const name of ["three", "two", "one"]) await remove(back, name);
    expect(await back.layer("vda")).toMatchObject(home);
    const away = untilTestEnds(await Scene.create({ format: "raw" }));
    await makeRow(away);
    await remove(away, "one");
    expect((await away.document()).snapshots[0]?.disks[0]).not.toMatchObject(home);
  });

  it("leaves files alone with metadataOnly", async () => {
    const scene = untilTestEnds(await Scene.create({ running }));
    await makeRow(scene);
    const [disk] = (await scene.document()).snapshots[1]?.disks ?? [];
    const request = { domain: "vm", name: "two", metadataOnly: true };
    const { merged } = await deleteDomainSnapshot(scene.context, request);
    expect(merged).toContainEqual({ target: disk?.target, how: "left", from: disk?.file });
    scene.model.forget("two");
    await scene.check();
    expect(existsSync(disk?.file ?? "")).toBe(true);
    // What has no name any more may be somebody's all the same.
    await remove(scene, "one");
    expect(existsSync(disk?.file ?? "")).toBe(true);
  });
});

describe("Deleting a domain snapshot", () => {
  // With the domain running, a storage daemon works on the branches that it has not open.
  it("gives each of several children the content, and keeps their branches", async () => {
    const scene = untilTestEnds(await Scene.create());
    await makeRow(scene);
    for (const [index, name] of ["two-b", "two-c"].entries()) {
      await scene.revert("two");
      for (const target of TARGETS) await scene.write(target, 12 + index, 3, 40 + index);
      await scene.snapshot(name);
      for (const target of TARGETS) await scene.write(target, 20, 3, 50 + index);
    }
    await scene.start();
    await scene.check();
    const outcome = await remove(scene, "two");
    expect(outcome.reparented).toEqual(["three", "two-b", "two-c"]);
    expect((await scene.document()).snapshots.map(({ name, parent }) => [name, parent])).toEqual([
      ["one", undefined],
      ["three", "one"],
      ["two-b", "one"],
      ["two-c", "one"],
    ]);
    for (const name of ["one", "three", "two-c", "two-b"]) await remove(scene, name);
    await scene.stop();
    await scene.check();
  });

  it("while the guest writes loses none of its writes", async () => {
    const scene = untilTestEnds(await Scene.create({ running: true }));
    await makeRow(scene);
    let turns = 0;
    for (const name of ["three", "one", "two"]) {
      const state: { isDone: boolean } = { isDone: false };
      const deletion = deleteDomainSnapshot(scene.context, { domain: "vm", name }).finally(
        () => (state.isDone = true),
      );
      while (!state.isDone) {
        const turn = turns++;
        for (const target of TARGETS) await scene.write(target, (turn * 5) % 32, 1, (turn % 250) + 1);
      }
      await deletion;
      scene.model.forget(name);
      await scene.check({ bitmaps: "more" });
    }
    expect(turns).toBeGreaterThan(3);
    await scene.stop();
    await scene.check({ bitmaps: "more" });
  });

  it("refuses unknown names, and snapshots with clones until their directories are gone", async () => {
    const scene = untilTestEnds(await Scene.create());
    await makeRow(scene);
    const request = { domain: "vm", name: "one" };
    await expect(deleteDomainSnapshot(scene.context, { ...request, name: "x" })).rejects.toMatchObject({
      code: "DOMAIN_SNAPSHOT_NOT_FOUND",
    });
    const all = await scene.document();
    const clones = [
      { directory: scene.directory.path, timeMs: 1 },
      { directory: scene.directory.file("gone"), timeMs: 1 },
    ];
    await scene.context.domainSnapshots.write({
      ...all,
      snapshots: all.snapshots.map((each) => (each.name === "one" ? { ...each, clones } : each)),
    });
    await expect(deleteDomainSnapshot(scene.context, request)).rejects.toMatchObject({
      code: "DOMAIN_SNAPSHOT_IN_USE",
      facts: { clones: [scene.directory.path] },
    });
    await scene.check();
    await scene.context.domainSnapshots.write({
      ...all,
      snapshots: all.snapshots.map((each) =>
        each.name === "one" ? { ...each, clones: clones.slice(1) } : each,
      ),
    });
    await remove(scene, "one");
  });
});

type Step =
  | { do: "write"; disk: number; block: number; length: number; pattern: number }
  | { do: "snapshot" | "checkpoint" | "power" }
  | { do: "revert" | "delete"; which: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("write" as const),
      disk: fc.nat(1),
      block: fc.nat(31),
      length: fc.integer({ min: 1, max: 8 }),
      pattern: fc.integer({ min: 1, max: 255 }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("snapshot" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom("checkpoint" as const, "power" as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("delete" as const), which: fc.nat(20) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("revert" as const), which: fc.nat(20) }) },
);

describe("Trees of domain snapshots, against a naive model", () => {
  it(
    "show every moment that remains, and lose no change, after any history",
    async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: STEPS, maxLength: STEPS }), async (steps) => {
          await using scene = await Scene.create();
          let made = 0;
          const history: string[] = [];
          try {
            for (const next of steps) {
              const chosen =
                "which" in next ? scene.model.names()[next.which % scene.model.names().length] : undefined;
              history.push(`${JSON.stringify(next)} ${chosen ?? ""}`);
              if (next.do === "write")
                await scene.write(TARGETS[next.disk] ?? "vda", next.block, next.length, next.pattern);
              if (next.do === "snapshot") await scene.snapshot(`s${made++}`);
              if (next.do === "checkpoint") await scene.checkpoint(`c${made++}`);
              if (next.do === "power") await (scene.vm === undefined ? scene.start() : scene.stop());
              if (next.do === "delete" && chosen !== undefined) await remove(scene, chosen);
              if (next.do === "revert" && chosen !== undefined) {
                await scene.stop();
                await scene.revert(chosen);
              }
            }
            await scene.stop();
            await scene.check();
          } catch (error) {
            throw new Error(`After this history:\n${history.join("\n")}`, { cause: error });
          }
        }),
        { numRuns: RUNS, endOnFailure: true, ...SEED },
      );
    },
    RUNS * STEPS * 30_000,
  );
});
