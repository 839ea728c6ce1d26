import { describe, expect, it } from "vitest";
import { connected, failureOf, type ConnectedOptions } from "./support/connected.js";
import type { ReceivedRequest } from "./support/scripted-server.js";
import { CMD, serveRequests, type Answer } from "./support/serve.js";
import { ALL_FLAGS, dataChunk, errorChunk, statusChunk } from "./support/server-bytes.js";

const EINVAL = 22;
const EOVERFLOW = 75;
const ENOTSUP = 95;
const MIB = 1 << 20;
const FLAG = { FUA: 8, FLUSH: 4, DF: 128 };

async function against(answer: Answer, options: ConnectedOptions = {}) {
  const seen: ReceivedRequest[] = [];
  const connection = await connected((peer) => serveRequests(peer, seen, answer), options);
  return { connection, seen };
}

const nothing: Answer = () => undefined;
const refuseAbove =
  (limit: number, errno: number): Answer =>
  ({ cookie, length }) =>
    length > limit ? [errorChunk(cookie, errno, "too long")] : undefined;

describe("NbdConnection.read with df", () => {
  it("asks for one chunk, and only where the server offers that", async () => {
    for (const [transmissionFlags, flags] of [
      [ALL_FLAGS, 4],
      [ALL_FLAGS & ~FLAG.DF, 0],
    ] as const) {
      const { connection, seen } = await against(nothing, { offered: { transmissionFlags } });
      await connection.read(0, 1000, { df: true });
      expect(seen).toMatchObject([{ command: CMD.READ, flags }]);
    }
  });

  it("asks again without it when the server answers EOVERFLOW", async () => {
    const { connection, seen } = await against(({ cookie, flags }) =>
      flags === 4 ? [errorChunk(cookie, EOVERFLOW, "")] : undefined,
    );
    expect(await connection.read(5, 1000, { df: true })).toEqual(Buffer.alloc(1000));
    expect(seen.map((each) => each.flags)).toEqual([4, 0]);
  });

  it("does not repeat a read that fails with another error", async () => {
    const { connection, seen } = await against(({ cookie }) => [errorChunk(cookie, 5, "")]);
    expect(await failureOf(connection.read(0, 10, { df: true }))).toMatchObject({ errno: "EIO" });
    expect(seen).toHaveLength(1);
  });

  it("refuses a reply in two chunks", async () => {
    const { connection } = await against(({ cookie }) => [
      dataChunk(cookie, 0, Buffer.alloc(5)),
      dataChunk(cookie, 5, Buffer.alloc(5), true),
    ]);
    expect(await failureOf(connection.read(0, 10, { df: true }))).toMatchObject({ code: "BAD_REPLY" });
  });
});

describe("NbdConnection with fua where the server has only FLUSH", () => {
  const offered = { transmissionFlags: ALL_FLAGS & ~FLAG.FUA };

  it("flushes once, after all pieces were acknowledged", async () => {
    const { connection, seen } = await against(nothing, { offered: { ...offered, sizeBytes: 8 * MIB } });
    await connection.write(0, Buffer.alloc(5 * MIB), { fua: true });
    await connection.writeZeroes(0, 512, { fua: true });
    await connection.trim(0, 512, { fua: true });
    const { WRITE, FLUSH, WRITE_ZEROES, TRIM } = CMD;
    expect(seen.map((each) => each.command)).toEqual([
      ...[WRITE, WRITE, WRITE, FLUSH],
      ...[WRITE_ZEROES, FLUSH, TRIM, FLUSH],
    ]);
    expect(seen.every((each) => each.flags === 0)).toBe(true);
  });

  it("does not settle well when the flush fails", async () => {
    const { connection } = await against(
      ({ cookie, command }) => (command === CMD.FLUSH ? [errorChunk(cookie, 5, "")] : undefined),
      { offered },
    );
    const write = connection.write(0, Buffer.alloc(512), { fua: true });
    expect(await failureOf(write)).toMatchObject({ command: "FLUSH", errno: "EIO" });
  });

  it("refuses it when there is no FLUSH either", async () => {
    const none = { transmissionFlags: ALL_FLAGS & ~FLAG.FUA & ~FLAG.FLUSH };
    const { connection, seen } = await against(nothing, { offered: none });
    const write = connection.write(0, Buffer.alloc(512), { fua: true });
    expect(await failureOf(write)).toMatchObject({ code: "NOT_SUPPORTED" });
    expect(seen).toEqual([]);
  });
});

