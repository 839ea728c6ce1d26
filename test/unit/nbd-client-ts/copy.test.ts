import { describe, expect, it } from "vitest";
import { copyExport, NbdCopyError, type CopyProgress } from "nbd-client-ts";
import { connected } from "./support/connected.js";
import type { Peer, ReceivedRequest, ScriptedExport } from "./support/scripted-server.js";
import { serveRequests } from "./support/serve.js";
import { dataChunk, doneChunk, errorChunk, statusChunk } from "./support/server-bytes.js";

const READ = 0;
const WRITE = 1;
const DISC = 2;
const FLUSH = 3;
const WRITE_ZEROES = 6;
const BLOCK_STATUS = 7;
const KIB = 1024;
const BUFFER = 4 * KIB;

/** Answers one request, or undefined for the answer of a disk without faults. */
type Fault = (request: ReceivedRequest) => Buffer | undefined | Promise<Buffer | undefined>;

/** A disk in memory behind the protocol. */
class Disk {
  readonly content: Buffer;
  readonly seen: ReceivedRequest[] = [];
  readonly #extents: readonly (readonly [length: number, flags: number])[];
  readonly #fault: Fault;

  constructor(
    content: Buffer,
    fault: Fault = () => undefined,
    extents: Disk["extents"] = [[content.length, 0]],
  ) {
    this.content = content;
    this.#fault = fault;
    this.#extents = extents;
  }

  get extents() {
    return this.#extents;
  }

  ranges(command: number): (readonly [offset: number, length: number])[] {
    return this.seen
      .filter((request) => request.command === command)
      .map(({ offset, length }) => [offset, length] as const);
  }

  /** Requests are answered side by side, as they are by a real server. */
  async play(peer: Peer): Promise<void> {
    for (;;) {
      const request = await peer.receiveRequest();
      this.seen.push(request);
      if (request.command === DISC) break;
      void this.#answer(request).then((reply) => peer.send(reply));
    }
    peer.hangUp();
  }

  async connect(offered: ScriptedExport = {}) {
    return await connected((peer) => this.play(peer), {
      offered: { sizeBytes: this.content.length, contexts: { 1: "base:allocation" }, ...offered },
    });
  }

  async #answer(request: ReceivedRequest): Promise<Buffer> {
    const { command, cookie, offset, length, payload } = request;
    const wrong = await this.#fault(request);
    if (wrong !== undefined) return wrong;
    if (command === READ) {
      return dataChunk(cookie, offset, this.content.subarray(offset, offset + length), true);
    }
    if (command === BLOCK_STATUS) return statusChunk(cookie, 1, this.extents, true);
    if (command === WRITE) this.content.set(payload, offset);
    if (command === WRITE_ZEROES) this.content.fill(0, offset, offset + length);
    return doneChunk(cookie);
  }
}

function random(length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, index) => ((index * 2654435761) >>> 13) | 1));
}

async function copyFailure(copy: Promise<unknown>): Promise<NbdCopyError> {
  const error: unknown = await copy.then(
    () => undefined,
    (failure: unknown) => failure,
  );
  if (error instanceof NbdCopyError) return error;
  throw new Error(`Expected an NbdCopyError, got ${String(error)}`);
}

const options = { bufferBytes: BUFFER, buffers: 2 };

