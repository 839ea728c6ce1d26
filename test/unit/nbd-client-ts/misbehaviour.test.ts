import { describe, expect, it } from "vitest";
import { connected, failureOf } from "./support/connected.js";
import type { Peer, ReceivedRequest, ScriptedExport } from "./support/scripted-server.js";
import {
  CHUNK,
  chunk,
  dataChunk,
  doneChunk,
  errorOffsetChunk,
  holeChunk,
  simpleReply,
  statusChunk,
  u16,
  u32,
  u64,
} from "./support/server-bytes.js";

const KIB = Buffer.alloc(1024, 0xab);
const CONTEXTS = { 5: "base:allocation", 6: "qemu:dirty-bitmap:b" };

interface Culprit {
  readonly sends: (read: ReceivedRequest, status: ReceivedRequest) => readonly Buffer[];
  readonly code: string;
  readonly offered?: ScriptedExport;
}

/** Each is sent while a READ of 1 KiB at 4096, a BLOCK_STATUS of 1 KiB at 0 and a WRITE are in flight. */
const culprits: Readonly<Record<string, Culprit>> = {
  "sends a wrong magic": { code: "BAD_MAGIC", sends: () => [Buffer.alloc(16)] },
  "answers a cookie that was never sent": { code: "UNKNOWN_COOKIE", sends: () => [simpleReply(4711)] },
  "answers a cookie above 2^53": { code: "UNKNOWN_COOKIE", sends: () => [simpleReply((1n << 64n) - 1n)] },
  "answers a cookie again after its last reply": {
    code: "REPEATED_COOKIE",
    sends: ({ cookie }) => [dataChunk(cookie, 4096, KIB, true), doneChunk(cookie)],
  },
  "answers READ with a simple reply under structured replies": {
    code: "UNEXPECTED_REPLY",
    sends: ({ cookie }) => [simpleReply(cookie, 0, KIB)],
  },
  "answers READ with a simple error under structured replies": {
    code: "UNEXPECTED_REPLY",
    sends: ({ cookie }) => [simpleReply(cookie, 5)],
  },
  "answers BLOCK_STATUS with a simple success": {
    code: "UNEXPECTED_REPLY",
    sends: (_read, { cookie }) => [simpleReply(cookie)],
  },
  "sends a chunk below the range": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: ({ cookie }) => [dataChunk(cookie, 4095, KIB, true)],
  },
  "sends a chunk above the range": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: ({ cookie }) => [dataChunk(cookie, 4097, KIB, true)],
  },
  "announces a chunk of 4 GiB": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: ({ cookie }) => [
      u32(0x668e33ef),
      u16(0),
      u16(CHUNK.DATA),
      u64(cookie),
      u32(0xffffffff),
      u64(4096),
    ],
  },
  "sends a chunk at an offset near 2^64": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.DATA, Buffer.concat([u64((1n << 64n) - 512n), KIB]), true)],
  },
  "sends a hole out of range": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: ({ cookie }) => [holeChunk(cookie, 4096, 1025, true)],
  },
  "reports an error out of range": {
    code: "CHUNK_OUT_OF_RANGE",
    sends: ({ cookie }) => [errorOffsetChunk(cookie, 5, 4096 + 1024)],
  },
  "sends overlapping data": {
    code: "CHUNK_OVERLAP",
    sends: ({ cookie }) => [
      dataChunk(cookie, 4096, KIB),
      dataChunk(cookie, 4096 + 1023, KIB.subarray(0, 1), true),
    ],
  },
  "sends a hole over data": {
    code: "CHUNK_OVERLAP",
    sends: ({ cookie }) => [dataChunk(cookie, 4096, KIB), holeChunk(cookie, 4096, 1024, true)],
  },
  "reports success without the last byte": {
    code: "READ_INCOMPLETE",
    sends: ({ cookie }) => [dataChunk(cookie, 4096, KIB.subarray(1), true)],
  },
  "reports success of a READ without any data": {
    code: "READ_INCOMPLETE",
    sends: ({ cookie }) => [doneChunk(cookie)],
  },
  "sends data without a byte": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [dataChunk(cookie, 4096, Buffer.alloc(0))],
  },
  "sends a hole without a byte": { code: "BAD_REPLY", sends: ({ cookie }) => [holeChunk(cookie, 4096, 0)] },
  "sends a hole of wrong size": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.HOLE, Buffer.alloc(11), false)],
  },
  "sends NONE without DONE": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.NONE, Buffer.alloc(0), false)],
  },
  "sends NONE with a payload": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.NONE, Buffer.alloc(1), true)],
  },
  "sends a chunk of unknown type": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, 99, Buffer.alloc(8), true)],
  },
  "sends an error without an error": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.ERROR, Buffer.alloc(6), true)],
  },
  "sends an error shorter than its header": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.ERROR, Buffer.alloc(5), true)],
  },
  "sends an error text longer than its chunk": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [
      chunk(cookie, CHUNK.ERROR, Buffer.concat([u32(5), u16(3), Buffer.from("ab")]), true),
    ],
  },
  "sends an error offset without room for it": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [chunk(cookie, CHUNK.ERROR_OFFSET, Buffer.concat([u32(5), u16(0), u32(0)]), true)],
  },
  "sends an error text of more than 4096 bytes": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [
      chunk(cookie, CHUNK.ERROR, Buffer.concat([u32(5), u16(4097), Buffer.alloc(4097)]), true),
    ],
  },
  "announces an error text of 4 GiB": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [u32(0x668e33ef), u16(1), u16(CHUNK.ERROR), u64(cookie), u32(0xffffffff)],
  },
  "answers READ with extents": {
    code: "BAD_REPLY",
    sends: ({ cookie }) => [statusChunk(cookie, 5, [[1024, 0]])],
  },
  "answers BLOCK_STATUS with data": {
    code: "BAD_REPLY",
    sends: (_read, { cookie }) => [dataChunk(cookie, 0, KIB)],
  },
  "sends extents of a context that was not negotiated": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, { cookie }) => [statusChunk(cookie, 7, [[1024, 0]])],
  },
  "sends a context twice": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, { cookie }) => [statusChunk(cookie, 5, [[1024, 0]]), statusChunk(cookie, 5, [[1024, 0]])],
  },
  "leaves a context out": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, { cookie }) => [statusChunk(cookie, 5, [[1024, 0]], true)],
  },
  "sends an extent of length 0": {
    code: "BAD_BLOCK_STATUS",
    sends: (_read, { cookie }) => [
      statusChunk(cookie, 5, [
        [512, 0],
        [0, 1],
      ]),
    ],
  },
  "sends no extent": { code: "BAD_REPLY", sends: (_read, { cookie }) => [statusChunk(cookie, 5, [])] },
  "sends half an extent": {
    code: "BAD_REPLY",
    sends: (_read, { cookie }) => [chunk(cookie, CHUNK.STATUS, Buffer.alloc(16), true)],
  },
  "announces 8 GiB of extents": {
    code: "BAD_REPLY",
    sends: (_read, { cookie }) => [u32(0x668e33ef), u16(0), u16(CHUNK.STATUS), u64(cookie), u32(0xfffffffc)],
  },
  "sends structured replies unasked": {
    code: "UNEXPECTED_REPLY",
    sends: ({ cookie }) => [dataChunk(cookie, 4096, KIB, true)],
    offered: { structured: false },
  },
};

