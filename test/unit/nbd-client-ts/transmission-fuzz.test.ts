import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { CORPUS } from "./support/corpus.js";
import { replay, type Headers } from "./support/fuzzed-session.js";
import { chunk, extended, simpleReply, u32, u64 } from "./support/server-bytes.js";

const HEADERS: readonly Headers[] = ["simple", "structured", "extended"];
const cuts = fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 100 });

const smallOrWild = (small: fc.Arbitrary<number>) =>
  fc.oneof({ weight: 9, arbitrary: small }, { weight: 1, arbitrary: fc.maxSafeNat() });
const cookie = smallOrWild(fc.integer({ min: 0, max: 6 }));
const offset = smallOrWild(fc.constantFrom(0, 999, 1000, 1001, 1020, 2000, 2041, 3000, 3030));
const type = fc.constantFrom(0, 1, 1, 2, 2, 3, 5, 6, 0x8001, 0x8002, 0x8fff);
const payload = fc.oneof(
  fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
  fc
    .tuple(offset, fc.integer({ min: 0, max: 50 }))
    .map(([at, n]) => Buffer.concat([u64(at), Buffer.alloc(n, n)])),
  fc.tuple(offset, fc.nat(50)).map(([at, length]) => Buffer.concat([u64(at), u32(length)])),
  fc
    .tuple(fc.constantFrom(7, 9, 8), fc.array(fc.tuple(fc.nat(90), fc.nat(3)), { maxLength: 5 }))
    .map(([id, runs]) => Buffer.concat([u32(id), ...runs.flatMap(([n, flags]) => [u32(n), u32(flags)])])),
);

/** Messages of a server that knows the forms and fills them in as it likes. */
const message = fc.oneof(
  fc.tuple(cookie, fc.constantFrom(0, 0, 5, 4711), payload).map((each) => simpleReply(...each)),
  fc.tuple(cookie, type, payload, fc.boolean()).map((each) => chunk(...each)),
  fc
    .tuple(cookie, type, payload, fc.boolean(), offset)
    .map(([id, kind, content, done, at]) => extended(chunk(id, kind, content, done), at)),
  fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
);

const seed = fc.constantFrom(...CORPUS);
const damaged = fc
  .record({
    seed,
    flips: fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), { maxLength: 3 }),
    tail: fc.array(message, { maxLength: 3 }),
    length: fc.option(fc.nat()),
  })
  .map(({ seed: { bytes, headers }, flips, tail, length }) => {
    const copy = Buffer.concat([bytes, ...tail]);
    for (const [at, value] of flips) copy[at % copy.length] = (copy[at % copy.length] ?? 0) ^ value;
    return { headers, bytes: length === null ? copy : copy.subarray(0, length % copy.length) };
  });
const invented = fc.record({
  headers: fc.constantFrom(...HEADERS),
  bytes: fc.array(message, { maxLength: 12 }).map((messages) => Buffer.concat(messages)),
});
const noise = fc.record({
  headers: fc.constantFrom(...HEADERS),
  bytes: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
});
const stream = fc.oneof(
  { weight: 5, arbitrary: damaged },
  { weight: 4, arbitrary: invented },
  { weight: 1, arbitrary: noise },
);

describe("Session fed by a hostile server", () => {
  it("gives the same answers for any chunking, and settles every request", async () => {
    await fc.assert(
      fc.asyncProperty(stream, cuts, async ({ bytes, headers }, where) => {
        const whole = await replay(bytes, headers);
        expect(whole).toMatchObject({ destroyed: true });
        expect(await replay(bytes, headers, where)).toEqual(whole);
      }),
      { numRuns: 500 },
    );
  });

  it("never returns a byte that the server did not send", async () => {
    await fc.assert(
      fc.asyncProperty(stream, cuts, async ({ bytes, headers }, where) => {
        // What was in the memory before must not matter to a read that succeeds.
        expect(await replay(bytes, headers, where, 0x11)).toEqual(await replay(bytes, headers, [], 0xee));
      }),
      { numRuns: 500 },
    );
  });

  it.each(CORPUS.map(({ name, ...each }) => [name, each] as const))(
    "gives the same answers wherever the stream is cut: %s",
    async (_name, { bytes, headers }) => {
      const whole = await replay(bytes, headers);
      for (let at = 1; at < bytes.length; at += 1) {
        expect(await replay(bytes, headers, [at]), `cut at ${at}`).toEqual(whole);
      }
      expect(await replay(bytes, headers, Array<number>(bytes.length).fill(1))).toEqual(whole);
      expect({ answers: whole }).toMatchSnapshot();
    },
  );

  it.each(CORPUS.map(({ name, ...each }) => [name, each] as const))(
    "ends with a coded error, or not at all, when any one byte is wrong: %s",
    async (_name, { bytes, headers }) => {
      for (let at = 0; at < bytes.length; at += 1) {
        const copy = Buffer.from(bytes);
        copy[at] = (copy[at] ?? 0) ^ 0x81;
        expect(await replay(copy, headers), `byte ${at}`).toMatchObject({
          destroyed: true,
          closed: expect.stringMatching(/^[A-Z_]+$/) as unknown,
        });
      }
    },
  );
});
