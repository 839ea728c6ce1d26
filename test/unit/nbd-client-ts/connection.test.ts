import { describe, expect, it } from "vitest";
import { connected, failureOf } from "./support/connected.js";
import type { Peer, ReceivedRequest } from "./support/scripted-server.js";
import { dataChunk, doneChunk, errorChunk, simpleReply, statusChunk } from "./support/server-bytes.js";

const READ = 0;
const WRITE = 1;
const DISC = 2;

function patterned(length: number, seed: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, index) => (index * 7 + seed) % 251));
}

function readReply(request: ReceivedRequest, content: Buffer): Buffer {
  return dataChunk(
    request.cookie,
    request.offset,
    content.subarray(request.offset, request.offset + request.length),
    true,
  );
}

/** Answers reads from `content` and acknowledges the rest until the client hangs up; records the requests. */
async function serve(peer: Peer, content: Buffer, seen: ReceivedRequest[] = []): Promise<void> {
  for (;;) {
    const request = await peer.receiveRequest();
    seen.push(request);
    if (request.command === DISC) break;
    await peer.send(request.command === READ ? readReply(request, content) : doneChunk(request.cookie));
  }
  peer.hangUp();
}

describe("NbdConnection.read", () => {
  it("matches replies that come in any order", async () => {
    const content = patterned(4096, 1);
    const connection = await connected(async (peer) => {
      const requests = await peer.receiveRequests(4);
      await peer.send(...requests.reverse().map((request) => readReply(request, content)));
    });
    const reads = [0, 1024, 2048, 3072].map((offset) => connection.read(offset, 1024));
    expect(Buffer.concat(await Promise.all(reads)).equals(content)).toBe(true);
  });

  it("splits by the server's maximum, at multiples of its preferred size, and puts the pieces together", async () => {
    const content = patterned(100_000, 2);
    const seen: ReceivedRequest[] = [];
    const offered = { sizeBytes: content.length, blockSize: [1, 4096, 10_000] as const };
    const connection = await connected((peer) => serve(peer, content, seen), { offered });
    const data = await connection.read(17, 99_000);
    expect(content.subarray(17, 99_017).equals(data)).toBe(true);
    expect(seen.map(({ offset, length }) => [offset, offset + length])).toEqual([
      [17, 8192],
      ...Array.from({ length: 10 }, (_, index) => [(index + 1) * 8192, (index + 2) * 8192]),
      [90_112, 99_017],
    ]);
  });

  it("reads into the caller's memory", async () => {
    const content = patterned(10_000, 3);
    const connection = await connected((peer) => serve(peer, content));
    const into = Buffer.alloc(9000);
    expect(await connection.read(500, 9000, { into })).toBe(into);
    expect(into.equals(content.subarray(500, 9500))).toBe(true);
  });

  it("asks for aligned ranges only, except at the unaligned end of the export", async () => {
    const content = patterned(10_000, 4);
    const seen: ReceivedRequest[] = [];
    const offered = { sizeBytes: 10_000, blockSize: [4096, 4096, 1 << 20] as const };
    const connection = await connected((peer) => serve(peer, content, seen), { offered });
    expect(content.subarray(4095, 4098).equals(await connection.read(4095, 3))).toBe(true);
    expect(content.subarray(9999).equals(await connection.read(9999, 1, { into: Buffer.alloc(1) }))).toBe(
      true,
    );
    expect(seen.map(({ offset, length }) => [offset, length])).toEqual([
      [0, 8192],
      [8192, 1808],
    ]);
  });

  it("sends no request for nothing", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected((peer) => serve(peer, Buffer.alloc(0), seen));
    expect(await connection.read(5, 0)).toHaveLength(0);
    await connection.close();
    expect(seen.map((each) => each.command)).toEqual([DISC]);
  });

  it("fails only its own request when the server answers with an error", async () => {
    const content = patterned(4096, 5);
    const connection = await connected(async (peer) => {
      const [first, second] = await peer.receiveRequests(2);
      if (first === undefined || second === undefined) return;
      await peer.send(
        dataChunk(first.cookie, 0, content.subarray(0, 100)),
        errorChunk(first.cookie, 5, "bad sector"),
      );
      await peer.send(readReply(second, content));
    });
    const [failed, fine] = await Promise.allSettled([connection.read(0, 1024), connection.read(1024, 1024)]);
    expect(failed).toMatchObject({
      reason: {
        code: "REQUEST_FAILED",
        scope: "request",
        errno: "EIO",
        serverText: "bad sector",
        offset: 0,
        length: 1024,
      },
    });
    expect(fine.status).toBe("fulfilled");
  });

  it("waits for its other pieces before it reports that one failed, and starts no more", async () => {
    const requests: ReceivedRequest[] = [];
    const connection = await connected(
      async (peer) => {
        requests.push(...(await peer.receiveRequests(4)));
        const [first, ...others] = requests;
        await peer.send(errorChunk(first?.cookie ?? 0, 5, ""));
        for (const each of others) await peer.send(readReply(each, Buffer.alloc(1 << 20)));
        await serve(peer, Buffer.alloc(0), requests);
      },
      { offered: { blockSize: [1, 4096, 4096] } },
    );
    expect(await failureOf(connection.read(0, 1 << 20))).toMatchObject({ code: "REQUEST_FAILED", offset: 0 });
    await connection.close();
    expect(requests.map((each) => each.command)).toEqual([...Array<number>(4).fill(READ), DISC]);
  });
});