/** Issues the three requests, lets the culprit answer, and gives what each call saw. */
async function provoke(culprit: Culprit) {
  const plain = culprit.offered?.structured === false;
  const misbehave = async (peer: Peer) => {
    const [read, status] = await peer.receiveRequests(plain ? 2 : 3);
    if (read !== undefined && status !== undefined) await peer.send(...culprit.sends(read, status));
    await peer.hungUp();
  };
  const connection = await connected(misbehave, { offered: culprit.offered ?? { contexts: CONTEXTS } });
  const calls = [
    connection.read(4096, 1024),
    ...(plain ? [] : [connection.blockStatus(0, 1024)]),
    connection.write(0, Buffer.alloc(16)),
  ];
  const settled = await Promise.allSettled(calls);
  return { connection, settled };
}

describe("NbdConnection fails everything in flight when the server", () => {
  it.each(Object.entries(culprits))("%s", async (_name, culprit) => {
    const { connection, settled } = await provoke(culprit);
    const first = await connection.closed;
    expect(first).toMatchObject({ code: culprit.code, scope: "connection" });
    const unanswered = culprit.code === "REPEATED_COOKIE" ? settled.slice(1) : settled;
    for (const each of unanswered) {
      expect(each).toMatchObject({ status: "rejected", reason: { code: culprit.code, scope: "connection" } });
      expect((each as PromiseRejectedResult).reason).toHaveProperty("cause", first);
    }
    expect(await failureOf(connection.read(0, 1))).toMatchObject({ code: culprit.code, cause: first });
  });

  it("sends a simple success without its data and hangs up", async () => {
    const connection = await connected(
      async (peer) => {
        const { cookie } = await peer.receiveRequest();
        await peer.send(simpleReply(cookie, 0, KIB.subarray(0, 1000)));
        peer.hangUp();
      },
      { offered: { structured: false } },
    );
    expect(await failureOf(connection.read(0, 1024))).toMatchObject({ code: "CONNECTION_LOST" });
  });

  it("hangs up at any point of a reply", async () => {
    const reply = Buffer.concat([holeChunk(1, 0, 512), dataChunk(1, 512, KIB.subarray(0, 512), true)]);
    for (const length of [0, 1, 4, 19, 20, 27, 28, 31, 32, 52, 59, 60, 61, reply.length - 1]) {
      const connection = await connected(async (peer) => {
        await peer.receiveRequest();
        await peer.send(reply.subarray(0, length));
        peer.hangUp();
      });
      expect(await failureOf(connection.read(0, 1024))).toMatchObject({ code: "CONNECTION_LOST" });
    }
  });

  it("ends a REQ_ONE extent beyond the request", async () => {
    const connection = await connected(
      async (peer) => {
        const { cookie } = await peer.receiveRequest();
        await peer.send(statusChunk(cookie, 5, [[1025, 0]], true));
        await peer.hungUp();
      },
      { offered: { contexts: { 5: "base:allocation" } } },
    );
    const failure = await failureOf(connection.blockStatus(0, 1024, { reqOne: true }));
    expect(failure).toMatchObject({ code: "BAD_BLOCK_STATUS" });
  });
});