describe("copyExport", () => {
  it("copies data, writes zeroes as zeroes, and flushes last", async () => {
    const content = random(64 * KIB);
    content.fill(0, 16 * KIB, 48 * KIB);
    const source = new Disk(content, undefined, [
      [16 * KIB, 0],
      [32 * KIB, 3],
      [16 * KIB, 0],
    ]);
    const target = new Disk(Buffer.alloc(64 * KIB, 0xaa));
    const progress = await copyExport(await source.connect(), await target.connect(), options);
    expect(target.content.equals(content)).toBe(true);
    expect(progress).toEqual({
      doneOffset: 64 * KIB,
      copiedBytes: 32 * KIB,
      zeroedBytes: 32 * KIB,
      skippedBytes: 0,
    });
    expect(target.ranges(WRITE_ZEROES)).toEqual([[16 * KIB, 32 * KIB]]);
    expect(source.ranges(READ)).toHaveLength(8);
    expect(target.seen.at(-1)?.command).toBe(FLUSH);
  });

  it("reads no faster than it is let, and asks for data alone", async () => {
    const content = random(64 * KIB);
    content.fill(0, 16 * KIB, 48 * KIB);
    const source = new Disk(content, undefined, [
      [16 * KIB, 0],
      [32 * KIB, 3],
      [16 * KIB, 0],
    ]);
    const target = new Disk(Buffer.alloc(64 * KIB, 0xaa));
    let asked = 0;
    let waiting: (() => void)[] = [];
    const beforeRead = (bytes: number) => {
      asked += bytes;
      return new Promise<void>((resolve) => void waiting.push(resolve));
    };
    const copy = copyExport(await source.connect(), await target.connect(), { ...options, beforeRead });
    for (let done = 0; done < 32 * KIB; done += 2 * BUFFER) {
      while (waiting.length < 2) await new Promise((resolve) => setImmediate(resolve));
      expect([asked, source.ranges(READ).length * BUFFER]).toEqual([done + 2 * BUFFER, done]);
      const wake = waiting;
      waiting = [];
      for (const resolve of wake) resolve();
    }
    expect((await copy).copiedBytes).toBe(32 * KIB);
    expect(target.content.equals(content)).toBe(true);
  });

  it("stops when what sets its pace fails, or it is aborted there", async () => {
    const failing = { ...options, beforeRead: () => Promise.reject(new Error("No more")) };
    const [source, target] = [new Disk(random(8 * KIB)), new Disk(Buffer.alloc(8 * KIB))];
    await expect(copyExport(await source.connect(), await target.connect(), failing)).rejects.toThrow(
      "No more",
    );
    const abort = new AbortController();
    const hanging = (_bytes: number, signal: AbortSignal) =>
      new Promise<void>((_resolve, reject) => {
        const wake = (): void => reject(new Error("Woken"));
        signal.addEventListener("abort", wake);
        if (signal.aborted) wake();
        else abort.abort();
      });
    const aborted = copyExport(await source.connect(), await target.connect(), {
      ...options,
      beforeRead: hanging,
      signal: abort.signal,
    });
    expect((await copyFailure(aborted)).code).toBe("ABORTED");
    expect(source.ranges(READ)).toEqual([]);
  });

  it("leaves zeroes out when the destination is zero", async () => {
    const content = Buffer.concat([Buffer.alloc(32 * KIB), random(4 * KIB), Buffer.alloc(28 * KIB)]);
    const source = new Disk(content, undefined, [
      [32 * KIB, 3],
      [4 * KIB, 0],
      [28 * KIB, 2],
    ]);
    const target = new Disk(Buffer.alloc(64 * KIB));
    const progress = await copyExport(await source.connect(), await target.connect(), {
      ...options,
      destinationIsZero: true,
    });
    expect(target.content.equals(content)).toBe(true);
    expect(progress).toMatchObject({ copiedBytes: 4 * KIB, skippedBytes: 60 * KIB });
    expect(target.seen.map(({ command }) => command)).toEqual([WRITE, FLUSH]);
  });

  it("reads a hole that is not said to be zero", async () => {
    const source = new Disk(random(8 * KIB), undefined, [[8 * KIB, 1]]);
    const target = new Disk(Buffer.alloc(8 * KIB));
    await copyExport(await source.connect(), await target.connect(), { ...options, destinationIsZero: true });
    expect(target.content.equals(source.content)).toBe(true);
  });

  it("takes a block that is data in part for data", async () => {
    const content = Buffer.concat([random(100), Buffer.alloc(12 * KIB - 200), random(100)]);
    const source = new Disk(content, undefined, [
      [100, 0],
      [12 * KIB - 200, 3],
      [100, 0],
    ]);
    const target = new Disk(Buffer.alloc(12 * KIB, 0xaa));
    await copyExport(await source.connect(), await target.connect(), options);
    expect(target.content.equals(content)).toBe(true);
    expect(target.ranges(WRITE_ZEROES)).toEqual([[4 * KIB, 4 * KIB]]);
  });

  it("copies everything as data when the source fails to say what is zero", async () => {
    const content = Buffer.concat([random(8 * KIB), Buffer.alloc(8 * KIB)]);
    const source = new Disk(content, ({ command, cookie }) =>
      command === BLOCK_STATUS ? errorChunk(cookie, 5, "no map") : undefined,
    );
    const target = new Disk(Buffer.alloc(16 * KIB, 0xaa));
    const progress = await copyExport(await source.connect(), await target.connect(), options);
    expect(target.content.equals(content)).toBe(true);
    expect(progress.copiedBytes).toBe(16 * KIB);
  });

  it("writes zeroes as data where the destination has no WRITE_ZEROES", async () => {
    const source = new Disk(Buffer.alloc(16 * KIB), undefined, [[16 * KIB, 3]]);
    const target = new Disk(Buffer.alloc(16 * KIB, 0xaa));
    const destination = await target.connect({ transmissionFlags: 0b0101 });
    const progress = await copyExport(await source.connect(), destination, options);
    expect(target.content.equals(source.content)).toBe(true);
    expect(progress.zeroedBytes).toBe(16 * KIB);
  });

  it("copies a part, to where it came from", async () => {
    const source = new Disk(random(32 * KIB));
    const target = new Disk(Buffer.alloc(32 * KIB));
    const range = { offset: 8 * KIB, length: 6 * KIB };
    // The scripted disk describes itself from offset 0 on, so the source is asked without its map.
    const from = await source.connect({ contexts: {} });
    const progress = await copyExport(from, await target.connect(), { ...options, ...range });
    expect(progress.doneOffset).toBe(14 * KIB);
    const expected = Buffer.alloc(32 * KIB);
    source.content.copy(expected, 8 * KIB, 8 * KIB, 14 * KIB);
    expect(target.content.equals(expected)).toBe(true);
  });

  it("never has more pieces in flight than buffers, and reads nothing before there is room", async () => {
    let release: () => void = () => undefined;
    const stalled = new Promise<void>((resolve) => (release = resolve));
    const source = new Disk(random(64 * KIB));
    const target = new Disk(Buffer.alloc(64 * KIB), async ({ command }) => {
      if (command === WRITE) await stalled;
      return undefined;
    });
    const copy = copyExport(await source.connect(), await target.connect(), { ...options, buffers: 3 });
    while (target.ranges(WRITE).length < 3) await new Promise((resolve) => setTimeout(resolve, 1));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(source.ranges(READ)).toHaveLength(3);
    expect(target.ranges(WRITE)).toHaveLength(3);
    release();
    await copy;
    expect(target.content.equals(source.content)).toBe(true);
  });

  it("reports how far it has come without gaps", async () => {
    const seen: CopyProgress[] = [];
    let releaseFirst: () => void = () => undefined;
    const first = new Promise<void>((resolve) => (releaseFirst = resolve));
    const source = new Disk(random(16 * KIB));
    const target = new Disk(Buffer.alloc(16 * KIB), async ({ command, offset }) => {
      if (command === WRITE && offset === 0) await first;
      return undefined;
    });
    await copyExport(await source.connect(), await target.connect(), {
      ...options,
      onProgress: (progress) => {
        seen.push(progress);
        if (progress.copiedBytes === 12 * KIB) releaseFirst();
      },
    });
    expect(seen.map(({ doneOffset, copiedBytes }) => [doneOffset / KIB, copiedBytes / KIB])).toEqual([
      [0, 4],
      [0, 8],
      [0, 12],
      [16, 16],
    ]);
  });
});

