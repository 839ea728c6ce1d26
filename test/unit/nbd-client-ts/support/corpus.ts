import type { Headers } from "./fuzzed-session.js";
import {
  dataChunk,
  doneChunk,
  errorChunk,
  errorOffsetChunk,
  extended,
  holeChunk,
  simpleReply,
  statusChunk,
  statusExtChunk,
} from "./server-bytes.js";

/** Streams to start from, as answers to the requests of `fuzzed-session.ts`. */
export interface Seed {
  readonly name: string;
  readonly headers: Headers;
  readonly bytes: Buffer;
}

const OFFSETS = [0, 1000, 2000, 3000, 0, 0];

const text = (length: number) => Buffer.alloc(length, "data of the server ");

const structured: Readonly<Record<string, readonly (readonly [cookie: number, chunk: Buffer])[]>> = {
  "everything at once": [
    [1, dataChunk(1, 1000, text(40), true)],
    [4, doneChunk(4)],
    [2, dataChunk(2, 2000, text(41), true)],
    [3, holeChunk(3, 3000, 42, true)],
    [5, statusChunk(5, 7, [[100, 3]])],
    [5, statusChunk(5, 9, [[200, 1]], true)],
  ],
  "chunks backwards and interleaved": [
    [2, dataChunk(2, 2020, text(21))],
    [3, holeChunk(3, 3002, 40)],
    [1, dataChunk(1, 1039, text(1))],
    [2, dataChunk(2, 2000, text(20))],
    [1, holeChunk(1, 1000, 39)],
    [2, doneChunk(2)],
    [3, dataChunk(3, 3000, text(2), true)],
    [1, doneChunk(1)],
  ],
  "errors of all kinds": [
    [1, dataChunk(1, 1000, text(10))],
    [1, errorOffsetChunk(1, 5, 1010)],
    [2, errorChunk(2, 12, "no memory")],
    [4, errorChunk(4, 28, "")],
    [5, statusChunk(5, 7, [[50, 0]])],
    [5, errorChunk(5, 22, "not that", true)],
    [3, errorOffsetChunk(3, 5, 3000, false)],
    [3, doneChunk(3)],
  ],
  "a read that ends early": [
    [1, dataChunk(1, 1000, text(39), true)],
    [2, dataChunk(2, 2000, text(41), true)],
  ],
  "many extents": [
    [
      5,
      statusChunk(
        5,
        9,
        Array.from({ length: 50 }, (_, index) => [1 + index, index % 2] as const),
      ),
    ],
    [5, statusChunk(5, 7, [[100, 0]], true)],
  ],
};

export const CORPUS: readonly Seed[] = [
  {
    name: "simple replies",
    headers: "simple",
    bytes: Buffer.concat([
      simpleReply(3, 5),
      simpleReply(1, 0, text(40)),
      simpleReply(4),
      simpleReply(5, 22),
      simpleReply(2, 0, text(41)),
    ]),
  },
  ...Object.entries(structured).flatMap(([name, chunks]): Seed[] => [
    {
      name: `${name}, structured`,
      headers: "structured",
      bytes: Buffer.concat(chunks.map(([, chunk]) => chunk)),
    },
    {
      name: `${name}, extended`,
      headers: "extended",
      bytes: Buffer.concat(chunks.map(([cookie, chunk]) => extended(chunk, OFFSETS[cookie] ?? 0))),
    },
  ]),
  ...(["structured", "extended"] as const).map((headers): Seed => {
    const wrap = (chunk: Buffer) => (headers === "extended" ? extended(chunk, 0) : chunk);
    const other = headers === "extended" ? [] : [wrap(statusChunk(6, 7, [[100, 0]]))];
    return {
      name: `extents of one context, ${headers}`,
      headers,
      bytes: Buffer.concat([...other, wrap(statusChunk(6, 9, [[70, 1]], true))]),
    };
  }),
  {
    name: "an extent of a context that was filtered out",
    headers: "extended",
    bytes: Buffer.concat([
      extended(statusExtChunk(6, 9, [[2 ** 40, 1]]), 0),
      extended(statusExtChunk(6, 7, [[100, 0]], true), 0),
    ]),
  },
  {
    name: "extents in 64 bits",
    headers: "extended",
    bytes: Buffer.concat([
      extended(statusExtChunk(5, 9, [[2 ** 40, 1]]), 0),
      extended(
        statusExtChunk(
          5,
          7,
          [
            [60, 0],
            [2 ** 33, 3],
          ],
          true,
          0,
        ),
        0,
      ),
    ]),
  },
];
