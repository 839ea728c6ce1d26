import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ReadAssembler } from "../../../src/nbd-client-ts/src/read-assembler.js";
import { AckReceiver, requestFailed } from "../../../src/nbd-client-ts/src/receiver.js";
import {
  parseReplies,
  type ReplyReceiver,
  type ReplyTable,
} from "../../../src/nbd-client-ts/src/reply-parser.js";
import { StatusCollector } from "../../../src/nbd-client-ts/src/status-collector.js";
import { NbdError } from "nbd-client-ts";
import { runParser, type Cuts } from "./support/run-parser.js";
import * as wire from "./support/server-bytes.js";

type Reading = {
  readonly cookie: number;
  readonly range: { command: string; offset: number; length: number };
};

/** A table of requests in flight that records what becomes of each. */
class RecordingTable implements ReplyTable {
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  readonly outcomes: string[] = [];
  readonly #inFlight = new Map<number, ReplyReceiver>();
  readonly #memory = new Map<number, Buffer>();

  constructor(structuredReplies: boolean, extendedHeaders = false) {
    this.extendedHeaders = extendedHeaders;
    this.structuredReplies = structuredReplies;
  }

  read(cookie: number, offset: number, length: number): void {
    const memory = Buffer.alloc(length, 0xee);
    this.#memory.set(cookie, memory);
    this.#inFlight.set(cookie, new ReadAssembler({ command: "READ", offset, length }, memory));
  }

  ack(cookie: number): void {
    this.#inFlight.set(cookie, new AckReceiver({ command: "WRITE", offset: 0, length: 1 }));
  }

  status(cookie: number, contexts: ReadonlyMap<number, string>, length: number): void {
    this.#inFlight.set(
      cookie,
      new StatusCollector(
        { command: "BLOCK_STATUS", offset: 0, length },
        {
          contexts,
          reqOne: false,
        },
      ),
    );
  }

  find(cookie: number): ReplyReceiver {
    const receiver = this.#inFlight.get(cookie);
    if (receiver === undefined) throw new NbdError("UNKNOWN_COOKIE", `No request ${cookie}`);
    return receiver;
  }

  finish(cookie: number): void {
    const receiver = this.find(cookie);
    this.#inFlight.delete(cookie);
    this.outcomes.push(`${cookie} ${describeOutcome(receiver, this.#memory.get(cookie))}`);
  }
}

function describeOutcome(receiver: ReplyReceiver, memory: Buffer | undefined): string {
  if (receiver.error !== undefined) return requestFailed(receiver.range, receiver.error).message;
  if (receiver.kind === "read") return memory?.toString("hex") ?? "";
  if (receiver.kind === "status") return JSON.stringify([...receiver.result]);
  return "done";
}

const CONTEXTS = new Map([
  [7, "base:allocation"],
  [9, "qemu:dirty-bitmap:b"],
]);

/** A permutation of the pieces of [0, length), each as data or hole; the last may carry DONE. */
const readReply = ({ cookie, range }: Reading): fc.Arbitrary<Buffer[]> =>
  fc
    .record({
      edges: fc.uniqueArray(fc.integer({ min: 1, max: range.length - 1 }), { maxLength: 5 }),
      holes: fc.array(fc.boolean(), { minLength: 6, maxLength: 6 }),
      order: fc.infiniteStream(fc.nat(1000)),
      separateDone: fc.boolean(),
      fill: fc.uint8Array({ minLength: range.length, maxLength: range.length }),
      error: fc.option(fc.constantFrom("whole", "offset"), { freq: 5 }),
    })
    .map(({ edges, holes, order, separateDone, fill, error }) => {
      const bounds = [0, ...edges.sort((a, b) => a - b), range.length];
      const pieces = bounds
        .slice(0, -1)
        .map((start, index) => ({ start, end: bounds[index + 1] ?? 0, index }));
      const keys = [...order.take(pieces.length)];
      pieces.sort((a, b) => (keys[a.index] ?? 0) - (keys[b.index] ?? 0));
      const chunks = pieces.map(({ start, end, index }, position) => {
        const done = !separateDone && error === null && position === pieces.length - 1;
        const at = range.offset + start;
        return holes[index] === true
          ? wire.holeChunk(cookie, at, end - start, done)
          : wire.dataChunk(cookie, at, Buffer.from(fill.subarray(start, end)), done);
      });
      if (error === "whole") chunks.push(wire.errorChunk(cookie, 5, "the disk is on fire"));
      if (error === "offset") chunks.push(wire.errorOffsetChunk(cookie, 5, range.offset));
      if (error === null && separateDone) chunks.push(wire.doneChunk(cookie));
      return chunks;
    });

/** Keeps each reply's own order and mixes the replies. */
function interleave(replies: readonly Buffer[][], picks: Iterable<number>): Buffer {
  const left = replies.map((reply) => [...reply]);
  const out: Buffer[] = [];
  for (const pick of picks) {
    const open = left.filter((reply) => reply.length > 0);
    const next = open[pick % Math.max(1, open.length)]?.shift();
    if (next === undefined) break;
    out.push(next);
  }
  return Buffer.concat(out);
}

