import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { CheckpointBitmap } from "../../../src/model/checkpoint.js";
import {
  bitmapName,
  changesSince,
  deadBitmaps,
  nextOrder,
  parseBitmapName,
  planDeletion,
} from "../../../src/model/checkpoint.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { FakeDisk } from "../../support/fake-disk.js";

const FIRST = Array.from("ABCXYZabcxyz0189_");
const name = fc
  .tuple(
    fc.constantFrom(...FIRST),
    fc.string({ unit: fc.constantFrom(...FIRST, ".", ":", "+", "@", "=", "-"), maxLength: 127 }),
  )
  .map((parts) => parts.join(""));
const checkpoint = fc.record({
  name,
  order: fc.nat({ max: 999_999_999_999 }),
  timeMs: fc.nat({ max: 999_999_999_999_999 }),
});

function bitmap(order: number, state: Partial<CheckpointBitmap> = {}): CheckpointBitmap {
  const id = { name: `c${order}`, order, timeMs: order };
  const flags = { recording: false, inconsistent: false, busy: false, persistent: true };
  return { ...id, bitmap: bitmapName(id), ...flags, granularityBytes: BLOCK_SIZE, ...state };
}

describe("parseBitmapName", () => {
  it("gives back what bitmapName was told, for any allowed name", () => {
    fc.assert(
      fc.property(checkpoint, (id) => {
        expect(parseBitmapName(bitmapName(id))).toEqual(id);
      }),
    );
  });

  it("stays within the 1023 bytes of a qcow2 bitmap name", () => {
    fc.assert(
      fc.property(checkpoint, (id) => {
        expect(Buffer.byteLength(bitmapName(id))).toBeLessThan(1024);
      }),
    );
  });

  it.each([
    "backup-2026",
    "fleece",
    "fleece:1:1:1:",
    "fleece:2:1:1:c",
    "Fleece:1:1:1:c",
    "fleece:1:-1:1:c",
    "fleece:1:1:x:c",
    "fleece:1:1:1:.hidden",
    "fleece:1:1:1:a/b",
    "fleece:1:1:1:a\nb",
    "fleece:1:1234567890123:1:c",
    " fleece:1:1:1:c",
    `fleece:1:1:1:${"a".repeat(129)}`,
  ])("takes %j for somebody else's", (foreign) => {
    expect(parseBitmapName(foreign)).toBeUndefined();
  });

  it("takes no random name for ours unless it would be written the same way", () => {
    fc.assert(
      fc.property(fc.string(), (tail) => {
        const found = parseBitmapName(`fleece:1:7:8:${tail}`);
        expect(found === undefined || bitmapName(found) === `fleece:1:7:8:${tail}`).toBe(true);
      }),
    );
  });
});

describe("nextOrder", () => {
  it("is above every order on every disk", () => {
    expect(nextOrder([[], []])).toBe(1);
    expect(nextOrder([[bitmap(3)], [bitmap(7), bitmap(2)]])).toBe(8);
  });
});

describe("changesSince", () => {
  it("unites the checkpoint with all newer ones, whatever the order in which they are listed", () => {
    const bitmaps = [bitmap(3, { recording: true }), bitmap(1), bitmap(2)];
    expect(changesSince(bitmaps, "c2")).toEqual({
      valid: true,
      bitmaps: [bitmap(2).bitmap, bitmap(3).bitmap],
    });
  });

  it.each([
    ["that the disk does not have", [bitmap(1, { recording: true })], "c9", "does not exist"],
    ["on a disk without any", [], "c1", "does not exist"],
    [
      "with an inconsistent newer one",
      [bitmap(1), bitmap(2, { inconsistent: true }), bitmap(3, { recording: true })],
      "c1",
      "checkpoint c2 is inconsistent",
    ],
    ["whose newest bitmap does not record", [bitmap(1), bitmap(2)], "c1", "checkpoint c2 has stopped"],
  ])("refuses a checkpoint %s", (_, bitmaps, since, reason) => {
    expect(changesSince(bitmaps, since)).toMatchObject({
      valid: false,
      reason: expect.stringContaining(reason) as unknown,
    });
  });

  it("does not mind an inconsistent bitmap that is older", () => {
    const bitmaps = [bitmap(1, { inconsistent: true }), bitmap(2, { recording: true })];
    expect(changesSince(bitmaps, "c2").valid).toBe(true);
  });
});

describe("deadBitmaps", () => {
  const names = (bitmaps: readonly CheckpointBitmap[]): number[] =>
    deadBitmaps(bitmaps).map(({ order }) => order);

  it("is none while all are consistent and the newest records", () => {
    expect(names([])).toEqual([]);
    expect(names([bitmap(1, { recording: false }), bitmap(2, { recording: true })])).toEqual([]);
  });

  it("is an inconsistent one and all before it, in whatever order they come", () => {
    const bitmaps = [
      bitmap(3, { recording: true }),
      bitmap(1, { recording: false }),
      bitmap(2, { recording: false, inconsistent: true }),
    ];
    expect(names(bitmaps)).toEqual([1, 2]);
  });

  it("is all of them when the newest has stopped recording", () => {
    expect(names([bitmap(1, { recording: false }), bitmap(2, { recording: false })])).toEqual([1, 2]);
  });
});