describe("NbdConnection.write", () => {
  it("keeps reading replies while the server takes no more writes", async () => {
    const content = Buffer.alloc(16 << 20, 0x5a);
    const connection = await connected(
      async (peer) => {
        const reads = await peer.receiveRequests(4);
        // 8 MiB go out before the first byte of the writes is taken: a client that only writes would deadlock here.
        for (const read of reads) await peer.send(readReply(read, content));
        for (const write of await peer.receiveRequests(4)) await peer.send(simpleReply(write.cookie));
      },
      { offered: { sizeBytes: content.length } },
    );
    const results = await Promise.all([
      connection.read(0, 8 << 20),
      connection.write(8 << 20, content.subarray(0, 8 << 20)),
    ]);
    expect(results[0].every((byte) => byte === 0x5a)).toBe(true);
  });

  it("holds requests back while the server takes no bytes, so that they can still be taken back", async () => {
    const seen: ReceivedRequest[] = [];
    let startTaking = () => undefined as void;
    const taking = new Promise<void>((resolve) => (startTaking = resolve));
    const connection = await connected(async (peer) => {
      await taking;
      await serve(peer, Buffer.alloc(0), seen);
    });
    const controller = new AbortController();
    const data = Buffer.alloc(1 << 20);
    const writes = Array.from({ length: 16 }, () => connection.write(0, data, { signal: controller.signal }));
    const failures = Promise.all(writes.map(failureOf));
    // After this the socket has taken what it can.
    await new Promise((resolve) => setImmediate(resolve));
    controller.abort();
    for (const failure of await failures) expect(failure.code).toBe("ABORTED");
    startTaking();
    await connection.close();
    expect(seen.map((each) => each.command)).toEqual([WRITE, DISC]);
  });

  it("sends data and flags as given", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected((peer) => serve(peer, Buffer.alloc(0), seen));
    await connection.write(3, Buffer.from("abc"), { fua: true });
    await connection.writeZeroes(10, 20, { noHole: true, fastZero: true });
    await connection.trim(30, 40);
    await connection.flush();
    expect(seen).toMatchObject([
      { command: WRITE, flags: 1, offset: 3, length: 3, payload: Buffer.from("abc") },
      { command: 6, flags: 2 | 16, offset: 10, length: 20 },
      { command: 4, flags: 0, offset: 30, length: 40 },
      { command: 3, flags: 0, offset: 0, length: 0 },
    ]);
  });

  it("splits long zeroes and trims", async () => {
    const seen: ReceivedRequest[] = [];
    const offered = { sizeBytes: 2 ** 40 };
    const connection = await connected((peer) => serve(peer, Buffer.alloc(0), seen), { offered });
    await connection.writeZeroes(2 ** 33, 300 << 20);
    expect(seen.map(({ offset, length }) => [offset - 2 ** 33, length])).toEqual([
      [0, 128 << 20],
      [128 << 20, 128 << 20],
      [256 << 20, 44 << 20],
    ]);
  });

  it("is refused locally on a read-only export, like all that changes it", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected((peer) => serve(peer, Buffer.alloc(0), seen), {
      offered: { transmissionFlags: 0xffff },
    });
    for (const call of [
      connection.write(0, Buffer.alloc(1)),
      connection.trim(0, 1),
      connection.writeZeroes(0, 1),
    ]) {
      expect(await failureOf(call)).toMatchObject({ code: "READ_ONLY", scope: "usage" });
    }
    await connection.close();
    expect(seen.map((each) => each.command)).toEqual([DISC]);
  });
});

