import { describe, expect, it } from "vitest";
import type { NbdConnection } from "nbd-client-ts";
import { connected, failureOf } from "./support/connected.js";
import type { ReceivedRequest } from "./support/scripted-server.js";
import { CMD, serveRequests, type Answer } from "./support/serve.js";
import {
  ALL_FLAGS,
  chunk,
  CHUNK,
  dataChunk,
  doneChunk,
  errorChunk,
  extended,
  simpleReply,
  statusChunk,
  statusExtChunk,
  u32,
  u64,
} from "./support/server-bytes.js";

// Real servers with extended headers: test/qemu/nbd-client-ts/extended-headers.test.ts, where QEMU is new enough.

const REQUEST_MAGIC = 0x21e41c71;
const PAYLOAD_LEN = 32;
const MIB = 2 ** 20;
const TIB = 2 ** 40;
const contexts = { 5: "base:allocation" };

async function against(answer: Answer) {
  const seen: ReceivedRequest[] = [];
  const connection = await connected((peer) => serveRequests(peer, seen, answer), {
    offered: { extended: true, sizeBytes: 16 * TIB, contexts },
  });
  return { connection, seen };
}

const fastZeroes = (disk: NbdConnection) => disk.writeZeroes(0, 2 ** 36, { fastZero: true });

describe("NbdConnection with extended headers of a scripted server", () => {
  it("sends 32-byte requests, and only WRITE with a payload length", async () => {
    const { connection, seen } = await against(() => undefined);
    expect(connection).toMatchObject({ extendedHeaders: true, structuredReplies: true });
    await connection.write(7, Buffer.from("abc"), { fua: true });
    expect(await connection.read(2 ** 43, 100)).toEqual(Buffer.alloc(100));
    await connection.writeZeroes(10, 20);
    await connection.flush();
    await connection.close();
    expect(seen.every(({ magic }) => magic === REQUEST_MAGIC)).toBe(true);
    expect(seen).toMatchObject([
      { command: CMD.WRITE, flags: PAYLOAD_LEN | 1, offset: 7, length: 3, payload: Buffer.from("abc") },
      { command: CMD.READ, flags: 0, offset: 2 ** 43, length: 100 },
      { command: CMD.WRITE_ZEROES, flags: 0, offset: 10, length: 20 },
      { command: CMD.FLUSH, flags: 0 },
      { command: CMD.DISC, flags: 0, offset: 0, length: 0 },
    ]);
  });

  it("walks 16 TiB with few requests that let a server's guest have its turns, and takes extents in 64 bits and in 32", async () => {
    const { connection, seen } = await against(({ cookie, offset, length }) => [
      offset === 0
        ? statusChunk(cookie, 5, [[2 ** 31, 0]], true)
        : statusExtChunk(cookie, 5, [[length, offset < TIB ? 3 : 0]], true),
    ]);
    const found = [];
    for await (const { offset, length, flags } of connection.extents()) {
      found.push([offset, offset + length, flags["base:allocation"]]);
    }
    expect(found.at(0)).toEqual([0, 2 ** 31, 0]);
    expect(found.at(-1)?.[1]).toBe(16 * TIB);
    expect(found).toHaveLength(3);
    expect(seen.length).toBeLessThan(150);
    expect(Math.max(...seen.map(({ length }) => length))).toBe(2 ** 37);
  });

  it("trims more than 4 GiB in one request", async () => {
    const { connection, seen } = await against(() => undefined);
    await connection.trim(0, 2 ** 35);
    expect(seen).toMatchObject([{ command: CMD.TRIM, length: 2 ** 35 }]);
  });

  it("gives the 64-bit extents of a single request as they came", async () => {
    const { connection } = await against(({ cookie }) => [
      statusExtChunk(
        cookie,
        5,
        [
          [2 ** 40, 2 ** 40 + 1],
          [1, 0],
        ],
        true,
        0, // a count of 0: see the length
      ),
    ]);
    expect(await connection.blockStatus(0, 2 ** 41)).toEqual(
      new Map([
        [
          "base:allocation",
          [
            { offset: 0, length: 2 ** 40, flags: 2 ** 40 + 1 },
            { offset: 2 ** 40, length: 1, flags: 0 },
          ],
        ],
      ]),
    );
  });

  it.each([
    ["TRIM", CMD.TRIM, (disk: NbdConnection) => disk.trim(0, 16 * TIB), 2 ** 35],
    ["a fast WRITE_ZEROES", CMD.WRITE_ZEROES, fastZeroes, 2 ** 35],
    // The server may have to write them: it must answer in time.
    ["WRITE_ZEROES", CMD.WRITE_ZEROES, (disk: NbdConnection) => disk.writeZeroes(0, 2 ** 36), 2 ** 27],
    ["CACHE", CMD.CACHE, (disk: NbdConnection) => disk.cache(0, 2 ** 33), 2 ** 25],
  ])("splits %s where it must", async (_name, command, call, longest) => {
    const { connection, seen } = await against(() => undefined);
    await call(connection);
    expect(new Set(seen.map((each) => each.length))).toEqual(new Set([longest]));
    expect(seen.every((each) => each.command === command)).toBe(true);
    expect(new Set(seen.map(({ offset }) => offset)).size).toBe(seen.length);
  });

  it("asks for the status of 4 GiB and more at once", async () => {
    const { connection, seen } = await against(({ cookie, length }) => [
      statusExtChunk(cookie, 5, [[length, 0]], true),
    ]);
    const status = await connection.blockStatus(4096, 2 ** 43, { reqOne: true });
    expect(status.get("base:allocation")).toEqual([{ offset: 4096, length: 2 ** 43, flags: 0 }]);
    expect(seen).toMatchObject([{ flags: 8, length: 2 ** 43 }]);
  });

  it("fails only the request that the server answers with an error", async () => {
    const { connection } = await against(({ cookie, offset }) =>
      offset === 4096 ? [errorChunk(cookie, 5, "bad sector")] : undefined,
    );
    expect(await failureOf(connection.read(4096, 10))).toMatchObject({ errno: "EIO" });
    expect(await connection.read(0, 10)).toHaveLength(10);
  });

  it("falls back to structured replies when the server does not know them", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected((peer) => serveRequests(peer, seen));
    expect(connection).toMatchObject({ extendedHeaders: false, structuredReplies: true });
    await connection.read(0, 10);
    expect(seen).toMatchObject([{ magic: 0x25609513 }]);
  });

  it("does not ask for them when that is turned off", async () => {
    const connection = await connected((peer) => serveRequests(peer, []), {
      offered: { extended: true },
      extendedHeaders: false,
    });
    expect(connection).toMatchObject({ extendedHeaders: false, structuredReplies: true });
  });
});

