import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { BlockRun, Extent } from "../../../src/model/extents.js";
import { blockRuns, pieces } from "../../../src/model/extents.js";

const BLOCK = 8;

interface Part {
  readonly length: number;
  readonly changed: boolean;
  readonly zero: boolean;
}

const parts = fc.array(
  fc.record({ length: fc.integer({ min: 1, max: 40 }), changed: fc.boolean(), zero: fc.boolean() }),
  { maxLength: 30 },
);

async function runsOf(list: readonly Part[], sizeBytes = total(list)): Promise<BlockRun[]> {
  async function* extents(): AsyncGenerator<Extent> {
    let offset = 0;
    for (const part of list) {
      yield await Promise.resolve({ ...part, offset });
      offset += part.length;
    }
  }
  const runs: BlockRun[] = [];
  for await (const run of blockRuns(extents(), sizeBytes, BLOCK)) runs.push(run);
  return runs;
}

function total(list: readonly Part[]): number {
  return list.reduce((sum, { length }) => sum + length, 0);
}

/** Block by block, byte by byte: what each block is, or undefined if it did not change. */
function naive(list: readonly Part[]): (BlockRun["kind"] | undefined)[] {
  const bytes = list.flatMap((part) => Array.from({ length: part.length }, () => part));
  return Array.from({ length: Math.ceil(bytes.length / BLOCK) }, (_, index) => {
    const block = bytes.slice(index * BLOCK, (index + 1) * BLOCK);
    if (!block.some(({ changed }) => changed)) return undefined;
    return block.every(({ zero }) => zero) ? "zero" : "data";
  });
}

function blocksOf(runs: readonly BlockRun[], sizeBytes: number): (BlockRun["kind"] | undefined)[] {
  const kinds = Array.from<BlockRun["kind"] | undefined>({ length: Math.ceil(sizeBytes / BLOCK) });
  for (const { offset, length, kind } of runs) {
    for (let at = offset; at < offset + length; at += BLOCK) kinds[at / BLOCK] = kind;
  }
  return kinds;
}

describe("blockRuns", () => {
  it("covers exactly the blocks that changed, as zero only where all of the block is zero", async () => {
    await fc.assert(
      fc.asyncProperty(parts, async (list) => {
        expect(blocksOf(await runsOf(list), total(list))).toEqual(naive(list));
      }),
      { numRuns: 500 },
    );
  });

  it("gives runs in order, of whole blocks up to the disk's end, adjacent ones of a kind joined", async () => {
    await fc.assert(
      fc.asyncProperty(parts, async (list) => {
        let previous: BlockRun | undefined;
        for (const run of await runsOf(list)) {
          const end = run.offset + run.length;
          expect(run.length).toBeGreaterThan(0);
          expect(run.offset % BLOCK).toBe(0);
          expect(end % BLOCK === 0 || end === total(list)).toBe(true);
          const previousEnd = previous === undefined ? 0 : previous.offset + previous.length;
          expect(run.offset).toBeGreaterThanOrEqual(previousEnd);
          if (previous !== undefined && run.offset === previousEnd) expect(run.kind).not.toBe(previous.kind);
          previous = run;
        }
      }),
    );
  });

  it("gives the same runs however the extents are cut", async () => {
    await fc.assert(
      fc.asyncProperty(parts, fc.integer({ min: 1, max: 13 }), async (list, cut) => {
        const chopped = list.flatMap((part) =>
          Array.from({ length: Math.ceil(part.length / cut) }, (_, index) => ({
            ...part,
            length: Math.min(cut, part.length - index * cut),
          })),
        );
        expect(await runsOf(chopped)).toEqual(await runsOf(list));
      }),
    );
  });

  it("ignores what a server reports beyond the disk's end", async () => {
    const list = [{ length: 100, changed: true, zero: false }];
    expect(await runsOf(list, 20)).toEqual([{ offset: 0, length: 20, kind: "data" }]);
  });
});

describe("pieces", () => {
  it("cuts a run without gap or overlap into pieces no longer than asked", () => {
    const run = fc.record({
      offset: fc.nat({ max: 1000 }),
      length: fc.integer({ min: 1, max: 1000 }),
      kind: fc.constantFrom("data" as const, "zero" as const),
    });
    fc.assert(
      fc.property(run, fc.integer({ min: 1, max: 100 }), (whole, maxBytes) => {
        let position = whole.offset;
        for (const piece of pieces(whole, maxBytes)) {
          expect(piece).toMatchObject({ offset: position, kind: whole.kind });
          expect(piece.length).toBeGreaterThan(0);
          expect(piece.length).toBeLessThanOrEqual(maxBytes);
          position += piece.length;
        }
        expect(position).toBe(whole.offset + whole.length);
      }),
    );
  });
});