describe("copyExport when something fails", () => {
  it("never writes nor counts a piece that could not be read", async () => {
    const source = new Disk(random(64 * KIB), ({ command, cookie, offset }) =>
      command === READ && offset === 20 * KIB ? errorChunk(cookie, 5, "bad sector") : undefined,
    );
    const target = new Disk(Buffer.alloc(64 * KIB));
    const from = await source.connect();
    const to = await target.connect();
    const error = await copyFailure(copyExport(from, to, options));
    expect(error).toMatchObject({
      code: "REQUEST_FAILED",
      scope: "request",
      side: "source",
      errno: "EIO",
      serverText: "bad sector",
      offset: 20 * KIB,
    });
    expect(error.progress.doneOffset).toBeLessThanOrEqual(20 * KIB);
    const { doneOffset } = error.progress;
    expect(target.content.subarray(0, doneOffset).equals(source.content.subarray(0, doneOffset))).toBe(true);
    expect(target.ranges(WRITE).some(([offset]) => offset === 20 * KIB)).toBe(false);
    expect(target.seen.some(({ command }) => command === FLUSH)).toBe(false);
    // Neither connection is harmed, and a second attempt can go on where the first stopped.
    expect(source.content.subarray(0, 512).equals(await from.read(0, 512))).toBe(true);
    await to.flush();
  });

  it("stops at a write that fails and says how far it is known to be complete", async () => {
    const source = new Disk(random(64 * KIB));
    const target = new Disk(Buffer.alloc(64 * KIB), ({ command, cookie, offset }) =>
      command === WRITE && offset === 32 * KIB ? errorChunk(cookie, 28, "full") : undefined,
    );
    const error = await copyFailure(copyExport(await source.connect(), await target.connect(), options));
    expect(error).toMatchObject({ code: "REQUEST_FAILED", side: "destination", errno: "ENOSPC" });
    const { doneOffset } = error.progress;
    expect(doneOffset).toBeGreaterThanOrEqual(24 * KIB);
    expect(doneOffset).toBeLessThanOrEqual(32 * KIB);
    expect(target.content.subarray(0, doneOffset).equals(source.content.subarray(0, doneOffset))).toBe(true);
    expect(target.ranges(WRITE).length).toBeLessThan(16);
  });

  it("stops at a reply that reports success but is short", async () => {
    const source = new Disk(random(32 * KIB), ({ command, cookie, offset, length }) =>
      command === READ && offset === 8 * KIB
        ? dataChunk(cookie, offset, Buffer.alloc(length - 1, 7), true)
        : undefined,
    );
    const target = new Disk(Buffer.alloc(32 * KIB));
    const error = await copyFailure(copyExport(await source.connect(), await target.connect(), options));
    expect(error).toMatchObject({ code: "READ_INCOMPLETE", scope: "connection", side: "source" });
    expect(target.ranges(WRITE).some(([offset]) => offset === 8 * KIB)).toBe(false);
  });

  it("fails when a flush fails, with everything copied", async () => {
    const source = new Disk(random(8 * KIB));
    const target = new Disk(Buffer.alloc(8 * KIB), ({ command, cookie }) =>
      command === FLUSH ? errorChunk(cookie, 5, "lost") : undefined,
    );
    const error = await copyFailure(copyExport(await source.connect(), await target.connect(), options));
    expect(error).toMatchObject({ code: "REQUEST_FAILED", side: "destination", command: "FLUSH" });
    expect(error.progress.doneOffset).toBe(8 * KIB);
  });

  it("stops at once when it is aborted, although the destination says nothing", async () => {
    const reason = new Error("enough");
    const abort = new AbortController();
    const source = new Disk(random(32 * KIB));
    const never = new Promise<undefined>(() => undefined);
    const target = new Disk(Buffer.alloc(32 * KIB), ({ command, offset }) => {
      if (command !== WRITE || offset < 8 * KIB) return undefined;
      abort.abort(reason);
      return never;
    });
    const copy = copyExport(await source.connect(), await target.connect(), {
      ...options,
      signal: abort.signal,
    });
    const error = await copyFailure(copy);
    expect(error).toMatchObject({ code: "ABORTED", side: undefined, cause: { cause: reason } });
    expect(error.progress.doneOffset).toBeLessThanOrEqual(8 * KIB);
    expect(target.ranges(WRITE).length).toBeLessThanOrEqual(4);
  });

  it("does nothing when it is aborted before it starts", async () => {
    const source = new Disk(random(8 * KIB));
    const target = new Disk(Buffer.alloc(8 * KIB));
    const signal = AbortSignal.abort();
    const copy = copyExport(await source.connect(), await target.connect(), { ...options, signal });
    expect((await copyFailure(copy)).code).toBe("ABORTED");
    expect(target.seen).toEqual([]);
  });

  it("stops with what the progress callback throws", async () => {
    const source = new Disk(random(32 * KIB));
    const target = new Disk(Buffer.alloc(32 * KIB));
    const copy = copyExport(await source.connect(), await target.connect(), {
      ...options,
      onProgress: () => {
        throw new TypeError("of the caller");
      },
    });
    await expect(copy).rejects.toThrow(TypeError);
    expect(target.ranges(WRITE).length).toBeLessThan(8);
  });

  it("says which side was lost", async () => {
    const source = new Disk(random(32 * KIB));
    const to = await connected(
      async (peer) => {
        await peer.receiveRequest();
        peer.hangUp();
      },
      { offered: { sizeBytes: 32 * KIB } },
    );
    const error = await copyFailure(copyExport(await source.connect(), to, options));
    expect(error).toMatchObject({ code: "CONNECTION_LOST", scope: "connection", side: "destination" });
  });

  it.each([
    ["a smaller destination", {}, 4 * KIB, "OUT_OF_RANGE"],
    ["a range outside", { offset: 4 * KIB, length: 8 * KIB }, 8 * KIB, "OUT_OF_RANGE"],
    ["an odd buffer size", { bufferBytes: 5000 }, 8 * KIB, "INVALID_ARGUMENT"],
    ["no buffers", { buffers: 0 }, 8 * KIB, "INVALID_ARGUMENT"],
  ])("refuses %s", async (_, wrong, sizeBytes, code) => {
    const source = await new Disk(random(8 * KIB)).connect();
    const target = new Disk(Buffer.alloc(sizeBytes));
    await expect(copyExport(source, await target.connect(), wrong)).rejects.toMatchObject({ code });
    expect(target.seen).toEqual([]);
  });
});