describe("NbdConnection refuses", () => {
  const badRanges: readonly (readonly [number, number])[] = [
    [-1, 1],
    [0, -1],
    [0.5, 1],
    [0, NaN],
    [0, (1 << 20) + 1],
    [1 << 20, 1],
    [Number.MAX_SAFE_INTEGER, 1],
    [2 ** 53, 1],
  ];

  it.each(badRanges)("a range outside the export: offset %d, length %d", async (offset, length) => {
    const connection = await connected((peer) => peer.hungUp(), {
      offered: { contexts: { 1: "base:allocation" } },
    });
    const calls = [
      connection.read(offset, length),
      connection.trim(offset, length),
      connection.blockStatus(offset, length),
    ];
    for (const call of calls)
      expect(await failureOf(call)).toMatchObject({ code: "OUT_OF_RANGE", scope: "usage" });
  });

  it("unaligned writes, which it could only widen by reading first", async () => {
    const connection = await connected((peer) => peer.hungUp(), {
      offered: { sizeBytes: 4096 + 100, blockSize: [512, 512, 4096] },
    });
    expect(await failureOf(connection.write(1, Buffer.alloc(512)))).toMatchObject({ code: "UNALIGNED" });
    expect(await failureOf(connection.writeZeroes(4096, 99))).toMatchObject({ code: "UNALIGNED" });
  });

  it("commands that the server does not offer", async () => {
    const connection = await connected((peer) => peer.hungUp(), { offered: { transmissionFlags: 1 } });
    const calls = [
      connection.flush(),
      connection.trim(0, 1),
      connection.writeZeroes(0, 1),
      connection.write(0, Buffer.alloc(1), { fua: true }),
      connection.blockStatus(0, 1),
    ];
    for (const call of calls)
      expect(await failureOf(call)).toMatchObject({ code: "NOT_SUPPORTED", scope: "usage" });
  });

  it("a buffer of another length than the read", async () => {
    const connection = await connected((peer) => peer.hungUp());
    const read = connection.read(0, 10, { into: Buffer.alloc(9) });
    expect(await failureOf(read)).toMatchObject({ code: "INVALID_ARGUMENT" });
  });
});

describe("NbdConnection with an AbortSignal", () => {
  it("rejects at once, discards the late reply and goes on", async () => {
    const content = patterned(4096, 6);
    const controller = new AbortController();
    const into = Buffer.alloc(1024, 0xee);
    const connection = await connected(async (peer) => {
      const first = await peer.receiveRequest();
      controller.abort("enough");
      const second = await peer.receiveRequest();
      await peer.send(readReply(first, content), readReply(second, content));
    });
    const aborted = failureOf(connection.read(0, 1024, { into, signal: controller.signal }));
    expect(await aborted).toMatchObject({ code: "ABORTED", scope: "request", cause: "enough" });
    expect(content.subarray(1024, 2048).equals(await connection.read(1024, 1024))).toBe(true);
    expect(into.every((byte) => byte === 0xee)).toBe(true);
  });

  it("takes back requests that wait for a place on the wire", async () => {
    const seen: ReceivedRequest[] = [];
    const content = Buffer.alloc(1 << 20);
    const controller = new AbortController();
    const connection = await connected(async (peer) => {
      seen.push(...(await peer.receiveRequests(16)));
      controller.abort();
      for (const each of seen) await peer.send(readReply(each, content));
      await serve(peer, content, seen);
    });
    const options = { signal: controller.signal };
    const reads = Array.from({ length: 40 }, (_, index) => failureOf(connection.read(index, 1, options)));
    for (const failure of await Promise.all(reads)) expect(failure.code).toBe("ABORTED");
    await connection.close();
    expect(seen.map((each) => each.command)).toEqual([...Array<number>(16).fill(READ), DISC]);
  });

  it("sends nothing when it was aborted before", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected((peer) => serve(peer, Buffer.alloc(0), seen));
    const signal = AbortSignal.abort();
    expect(await failureOf(connection.read(0, 1, { signal }))).toMatchObject({ code: "ABORTED" });
    await connection.close();
    expect(seen.map((each) => each.command)).toEqual([DISC]);
  });
});

