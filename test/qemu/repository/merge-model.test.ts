import { readFile } from "node:fs/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isIntact, type IntactEntry } from "../../../src/model/backup.js";
import { BLOCK_SIZE, type BlockRun } from "../../../src/model/extents.js";
import type { RetentionPolicy } from "../../../src/model/retention.js";
import { deleteBackup, protectBackup } from "../../../src/services/backup-catalog.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { pruneDomain } from "../../../src/services/prune.js";
import { FleeceError, isFleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { qemuImg } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { type DiskContent, DOMAIN, noise, RepositoryFixture } from "./backup-fixture.js";

/** `npm run test:model` runs many more than the default test run. */
const RUNS = Number(process.env["FLEECE_MODEL_RUNS"] ?? 1);
const STEPS = Number(process.env["FLEECE_MODEL_STEPS"] ?? 10);
/** The same histories each time in `npm test`; new ones in `npm run test:model`. */
const SEED = process.env["FLEECE_MODEL_RUNS"] === undefined ? { seed: 1 } : {};

interface Change {
  readonly block: number;
  readonly count: number;
  readonly kind: "data" | "zero" | "sparse";
  readonly seed: number;
}

type Step =
  | { do: "backup"; onto: number; changes: Change[]; grow: boolean; without: boolean; full: boolean }
  | { do: "delete" | "protect" | "interruptedDelete"; which: number }
  | { do: "prune"; policy: Omit<RetentionPolicy, "timeZone"> };

const change: fc.Arbitrary<Change> = fc.record({
  block: fc.nat(30),
  count: fc.integer({ min: 1, max: 6 }),
  kind: fc.constantFrom("data", "data", "zero", "sparse"),
  seed: fc.nat(1000),
});

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("backup" as const),
      // Mostly onto the newest.
      onto: fc.oneof({ weight: 5, arbitrary: fc.constant(0) }, fc.nat(3)),
      changes: fc.array(change, { maxLength: 4 }),
      ...{ grow: oneIn(8), without: oneIn(8), full: oneIn(10) },
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constantFrom("delete" as const, "interruptedDelete" as const, "protect" as const),
      which: fc.nat(20),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("prune" as const),
      policy: fc.oneof(
        fc.record({ last: fc.integer({ min: 1, max: 4 }) }),
        fc.record({ weekly: fc.integer({ min: 1, max: 3 }) }),
        fc.record({ maximumChainLength: fc.integer({ min: 1, max: 4 }) }),
      ),
    }),
  },
);

function oneIn(chances: number): fc.Arbitrary<boolean> {
  return fc.nat(chances - 1).map((value) => value === 0);
}

/** A repository of real images, and beside it what each backup must bring back, all of it. */
class Model {
  readonly #fixture: RepositoryFixture;
  readonly #context: ServiceContext;
  readonly #scratch: string;
  readonly #contents = new Map<string, ReadonlyMap<string, Buffer>>();
  #count = 0;
  merges = 0;

  private constructor(fixture: RepositoryFixture, context: ServiceContext, scratch: string) {
    this.#fixture = fixture;
    this.#context = context;
    this.#scratch = scratch;
  }

  static async create(): Promise<Model> {
    const directory = await temporaryDirectory();
    const fixture = await RepositoryFixture.create();
    const world = new FakeWorld(directory.path, { disks: [{ target: "vda", sizeBytes: BLOCK_SIZE }] });
    const context = { ...world.process().context, repositories: new Map([["default", fixture.repository]]) };
    return new Model(fixture, context, directory.file("read.raw"));
  }