describe("NbdConnection.writeZeroes and trim", () => {
  const offered = { sizeBytes: 1024 * MIB };

  it.each([
    ["EOVERFLOW", EOVERFLOW],
    ["EINVAL", EINVAL],
  ])("go in smaller pieces after %s to a long one, also later", async (_name, errno) => {
    const { connection, seen } = await against(refuseAbove(32 * MIB, errno), { offered });
    await connection.writeZeroes(0, 100 * MIB);
    await connection.trim(0, 40 * MIB);
    await connection.trim(0, 40 * MIB);
    const lengths = (command: number) =>
      seen.filter((each) => each.command === command).map((each) => each.length / MIB);
    expect(lengths(CMD.WRITE_ZEROES)).toEqual([100, 32, 32, 32, 4]);
    expect(lengths(CMD.TRIM)).toEqual([40, 32, 8, 32, 8]);
  });

  it("fail when a short one is invalid too", async () => {
    const { connection } = await against(refuseAbove(0, EINVAL), { offered });
    const failure = await failureOf(connection.writeZeroes(0, 100 * MIB));
    expect(failure).toMatchObject({ code: "REQUEST_FAILED", errno: "EINVAL", length: 32 * MIB });
  });

  it("hand ENOTSUP to a caller that asked for a fast zero, and do not repeat it", async () => {
    const { connection, seen } = await against(({ cookie }) => [errorChunk(cookie, ENOTSUP, "slow")]);
    const zero = connection.writeZeroes(0, 4096, { fastZero: true, noHole: true });
    expect(await failureOf(zero)).toMatchObject({ errno: "ENOTSUP", serverText: "slow" });
    expect(seen).toMatchObject([{ command: CMD.WRITE_ZEROES, flags: 2 | 16 }]);
  });

  it("trim only the whole blocks of an unaligned range", async () => {
    const { connection, seen } = await against(nothing, {
      offered: { sizeBytes: 4096 * 4 + 100, blockSize: [4096, 4096, MIB] },
    });
    await connection.trim(1, 4096 * 3);
    await connection.trim(1, 4096);
    await connection.trim(4095, 4096 * 3 + 101);
    expect(seen.map(({ offset, length }) => [offset, length])).toEqual([
      [4096, 4096 * 2],
      [4096, 4096 * 3 + 100],
    ]);
  });
});

describe("NbdConnection.cache", () => {
  it("asks for aligned pieces of at most the server's maximum", async () => {
    const { connection, seen } = await against(nothing, {
      offered: {
        sizeBytes: 64 * MIB + 5,
        blockSize: [512, 4096, 24 * MIB],
        transmissionFlags: ALL_FLAGS | 1024,
      },
    });
    expect(connection.canCache).toBe(true);
    await connection.cache(100, 64 * MIB - 95);
    expect(seen.map(({ command, offset, length }) => [command, offset, offset + length])).toEqual([
      [CMD.CACHE, 0, 24 * MIB],
      [CMD.CACHE, 24 * MIB, 48 * MIB],
      [CMD.CACHE, 48 * MIB, 64 * MIB + 5],
    ]);
  });

  it("is refused where the server does not offer it", async () => {
    const { connection } = await against(nothing, { offered: { transmissionFlags: 1 } });
    expect(await failureOf(connection.cache(0, 1))).toMatchObject({ code: "NOT_SUPPORTED" });
  });
});

describe("NbdConnection.extents over many requests", () => {
  const contexts = { 1: "base:allocation" };
  const whole: Answer = ({ cookie, length }) => [statusChunk(cookie, 1, [[length, 3]], true)];
  const walk = async (connection: Awaited<ReturnType<typeof against>>["connection"]) => {
    const found = [];
    for await (const { offset, length } of connection.extents()) found.push([offset, length]);
    return found;
  };

  it("asks for more at once where the map is sparse", async () => {
    const sizeBytes = 2 ** 44;
    const { connection, seen } = await against(whole, { offered: { sizeBytes, contexts } });
    expect(await walk(connection)).toEqual([[0, sizeBytes]]);
    expect(seen.length).toBeLessThan(8200); // 2 GiB each, instead of 16,384 of 1 GiB
  });

  it("asks for less when the server finds a request too long", async () => {
    const sizeBytes = 100 * MIB;
    const { connection, seen } = await against(
      (request) => refuseAbove(32 * MIB, EINVAL)(request) ?? whole(request),
      { offered: { sizeBytes, contexts } },
    );
    expect(await walk(connection)).toEqual([[0, sizeBytes]]);
    expect(seen.map(({ length }) => length / MIB)).toEqual([100, 32, 32, 32, 4]);
  });
});