describe("copyExport's warm-up", () => {
  const MIB = 1 << 20;

  /** An export that is zero everywhere, and what was asked of it. */
  async function zeroes(sizeBytes: number) {
    const seen: ReceivedRequest[] = [];
    const play = (peer: Peer) =>
      serveRequests(peer, seen, ({ command, cookie, length }) =>
        command === BLOCK_STATUS ? [statusChunk(cookie, 1, [[length, 3]], true)] : undefined,
      );
    const disk = await connected(play, { offered: { sizeBytes, contexts: { 1: "base:allocation" } } });
    return { disk, reads: () => seen.filter(({ command }) => command === READ).map(({ length }) => length) };
  }

  it.each([
    [256, [16 * MIB]],
    [255, []],
  ])("of a copy of %d MiB reads %j on both sides", async (mib, reads) => {
    const [source, target] = [await zeroes(mib * MIB), await zeroes(mib * MIB)];
    await copyExport(source.disk, target.disk, { destinationIsZero: true });
    expect([source.reads(), target.reads()]).toEqual([reads, reads]);
  });

  it("tells which side was lost in it", async () => {
    const source = await zeroes(256 * MIB);
    const lost = await connected(
      async (peer) => {
        await peer.receiveRequest();
        peer.hangUp();
      },
      { offered: { sizeBytes: 256 * MIB } },
    );
    const error = await copyFailure(copyExport(source.disk, lost));
    expect(error).toMatchObject({ code: "CONNECTION_LOST", side: "destination" });
    expect(error.progress.doneOffset).toBe(0);
  });
});