  async perform(next: Step): Promise<void> {
    switch (next.do) {
      case "backup":
        return this.#backUp(next);
      case "prune": {
        const before = (await this.#listed()).length;
        await pruneDomain(this.#context, DOMAIN, { policy: { ...next.policy, timeZone: "UTC" } });
        const left = await this.#listed();
        if (before > 0) expect(left.length).toBeGreaterThan(0);
        this.merges += before - left.length;
        for (const id of this.#contents.keys()) {
          if (!left.some((entry) => entry.id === id)) this.#contents.delete(id);
        }
        return;
      }
      case "delete":
      case "interruptedDelete":
      case "protect":
        return this.#touch(next);
    }
  }

  /** Every backup that is listed is exactly what it was, for us and for QEMU's own tools, and none is missing. */
  async check(): Promise<void> {
    const listed = await this.#listed();
    expect(listed.map(({ id }) => id).toSorted()).toEqual([...this.#contents.keys()].toSorted());
    for (const entry of listed) {
      for (const [target, content] of this.#contents.get(entry.id) ?? []) {
        const what = `disk ${target} of ${entry.id}`;
        await using backup = await this.#fixture.repository.open(entry, { targets: [target] });
        await using expected = await backup.expectations(target);
        expect(await expected.firstMismatch(0, content), `${what}, by its digests`).toBeUndefined();
        await qemuImg(
          "convert",
          "-f",
          "qcow2",
          "-O",
          "raw",
          this.#fixture.file(entry.id, `${target}.qcow2`),
          this.#scratch,
        );
        expect((await readFile(this.#scratch)).equals(content), what).toBe(true);
      }
    }
  }

  async #backUp({ onto, changes, grow, without, full }: Extract<Step, { do: "backup" }>): Promise<void> {
    const parent = full ? undefined : (await this.#listed()).at(-1 - onto);
    const before = this.#contents.get(parent?.id ?? "");
    const disks: Record<string, DiskContent> = {};
    for (const target of without ? ["vda"] : ["vda", "vdb"]) {
      const old = before?.get(target);
      if (old === undefined || (grow && target === "vda")) {
        const content = noise((old?.length ?? 20 * BLOCK_SIZE) + 3 * BLOCK_SIZE + 512, this.#count + 1);
        content.fill(0, 5 * BLOCK_SIZE, 9 * BLOCK_SIZE);
        disks[target] = { content, mode: "whole" };
      } else {
        const content = Buffer.from(old);
        const runs = apply(content, target === "vda" ? changes : changes.slice(1));
        disks[target] = { content, runs, mode: "changes" };
      }
    }
    this.#count += 1;
    const { id } = await this.#fixture.backUp(`b${this.#count}`, disks, parent);
    this.#contents.set(id, new Map(Object.entries(disks).map(([target, { content }]) => [target, content])));
  }

  async #touch({ do: what, which }: Extract<Step, { which: number }>): Promise<void> {
    const listed = await this.#listed();
    const chosen = listed[which % Math.max(1, listed.length)];
    if (chosen === undefined) return;
    if (what === "protect") {
      await protectBackup(this.#context, chosen.id, chosen.protected !== true);
      return;
    }
    try {
      if (what === "delete") await deleteBackup(this.#context, chosen.id);
      else await this.#interruptMerge(chosen);
      // An earlier merge into it goes first: cancelled in that one, its own has not begun, and it must be what it was.
      const remains = (await this.#listed()).some(({ id }) => id === chosen.id);
      if (remains && what === "interruptedDelete") return;
      this.#contents.delete(chosen.id);
      this.merges += 1;
    } catch (error) {
      if (!isFleeceError(error, "BACKUP_HAS_CHILDREN", "BACKUP_PROTECTED")) throw error;
    }
  }

  /** Cancelled as soon as the first blocks are copied; if there are none it comes to its end. */
  async #interruptMerge(entry: IntactEntry): Promise<void> {
    const lock = await this.#fixture.repository.lock(DOMAIN);
    const cancel = new AbortController();
    try {
      const onProgress = (): void => cancel.abort(new FleeceError("INTERRUPTED", "Cancelled by the test"));
      await this.#fixture.repository.merge(entry, { signal: cancel.signal, onProgress });
    } catch (error) {
      if (!isFleeceError(error, "INTERRUPTED")) throw error;
    } finally {
      await lock.release();
    }
  }

  async #listed(): Promise<readonly IntactEntry[]> {
    const entries = await this.#fixture.repository.list(DOMAIN);
    expect(entries.filter((entry) => !isIntact(entry))).toEqual([]);
    return entries.filter(isIntact);
  }
}

/** Changes the content; the runs that a backup would be told of, in order. `sparse` is data with zeroes in it. */
function apply(content: Buffer, changes: readonly Change[]): BlockRun[] {
  const kinds = new Map<number, "data" | "zero">();
  const blocks = Math.ceil(content.length / BLOCK_SIZE);
  for (const { block, count, kind, seed } of changes) {
    for (let index = block; index < Math.min(block + count, blocks); index++) {
      const [start, end] = [index * BLOCK_SIZE, Math.min((index + 1) * BLOCK_SIZE, content.length)];
      const isZero = kind === "zero" || (kind === "sparse" && index % 2 === 0);
      if (isZero) content.fill(0, start, end);
      else noise(end - start, seed + index).copy(content, start);
      kinds.set(index, kind === "zero" ? "zero" : "data");
    }
  }
  return [...kinds]
    .toSorted(([a], [b]) => a - b)
    .map(([index, kind]) => {
      const offset = index * BLOCK_SIZE;
      return { offset, length: Math.min(BLOCK_SIZE, content.length - offset), kind };
    });
}

/** So that no history is without a merge. */
const BEGINNING: readonly Step[] = [
  { do: "backup", onto: 0, changes: [], grow: false, without: false, full: true },
  {
    ...{ do: "backup", onto: 0, grow: false, without: false, full: false },
    changes: [{ block: 1, count: 3, kind: "sparse", seed: 1 }],
  },
  { do: "interruptedDelete", which: 0 },
];

describe("Merging and pruning of real images, against a naive model", () => {
  it(
    "leaves every listed backup exactly what it was, after any history",
    async () => {
      let merges = 0;
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: STEPS, maxLength: STEPS }), async (steps) => {
          const model = await Model.create();
          for (const next of [...BEGINNING, ...steps]) {
            await model.perform(next);
            if (next.do !== "backup") await model.check();
          }
          await model.check();
          merges += model.merges;
        }),
        // A shrunk history costs minutes; the whole one is printed and can be replayed by its seed.
        { numRuns: RUNS, endOnFailure: true, ...SEED },
      );
      expect(merges).toBeGreaterThan(0);
    },
    RUNS * STEPS * 30_000,
  );
});