const ALLOCATION = "base:allocation";
const BITMAP = "qemu:dirty-bitmap:b";
const CAN_FILTER = 1 << 12;

interface Filtering {
  readonly extended: boolean;
  readonly transmissionFlags: number;
}

/** Answers for the contexts that the request names, or for both: `base:allocation` is 5, the bitmap 9. */
async function filtering(offered: Filtering) {
  const seen: ReceivedRequest[] = [];
  const answer: Answer = ({ cookie, flags, length, payload }) => {
    const filtered = (flags & PAYLOAD_LEN) !== 0;
    const ids = filtered ? [payload.readUInt32BE(8)] : [5, 9];
    const bytes = filtered ? Number(payload.readBigUInt64BE(0)) : length;
    return ids.map((id, index) => statusChunk(cookie, id, [[bytes, id]], index + 1 === ids.length));
  };
  const connection = await connected((peer) => serveRequests(peer, seen, answer), {
    offered: { ...offered, contexts: { 5: ALLOCATION, 9: BITMAP } },
  });
  return { connection, seen };
}

describe("NbdConnection asked for the status in one of its contexts", () => {
  it("has a server leave out the others that can", async () => {
    const { connection, seen } = await filtering({
      extended: true,
      transmissionFlags: ALL_FLAGS | CAN_FILTER,
    });
    expect(connection.canFilterStatus).toBe(true);
    const status = await connection.blockStatus(4096, 2 ** 17, { contexts: [BITMAP], reqOne: true });
    expect(status).toEqual(new Map([[BITMAP, [{ offset: 4096, length: 2 ** 17, flags: 9 }]]]));
    const payload = Buffer.concat([u64(2 ** 17), u32(9)]);
    expect(seen).toMatchObject([
      { command: CMD.BLOCK_STATUS, flags: PAYLOAD_LEN | 8, offset: 4096, length: 12, payload },
    ]);
  });

  it("names no contexts when all are wanted", async () => {
    const { connection, seen } = await filtering({
      extended: true,
      transmissionFlags: ALL_FLAGS | CAN_FILTER,
    });
    await connection.blockStatus(0, 4096, { contexts: [BITMAP, ALLOCATION] });
    expect(seen).toMatchObject([{ flags: 0, length: 4096 }]);
  });

  it.each([
    ["does not say that it can", { extended: true, transmissionFlags: ALL_FLAGS }],
    ["says so without extended headers", { extended: false, transmissionFlags: ALL_FLAGS | CAN_FILTER }],
  ])("drops the others itself where the server %s", async (_name, offered) => {
    const { connection, seen } = await filtering(offered);
    expect(connection.canFilterStatus).toBe(false);
    const extents = [];
    for await (const extent of connection.extents({ contexts: [BITMAP] })) extents.push(extent);
    expect(extents).toEqual([{ offset: 0, length: MIB, flags: { [BITMAP]: 9 } }]);
    expect(seen).toMatchObject([{ flags: 0, length: MIB, payload: Buffer.alloc(0) }]);
  });

  it("walks with the filter, and asks for less at once when the server finds that too long", async () => {
    const seen: [number, number][] = [];
    const connection = await connected(
      (peer) =>
        serveRequests(peer, [], ({ cookie, offset, payload }) => {
          const bytes = Number(payload.readBigUInt64BE(0));
          seen.push([offset, bytes]);
          if (bytes > 32 * MIB) return [errorChunk(cookie, 22, "too long")];
          return [statusExtChunk(cookie, 5, [[bytes, 0]], true)];
        }),
      {
        offered: {
          ...{ extended: true, sizeBytes: 64 * MIB, transmissionFlags: ALL_FLAGS | CAN_FILTER },
          contexts: { 5: ALLOCATION, 9: BITMAP },
        },
      },
    );
    const extents = [];
    for await (const extent of connection.extents({ contexts: [ALLOCATION] })) extents.push(extent);
    expect(extents).toEqual([{ offset: 0, length: 64 * MIB, flags: { [ALLOCATION]: 0 } }]);
    expect(seen).toEqual([
      [0, 64 * MIB],
      [0, 32 * MIB],
      [32 * MIB, 32 * MIB],
    ]);
  });

  it("ends the connection when the server answers for another", async () => {
    const connection = await connected(
      (peer) => serveRequests(peer, [], ({ cookie }) => [statusChunk(cookie, 5, [[100, 0]], true)]),
      {
        offered: {
          ...{ extended: true, transmissionFlags: ALL_FLAGS | CAN_FILTER },
          contexts: { 5: ALLOCATION, 9: BITMAP },
        },
      },
    );
    const call = connection.blockStatus(0, 100, { contexts: [BITMAP] });
    expect(await failureOf(call)).toMatchObject({ code: "BAD_BLOCK_STATUS", scope: "connection" });
  });

  it.each([[[]], [["base:other"]], [[ALLOCATION, "base:other"]]])(
    "refuses the contexts %j, which it does not have",
    async (wanted) => {
      const { connection, seen } = await filtering({ extended: true, transmissionFlags: ALL_FLAGS });
      const call = connection.blockStatus(0, 1, { contexts: wanted });
      expect(await failureOf(call)).toMatchObject({ code: "INVALID_ARGUMENT", scope: "usage" });
      expect(seen).toEqual([]);
    },
  );
});