describe("NbdConnection.extents", () => {
  it("walks all contexts together", async () => {
    const connection = await connected(
      async (peer) => {
        const { cookie } = await peer.receiveRequest();
        await peer.send(
          statusChunk(cookie, 8, [
            [600, 1],
            [400, 1],
          ]),
          statusChunk(
            cookie,
            4,
            [
              [500, 3],
              [1000, 0],
            ],
            true,
          ),
        );
        const next = await peer.receiveRequest();
        await peer.send(
          statusChunk(next.cookie, 4, [[5000, 0]]),
          statusChunk(next.cookie, 8, [[5000, 0]], true),
        );
      },
      { offered: { sizeBytes: 2000, contexts: { 8: "b:b", 4: "a:a" } } },
    );
    const extents = [];
    for await (const extent of connection.extents()) extents.push(extent);
    expect(extents).toEqual([
      { offset: 0, length: 500, flags: { "a:a": 3, "b:b": 1 } },
      { offset: 500, length: 500, flags: { "a:a": 0, "b:b": 1 } },
      { offset: 1000, length: 1000, flags: { "a:a": 0, "b:b": 0 } },
    ]);
  });
});

describe("NbdConnection ends", () => {
  it("with TIMEOUT when the server owes a reply for too long", async () => {
    const connection = await connected((peer) => peer.hungUp(), { requestTimeoutMs: 50 });
    const failures = await Promise.all([failureOf(connection.read(0, 1)), failureOf(connection.flush())]);
    for (const failure of failures) expect(failure).toMatchObject({ code: "TIMEOUT", scope: "connection" });
    expect(await connection.closed).toMatchObject({ code: "TIMEOUT" });
  });

  it("with CONNECTION_LOST when the server hangs up while nothing is in flight", async () => {
    const connection = await connected((peer) => {
      peer.hangUp();
      return Promise.resolve();
    });
    expect(await connection.closed).toMatchObject({ code: "CONNECTION_LOST" });
  });

  it("after close has waited for what is in flight, with DISC as the last request", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected(async (peer) => serve(peer, Buffer.alloc(1024), seen));
    const read = connection.read(0, 1024);
    const closing = connection.close();
    const late = connection.read(0, 1);
    expect(await failureOf(late)).toMatchObject({ code: "CLOSED" });
    expect(await read).toHaveLength(1024);
    await Promise.all([closing, connection.close(), connection[Symbol.asyncDispose]()]);
    expect(await connection.closed).toBeUndefined();
    expect(seen).toMatchObject([{ command: READ }, { command: DISC, flags: 0, offset: 0, length: 0 }]);
  });

  it("in good order when the server announces that it shuts down", async () => {
    const seen: ReceivedRequest[] = [];
    const connection = await connected(async (peer) => {
      const { cookie } = await peer.receiveRequest();
      await peer.send(errorChunk(cookie, 108, "bye"));
      await serve(peer, Buffer.alloc(0), seen);
    });
    expect(await failureOf(connection.flush())).toMatchObject({ code: "REQUEST_FAILED", errno: "ESHUTDOWN" });
    expect(await connection.closed).toBeUndefined();
    expect(seen.map((each) => each.command)).toEqual([DISC]);
  });

  it("at once when it is destroyed, failing what is in flight", async () => {
    const connection = await connected((peer) => peer.hungUp());
    const read = failureOf(connection.read(0, 1));
    connection.destroy();
    expect(await read).toMatchObject({ code: "CLOSED", cause: { code: "CLOSED" } });
    await connection.close();
  });
});
