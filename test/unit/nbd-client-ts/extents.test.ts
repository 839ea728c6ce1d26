import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { walkExtents, type MappedExtent, type StatusQuery } from "../../../src/nbd-client-ts/src/extents.js";
import { ExtentList, type Extent } from "../../../src/nbd-client-ts/src/status-collector.js";

type Run = { readonly length: number; readonly flags: number };
type World = ReadonlyMap<string, readonly number[]>;

const run: fc.Arbitrary<Run> = fc.record({ length: fc.integer({ min: 1, max: 40 }), flags: fc.nat(2) });

/** The status of each block in two contexts: the truth that a server reports, in its own way. */
const world: fc.Arbitrary<World> = fc
  .tuple(fc.array(run, { minLength: 1, maxLength: 12 }), fc.array(run, { minLength: 1, maxLength: 12 }))
  .map(([a, b]) => {
    const blocks = [a, b].map((runs) => runs.flatMap((each) => Array<number>(each.length).fill(each.flags)));
    const length = Math.min(...blocks.map((each) => each.length));
    return new Map([
      ["a", (blocks[0] ?? []).slice(0, length)],
      ["b", (blocks[1] ?? []).slice(0, length)],
    ]);
  });

/** Describes [offset, end) truthfully, but split wherever the server likes. */
function describeBlocks(
  blocks: readonly number[],
  offset: number,
  end: number,
  split: () => boolean,
): Extent[] {
  const extents: Extent[] = [];
  for (let at = offset; at < end; at += 1) {
    const flags = blocks[at] ?? 0;
    const last = extents.at(-1);
    if (last?.flags === flags && !split()) extents[extents.length - 1] = { ...last, length: last.length + 1 };
    else extents.push({ offset: at, length: 1, flags });
  }
  return extents;
}

/** A server that answers short, long or split, differently in each context. */
function server(truth: World, next: () => number): StatusQuery {
  return (offset, length) => {
    const reply = new Map<string, Extent[]>();
    for (const [name, blocks] of truth) {
      const reach = next() % 3;
      const wanted = reach === 0 ? 1 + (next() % length) : reach === 1 ? length : length + (next() % 20);
      const end = Math.min(blocks.length, offset + wanted);
      reply.set(
        name,
        describeBlocks(blocks, offset, end, () => next() % 5 === 0),
      );
    }
    return Promise.resolve(reply);
  };
}

async function collect(walk: AsyncIterable<MappedExtent>): Promise<MappedExtent[]> {
  const all: MappedExtent[] = [];
  for await (const extent of walk) all.push(extent);
  return all;
}

function statusOf(truth: World, start: number, end: number): string[] {
  return Array.from({ length: end - start }, (_, index) =>
    JSON.stringify([...truth].map(([name, blocks]) => [name, blocks[start + index]])),
  );
}

describe("walkExtents", () => {
  it("tells the truth, in order, without gaps and merged, however the server answers", async () => {
    await fc.assert(
      fc.asyncProperty(
        world,
        fc.infiniteStream(fc.nat(10_000)),
        fc.constantFrom(1, 2, 8),
        fc.constantFrom(1, 3, 16),
        fc.tuple(fc.nat(), fc.nat()),
        async (truth, stream, alignmentBytes, steps, [from, count]) => {
          const size = truth.get("a")?.length ?? 0;
          const offset = from % size;
          const length = count % (size - offset + 1);
          const next = () => Number(stream.next().value);
          const extents = await collect(
            walkExtents(
              async (at, n) => {
                expect(at % alignmentBytes).toBe(0);
                expect((at + n) % alignmentBytes === 0 || at + n === size).toBe(true);
                expect(n).toBeGreaterThan(0);
                expect(at + n).toBeLessThanOrEqual(size);
                return await answerPastAlignment(server(truth, next), at, n, alignmentBytes);
              },
              { offset, length, alignmentBytes, exportBytes: size, queryBytes: alignmentBytes * steps },
            ),
          );
          const told = extents.flatMap((each) =>
            Array<string>(each.length).fill(JSON.stringify(Object.entries(each.flags))),
          );
          expect(told).toEqual(statusOf(truth, offset, offset + length));
          let position = offset;
          for (const each of extents) {
            expect(each.offset).toBe(position);
            position += each.length;
          }
          extents.slice(1).forEach((each, index) => expect(each.flags).not.toEqual(extents[index]?.flags));
        },
      ),
      { numRuns: 300 },
    );
  });

  it("rejects when a context says nothing about the bytes that were asked for", async () => {
    const query = () => Promise.resolve(new Map([["a", []]]));
    const range = { offset: 0, length: 10, alignmentBytes: 1, exportBytes: 10, queryBytes: 10 };
    await expect(collect(walkExtents(query, range))).rejects.toMatchObject({ code: "BAD_BLOCK_STATUS" });
  });

  it("asks for nothing when nothing is left to walk", async () => {
    const query = () => Promise.reject(new Error("must not be asked"));
    const range = { offset: 10, length: 0, alignmentBytes: 1, exportBytes: 10, queryBytes: 10 };
    expect(await collect(walkExtents(query, range))).toEqual([]);
  });

  it("holds one extent at a time, so that a consumer may stop early", async () => {
    let queries = 0;
    const query: StatusQuery = (offset, length) => {
      queries += 1;
      return Promise.resolve(new Map([["a", [{ offset, length, flags: queries % 2 }]]]));
    };
    const range = { offset: 0, length: 1000, alignmentBytes: 1, exportBytes: 1000, queryBytes: 10 };
    for await (const extent of walkExtents(query, range)) {
      expect(extent).toEqual({ offset: 0, length: 10, flags: { a: 1 } });
      break;
    }
    expect(queries).toBe(2);
  });
});

describe("walkExtents over a map of 10 million extents", () => {
  it("keeps only the reply at hand in memory", async () => {
    const perReply = 1 << 20;
    const extentBytes = 512;
    const descriptors = Buffer.alloc(perReply * 8);
    for (let index = 0; index < perReply; index += 1) {
      descriptors.writeUInt32BE(extentBytes, index * 8);
      descriptors.writeUInt32BE(index % 2, index * 8 + 4);
    }
    const query: StatusQuery = (offset) =>
      Promise.resolve(new Map([["a", new ExtentList(offset, descriptors, 8)]]));
    const length = 10_000_000 * extentBytes;
    const range = { offset: 0, length, alignmentBytes: 1, exportBytes: length, queryBytes: 1 << 30 };
    const before = process.memoryUsage().heapUsed;
    let count = 0;
    let most = 0;
    for await (const extent of walkExtents(query, range)) {
      count += 1;
      if (count % 100_000 === 0) most = Math.max(most, process.memoryUsage().heapUsed - before);
      if (extent.length !== extentBytes) throw new Error(`An extent of ${extent.length} bytes`);
    }
    expect(count).toBe(10_000_000);
    expect(most).toBeLessThan(128 << 20); // as objects, the map would take more than 700 MiB
  });
});

/** A server must not answer with less than a block: as long as the first does, ask again. */
async function answerPastAlignment(query: StatusQuery, at: number, count: number, alignment: number) {
  for (;;) {
    const reply = await query(at, count);
    const reaches = [...reply.values()].map((extents) =>
      [...extents].reduce((end, each) => Math.max(end, each.offset + each.length), 0),
    );
    if (reaches.every((end) => end - at >= Math.min(alignment, count))) return reply;
  }
}