interface Culprit {
  readonly code: string;
  /** What it sends, as it is, to a READ of 100 bytes at 4096 and a BLOCK_STATUS of 100 bytes at 0. */
  readonly sends: (read: number, status: number) => Buffer;
}

const data = (cookie: number, offset: number, length: number, done = true) =>
  dataChunk(cookie, offset, Buffer.alloc(length), done);

const culprits: Readonly<Record<string, Culprit>> = {
  "answers with a simple reply": { code: "UNEXPECTED_REPLY", sends: (read) => simpleReply(read, 5) },
  "answers a status with a simple error": {
    code: "UNEXPECTED_REPLY",
    sends: (_read, status) => simpleReply(status, 5),
  },
  "answers with a structured chunk": { code: "UNEXPECTED_REPLY", sends: (read) => data(read, 4096, 100) },
  "repeats another offset": { code: "BAD_REPLY", sends: (read) => extended(data(read, 4096, 100), 4097) },
  "repeats an offset above 2^53": {
    code: "BAD_REPLY",
    sends: (read) => extended(data(read, 4096, 100), (1n << 64n) - 1n),
  },
  "answers an unknown cookie": { code: "UNKNOWN_COOKIE", sends: () => extended(doneChunk(99), 4096) },
  "answers a cookie twice": {
    code: "REPEATED_COOKIE",
    sends: (read) => Buffer.concat([extended(data(read, 4096, 100), 4096), extended(doneChunk(read), 4096)]),
  },
  "sends data out of the range": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: (read) => extended(data(read, 4097, 100), 4096),
  },
  "announces 2^64 - 1 bytes": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: (read) => {
      const whole = extended(data(read, 4096, 100), 4096);
      u64((1n << 64n) - 1n).copy(whole, 24);
      return whole;
    },
  },
  "sends the same bytes twice": {
    code: "CHUNK_OVERLAP",
    sends: (read) =>
      Buffer.concat([extended(data(read, 4096, 60, false), 4096), extended(data(read, 4150, 46), 4096)]),
  },
  "leaves bytes out": { code: "READ_INCOMPLETE", sends: (read) => extended(data(read, 4096, 99), 4096) },
  "answers READ with extents": {
    code: "BAD_REPLY",
    sends: (read) => extended(statusExtChunk(read, 5, [[100, 0]], true), 4096),
  },
  "sends extents of an unknown context": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, status) => extended(statusExtChunk(status, 6, [[100, 0]], true), 0),
  },
  "sends a context in 32 and in 64 bits": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, status) =>
      Buffer.concat([
        extended(statusChunk(status, 5, [[100, 0]]), 0),
        extended(statusExtChunk(status, 5, [[100, 0]], true), 0),
      ]),
  },
  "sends no extents": { code: "BAD_BLOCK_STATUS", sends: (_read, status) => extended(doneChunk(status), 0) },
  "sends an extent of length 0": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, status) => extended(statusExtChunk(status, 5, [[0, 0]], true), 0),
  },
  "sends an extent of 2^63 bytes": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, status) => extended(statusExtChunk(status, 5, [[1n << 63n, 0]], true), 0),
  },
  "counts its extents wrong": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, status) => extended(statusExtChunk(status, 5, [[100, 0]], true, 2), 0),
  },
  "cuts an extent off": {
    code: "BAD_REPLY",
    sends: (_read, status) =>
      extended(chunk(status, CHUNK.STATUS_EXT, Buffer.concat([u32(5), u32(0), u64(100)]), true), 0),
  },
};