describe("planDeletion", () => {
  it("needs no step where the checkpoint is not", () => {
    expect(planDeletion([bitmap(1)], "c2")).toEqual({ possible: true, steps: [] });
  });

  it("lets the predecessor record before it merges into it", () => {
    expect(planDeletion([bitmap(1), bitmap(2, { recording: true })], "c2")).toEqual({
      possible: true,
      steps: [
        { action: "enable", bitmap: bitmap(1).bitmap },
        { action: "merge", source: bitmap(2).bitmap, bitmap: bitmap(1).bitmap },
        { action: "remove", bitmap: bitmap(2).bitmap },
      ],
    });
  });

  it.each([
    ["the checkpoint is busy", [bitmap(1), bitmap(2, { busy: true })], "busy", bitmap(2).bitmap],
    ["its predecessor is busy", [bitmap(1, { busy: true }), bitmap(2)], "busy", bitmap(1).bitmap],
    [
      "it is inconsistent and its predecessor is not",
      [bitmap(1), bitmap(2, { inconsistent: true })],
      "inconsistent",
      bitmap(2).bitmap,
    ],
  ])("refuses when %s", (_, bitmaps, why, culprit) => {
    expect(planDeletion(bitmaps, "c2")).toEqual({ possible: false, why, bitmap: culprit });
  });

  it("just removes the oldest, an inconsistent one after another, and one whose predecessor is lost anyway", () => {
    const broken = { inconsistent: true };
    for (const bitmaps of [
      [bitmap(2)],
      [bitmap(1, broken), bitmap(2, broken)],
      [bitmap(1, broken), bitmap(2)],
    ]) {
      expect(planDeletion(bitmaps, "c2")).toEqual({
        possible: true,
        steps: [{ action: "remove", bitmap: bitmap(2).bitmap }],
      });
    }
  });
});

const BLOCKS = 8;
const operation = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constant("write" as const), block: fc.nat({ max: BLOCKS - 1 }) }),
  },
  { weight: 2, arbitrary: fc.constant({ op: "create" as const }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("delete" as const), index: fc.nat({ max: 6 }) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      op: fc.constant("interrupted delete" as const),
      index: fc.nat({ max: 6 }),
      after: fc.nat({ max: 2 }),
    }),
  },
  { weight: 1, arbitrary: fc.constantFrom({ op: "restart" as const }, { op: "crash" as const }) },
);

/** A disk with our checkpoints, beside a naive record of which block was written after which checkpoint. */
class TrackedDisk {
  readonly disk = new FakeDisk("vda", "qcow2", BLOCKS * BLOCK_SIZE);
  readonly #truth = new Map<string, Set<number>>();
  #order = 0;

  get #checkpoints(): readonly CheckpointBitmap[] {
    return this.disk.state(true).checkpoints;
  }

  write(block: number): void {
    this.disk.fill(block * BLOCK_SIZE, 1, 1);
    for (const written of this.#truth.values()) written.add(block);
  }

  create(): void {
    const order = ++this.#order;
    const previous = this.#checkpoints.filter(({ recording, inconsistent }) => recording && !inconsistent);
    const id = { name: `c${order}`, order, timeMs: order };
    const add = {
      action: "add",
      bitmap: bitmapName(id),
      persistent: true,
      granularityBytes: BLOCK_SIZE,
    } as const;
    for (const { bitmap: dead, inconsistent } of this.#checkpoints) {
      if (inconsistent) this.disk.apply({ action: "remove", bitmap: dead }, true);
    }
    this.disk.apply(add, true);
    for (const { bitmap: old } of previous) this.disk.apply({ action: "disable", bitmap: old }, true);
    this.#truth.set(id.name, new Set());
  }

  /** Carries out the first steps only, if told so, as a process that is killed between two `qemu-img` calls. */
  delete(index: number, stepCount?: number): void {
    const target = this.#checkpoints[index];
    if (target === undefined) return;
    const plan = planDeletion(this.#checkpoints, target.name);
    if (!plan.possible) return;
    for (const step of plan.steps.slice(0, stepCount)) this.disk.apply(step, true);
  }

  end(how: "clean" | "crash"): void {
    this.disk.close(how);
    this.disk.open();
  }

  /** For every checkpoint that claims to know its changes: the blocks that it should know and does not. */
  lost(): string[] {
    return this.#checkpoints.flatMap(({ name: since }) => {
      const changes = changesSince(this.#checkpoints, since);
      if (!changes.valid) return [];
      const known = this.disk.merged(changes.bitmaps);
      return [...(this.#truth.get(since) ?? [])]
        .filter((block) => !known.has(block))
        .map((block) => `${since}: ${block}`);
    });
  }
}

describe("the rules of checkpoints together", () => {
  it("never lose a block, whatever is written, made, deleted, interrupted, restarted or crashed in which order", () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 40 }), (operations) => {
        const tracked = new TrackedDisk();
        for (const each of operations) {
          if (each.op === "write") tracked.write(each.block);
          else if (each.op === "create") tracked.create();
          else if (each.op === "delete") tracked.delete(each.index);
          else if (each.op === "interrupted delete") tracked.delete(each.index, each.after);
          else tracked.end(each.op === "crash" ? "crash" : "clean");
          expect(tracked.lost()).toEqual([]);
        }
      }),
      { numRuns: 1000 },
    );
  });

  it("keep the newest checkpoint usable as long as nothing crashes", () => {
    const calm = operation.filter(({ op }) => op !== "crash" && op !== "interrupted delete");
    fc.assert(
      fc.property(fc.array(calm, { maxLength: 30 }), (operations) => {
        const tracked = new TrackedDisk();
        tracked.create();
        for (const each of operations) {
          if (each.op === "write") tracked.write(each.block);
          else if (each.op === "create") tracked.create();
          else if (each.op === "delete") tracked.delete(each.index);
          else tracked.end("clean");
          const { checkpoints } = tracked.disk.state(true);
          for (const { name: since } of checkpoints) {
            expect(changesSince(checkpoints, since)).toMatchObject({ valid: true });
          }
        }
      }),
    );
  });
});
