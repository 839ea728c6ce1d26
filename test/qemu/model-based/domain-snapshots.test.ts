import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { SnapshotKind } from "../../../src/model/domain-snapshot.js";
import { type Asked, SnapshotWorld } from "./snapshot-world.js";

/** `npm run test:model` runs many more than the default test run. */
const RUNS = Number(process.env["FLEECE_MODEL_RUNS"] ?? 1);
const STEPS = Number(process.env["FLEECE_MODEL_STEPS"] ?? 12);
/** The same histories each time in `npm test`; new ones in `npm run test:model`. */
const SEED = process.env["FLEECE_MODEL_RUNS"] === undefined ? { seed: 1 } : {};

interface Write {
  readonly disk: number;
  readonly at: number;
  readonly length: number;
  readonly pattern: number;
}

type Action =
  | { do: "create"; external: Asked; internal: Asked; disk: number; other: boolean; again: boolean }
  | { do: "revert"; which: number; force: boolean }
  | { do: "delete" | "clone" | "removeClone"; which: number }
  | { do: "backup" | "togglePower" | "togglePause" };

/** What the guest writes, and then what is done to the domain. */
interface Step {
  readonly writes: readonly Write[];
  readonly action: Action;
}

const which = fc.noBias(fc.nat(20));
const rarely = fc.noBias(fc.nat(11)).map((number) => number === 0);
const write: fc.Arbitrary<Write> = fc.record({
  disk: fc.noBias(fc.nat(2)),
  at: fc.nat(1000),
  length: fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 400_000 })),
  pattern: fc.integer({ min: 1, max: 255 }),
});
const action: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("create" as const),
      external: fc.constantFrom<Asked>("plain", "plain", "live", "diskOnly", "one"),
      internal: fc.constantFrom<Asked>("internal", "internal", "internalDisks"),
      disk: fc.noBias(fc.nat(2)),
      // Now and then what must be refused.
      other: rarely,
      again: rarely,
    }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant("revert" as const), which, force: rarely }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("delete" as const), which }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constantFrom("clone" as const, "removeClone" as const), which }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("backup" as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("togglePower" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("togglePause" as const) }) },
);
const step: fc.Arbitrary<Step> = fc.record({ writes: fc.array(write, { maxLength: 3 }), action });

describe("Domain snapshots, against a naive model", () => {
  it(
    "hold what was there at their moment, as the present, clones and backups do, after any history",
    async () => {
      const counts = new Map<string, number>();
      await fc.assert(
        fc.asyncProperty(
          fc.constantFrom<SnapshotKind>("external", "external", "external", "internal"),
          fc.array(step, { minLength: STEPS, maxLength: STEPS }),
          async (kind, steps) => {
            await using world = await SnapshotWorld.create(kind);
            try {
              for (const next of steps) {
                world.history.push(JSON.stringify(next));
                for (const each of next.writes) await world.write(each);
                await perform(world, next.action);
                await world.check();
              }
              await world.checkRestores();
            } catch (error) {
              throw new Error(`After this history:\n${world.history.join("\n")}`, { cause: error });
            }
            for (const [what, count] of world.counts) counts.set(what, (counts.get(what) ?? 0) + count);
            if (RUNS > 1) process.stdout.write(`${JSON.stringify(Object.fromEntries(counts))}\n`);
          },
        ),
        // A shrunk history costs minutes of real VMs; the whole one is printed and can be replayed by its seed.
        { numRuns: RUNS, endOnFailure: true, ...SEED },
      );
      expect(counts.size).toBeGreaterThan(0);
    },
    RUNS * STEPS * 30_000,
  );
});

async function perform(world: SnapshotWorld, next: Action): Promise<void> {
  switch (next.do) {
    case "create":
      return world.create(next);
    case "revert":
      return world.revert(next.which, next.force);
    case "delete":
      return world.delete(next.which);
    case "clone":
      return world.clone(next.which);
    case "removeClone":
      return world.removeClone(next.which);
    case "backup":
      return world.backup();
    case "togglePower":
      return world.togglePower();
    case "togglePause":
      return world.togglePause();
  }
}