const readings: Reading[] = [1, 2, 3].map((cookie) => ({
  cookie,
  range: { command: "READ", offset: cookie * 1000, length: 40 + cookie },
}));

const otherReplies: Buffer[][] = [
  [wire.simpleReply(4)],
  [wire.errorChunk(5, 28, "no space")],
  [
    wire.statusChunk(6, 9, [
      [10, 1],
      [90, 0],
    ]),
    wire.statusChunk(6, 7, [[100, 3]], true),
  ],
];

const stream = fc
  .record({
    reads: fc.tuple(...readings.map(readReply)),
    picks: fc.infiniteStream(fc.nat(1000)),
  })
  .map(({ reads, picks }) => interleave([...reads, ...otherReplies], picks));

/** Mostly correct streams; some with one byte changed or the end cut off. */
const damagedStream = fc
  .record({
    bytes: stream,
    damage: fc.option(fc.record({ at: fc.nat(), value: fc.integer({ min: 1, max: 255 }) })),
  })
  .map(({ bytes, damage }) => {
    if (damage === null) return bytes;
    const at = damage.at % bytes.length;
    bytes[at] = (bytes[at] ?? 0) ^ damage.value;
    return bytes;
  });

function parse(bytes: Buffer, cuts: Cuts, inPlace: boolean): unknown {
  const table = new RecordingTable(true);
  for (const { cookie, range } of readings) table.read(cookie, range.offset, range.length);
  table.ack(4);
  table.ack(5);
  table.status(6, CONTEXTS, 100);
  const outcome = runParser(parseReplies(table), bytes, cuts, inPlace);
  return { outcome, outcomes: table.outcomes };
}

describe("parseReplies", () => {
  const cuts = fc.array(fc.integer({ min: 1, max: 50 }), { maxLength: 200 });

  it("gives the same result for any chunking of any stream, received in place or not", () => {
    fc.assert(
      fc.property(damagedStream, cuts, fc.boolean(), (bytes, where, inPlace) => {
        expect(parse(bytes, where, inPlace)).toEqual(parse(bytes, [], false));
      }),
      { numRuns: 500 },
    );
  });

  it("gives the same result byte by byte", () => {
    fc.assert(
      fc.property(stream, (bytes) => {
        const single = Array.from({ length: bytes.length }, () => 1);
        expect(parse(bytes, single, false)).toEqual(parse(bytes, [], false));
      }),
      { numRuns: 50 },
    );
  });

  it("answers every request of a correct stream, chunks in any order and interleaved", () => {
    fc.assert(
      fc.property(stream, (bytes) => {
        const { outcome, outcomes } = parse(bytes, [], false) as {
          outcome: { kind: string };
          outcomes: string[];
        };
        expect(outcome.kind).toBe("hungry");
        expect(outcomes.map((each) => each[0]).sort()).toEqual(["1", "2", "3", "4", "5", "6"]);
      }),
      { numRuns: 100 },
    );
  });

  it("takes a payload only after a successful simple reply to READ", () => {
    const table = new RecordingTable(false);
    table.read(1, 0, 4);
    table.read(2, 0, 4);
    table.ack(3);
    const bytes = [wire.simpleReply(2, 5), wire.simpleReply(3), wire.simpleReply(1, 0, Buffer.from("abcd"))];
    expect(runParser(parseReplies(table), Buffer.concat(bytes)).kind).toBe("hungry");
    expect(table.outcomes).toEqual(["2 READ of 4 bytes at 0 failed with EIO", "3 done", "1 61626364"]);
  });

  it("treats an error value that it does not know as EINVAL", () => {
    const table = new RecordingTable(true);
    table.ack(1);
    runParser(parseReplies(table), wire.errorChunk(1, 4711, ""));
    expect(table.outcomes).toEqual(["1 WRITE of 1 bytes at 0 failed with EINVAL"]);
  });

  it("treats an error chunk of a type that it does not know as an error of the request", () => {
    const table = new RecordingTable(true);
    table.ack(1);
    const payload = Buffer.concat([wire.u32(5), wire.u16(2), Buffer.from("hm"), Buffer.alloc(3)]);
    runParser(parseReplies(table), wire.chunk(1, 0x8fff, payload, true));
    expect(table.outcomes).toEqual(["1 WRITE of 1 bytes at 0 failed with EIO: hm"]);
  });

  it("removes control characters from the server's text", () => {
    const table = new RecordingTable(true);
    table.ack(1);
    runParser(parseReplies(table), wire.errorChunk(1, 5, "bad\nINFO all is well\u001b[2J"));
    expect(table.outcomes).toEqual(["1 WRITE of 1 bytes at 0 failed with EIO: bad INFO all is well [2J"]);
  });
});
