import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { changes, type ChangeExtent, type MappedExtent } from "nbd-client-ts";

const BITMAP = "qemu:dirty-bitmap:b";

async function collect(source: AsyncIterable<ChangeExtent>): Promise<ChangeExtent[]> {
  const all = [];
  for await (const each of source) all.push(each);
  return all;
}

function extents(
  ...runs: readonly (readonly [length: number, dirty: number, allocation: number])[]
): MappedExtent[] {
  let offset = 0;
  return runs.map(([length, dirty, allocation]) => {
    const extent = { offset, length, flags: { [BITMAP]: dirty, "base:allocation": allocation } };
    offset += length;
    return extent;
  });
}

describe("changes", () => {
  it("tells changed data, changed and zero, and unchanged apart", async () => {
    const map = extents([10, 0, 0], [20, 1, 0], [30, 1, 3], [40, 1, 2], [50, 0, 3]);
    expect(await collect(changes(map, { bitmapContext: BITMAP }))).toEqual([
      { offset: 0, length: 10, changed: false, zero: false },
      { offset: 10, length: 20, changed: true, zero: false },
      { offset: 30, length: 70, changed: true, zero: true },
      { offset: 100, length: 50, changed: false, zero: true },
    ]);
  });

  it("takes a hole that need not read as zeroes for data", async () => {
    expect(await collect(changes(extents([10, 1, 1]), { bitmapContext: BITMAP }))).toEqual([
      { offset: 0, length: 10, changed: true, zero: false },
    ]);
  });

  it("takes everything for changed without a bitmap", async () => {
    expect(await collect(changes(extents([10, 0, 0], [10, 1, 0], [5, 0, 2])))).toEqual([
      { offset: 0, length: 20, changed: true, zero: false },
      { offset: 20, length: 5, changed: true, zero: true },
    ]);
  });

  it("refuses extents without the context, rather than call them unchanged", async () => {
    const map = [{ offset: 0, length: 1, flags: { "base:allocation": 0 } }];
    await expect(collect(changes(map, { bitmapContext: BITMAP }))).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    await expect(collect(changes([{ offset: 0, length: 1, flags: {} }]))).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  });

  it("keeps every byte's kind, in order and merged", async () => {
    const run = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.nat(3), fc.nat(7));
    await fc.assert(
      fc.asyncProperty(fc.array(run, { maxLength: 30 }), async (runs) => {
        const found = await collect(changes(extents(...runs), { bitmapContext: BITMAP }));
        const kind = (dirty: boolean, zero: boolean) => `${dirty} ${zero}`;
        const told = found.flatMap(({ length, changed, zero }) =>
          Array<string>(length).fill(kind(changed, zero)),
        );
        expect(told).toEqual(
          runs.flatMap(([length, dirty, allocation]) =>
            Array<string>(length).fill(kind((dirty & 1) !== 0, (allocation & 2) !== 0)),
          ),
        );
        found.slice(1).forEach((each, index) => {
          const before = found[index];
          expect(kind(each.changed, each.zero)).not.toBe(before && kind(before.changed, before.zero));
        });
      }),
      { numRuns: 200 },
    );
  });
});
