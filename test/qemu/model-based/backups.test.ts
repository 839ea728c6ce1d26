import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Change } from "./world.js";
import { World } from "./world.js";

/** `npm run test:model` runs many more than the default test run. */
const RUNS = Number(process.env["FLEECE_MODEL_RUNS"] ?? 1);
const STEPS = Number(process.env["FLEECE_MODEL_STEPS"] ?? 16);
/** The same histories in every `npm test`, others in every `npm run test:model`. */
const SEED = process.env["FLEECE_MODEL_RUNS"] === undefined ? { seed: 1 } : {};

const change: fc.Arbitrary<Change> = fc.record({
  kind: fc.constantFrom("write", "write", "write", "zero", "unmap", "discard"),
  disk: fc.nat(2),
  at: fc.nat(1000),
  length: fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 400_000 })),
  pattern: fc.integer({ min: 1, max: 255 }),
});
const few = fc.array(change, { maxLength: 3 });
const changes = fc.array(change, { minLength: 1, maxLength: 6 });

type Step =
  | { do: "change"; changes: Change[] }
  | { do: "backup"; level?: "full"; frozen: Change[]; during: Change[] }
  | { do: "cancelledBackup"; afterSteps: number }
  | { do: "killedBackup"; afterMs: number }
  | { do: "deleteCheckpoint" | "deleteBackup"; which: number }
  | { do: "restartVm" | "togglePower" | "killQemu" }
  | { do: "loseBitmap"; disk: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ do: fc.constant("change" as const), changes }) },
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constant("backup" as const), frozen: few, during: few }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("backup" as const),
      level: fc.constant("full" as const),
      frozen: few,
      during: few,
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("cancelledBackup" as const), afterSteps: fc.nat(6) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("killedBackup" as const),
      afterMs: fc.integer({ min: 200, max: 1500 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constantFrom("deleteCheckpoint" as const, "deleteBackup" as const),
      which: fc.nat(20),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom("restartVm" as const, "togglePower" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("killQemu" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("loseBitmap" as const), disk: fc.nat(2) }) },
);

describe("Backups of a domain, against a naive model", () => {
  it(
    "restore every listed backup to what the disks held at its moment, and leave nothing behind, after any history",
    async () => {
      let backups = 0;
      let incrementals = 0;
      await fc.assert(
        fc.asyncProperty(
          fc.boolean(),
          fc.array(step, { minLength: STEPS, maxLength: STEPS }),
          async (withRaw, steps) => {
            await using world = await World.create({ withRaw });
            try {
              for (const next of steps) {
                world.history.push(JSON.stringify(next));
                await perform(world, next);
                if (next.do !== "change") await world.check();
              }
              await world.checkRestores();
            } catch (error) {
              throw new Error(`After this history:\n${world.history.join("\n")}`, { cause: error });
            }
            backups += world.backups;
            incrementals += world.incrementals;
          },
        ),
        // A shrunk history costs minutes of real VMs; the whole one is printed and can be replayed by its seed.
        { numRuns: RUNS, endOnFailure: true, ...SEED },
      );
      expect(backups).toBeGreaterThan(0);
      expect(incrementals).toBeGreaterThan(0);
    },
    RUNS * STEPS * 30_000,
  );
});

async function perform(world: World, next: Step): Promise<void> {
  switch (next.do) {
    case "change":
      return world.change(next.changes);
    case "backup":
      return world.backup(next.level, next);
    case "cancelledBackup":
      return world.cancelledBackup(next.afterSteps);
    case "killedBackup":
      return world.killedBackup(next.afterMs);
    case "deleteCheckpoint":
      return world.deleteCheckpoint(next.which);
    case "deleteBackup":
      return world.deleteBackup(next.which);
    case "restartVm":
      return world.restartVm();
    case "togglePower":
      return world.togglePower();
    case "killQemu":
      return world.killQemu();
    case "loseBitmap":
      return world.loseBitmap(next.disk);
  }
}