describe("NbdConnection with extended headers ends with a coded error when the scripted server", () => {
  it.each(Object.entries(culprits))("%s", async (_name, { code, sends }) => {
    const connection = await connected(
      async (peer) => {
        const [read, status] = await peer.receiveRequests(2);
        await peer.send(sends(read?.cookie ?? 0, status?.cookie ?? 0));
        await peer.hungUp();
      },
      { offered: { extended: true, contexts } },
    );
    const calls = [connection.read(4096, 100), connection.blockStatus(0, 100)];
    await Promise.allSettled(calls);
    expect(await connection.closed).toMatchObject({ code, scope: "connection" });
  });

  it("sends extents in 64 bits without having agreed to extended headers", async () => {
    const connection = await connected(
      async (peer) => {
        const { cookie } = await peer.receiveRequest();
        await peer.send(statusExtChunk(cookie, 5, [[100, 0]], true));
        await peer.hungUp();
      },
      { offered: { contexts } },
    );
    expect(await failureOf(connection.blockStatus(0, 100))).toMatchObject({ code: "BAD_REPLY" });
  });

  it("sends extended chunks without having agreed to them", async () => {
    const connection = await connected(async (peer) => {
      const { cookie } = await peer.receiveRequest();
      await peer.send(extended(data(cookie, 0, 10), 0));
      await peer.hungUp();
    });
    expect(await failureOf(connection.read(0, 10))).toMatchObject({ code: "UNEXPECTED_REPLY" });
  });
});
