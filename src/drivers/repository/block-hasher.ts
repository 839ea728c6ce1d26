import { Worker } from "node:worker_threads";
import { BLOCK_SIZE } from "../../model/extents.js";
import { blocksIn, blocksOf, DIGEST_BYTES, digestBlock, isZero } from "./block-digest.js";

/** What is handed over at once: two threads share what a pull reads at once. */
const SLOT_BYTES = 1024 * 1024;
/** As many as a pull has in flight. */
const SLOTS = 8;
const DIGESTS_BYTES = (SLOT_BYTES / BLOCK_SIZE) * DIGEST_BYTES;
/** Below this, handing it over takes longer than hashing it. */
const MIN_SHARED_BYTES = 2 * BLOCK_SIZE;

/**
 * Digests blocks beside the event loop. SHA-256 costs 0.6 s of CPU time a GiB, about half as much as all the rest of a
 * pull; with a worker the event loop keeps 0.13 s of that, for the copy into shared memory (measured; `crypto.subtle`,
 * which uses threads too, took 0.8 s). What finds no free slot is hashed on the spot, which balances the two
 * threads and makes do without the worker if that fails.
 */
export class BlockHasher implements AsyncDisposable {
  /** With the worker: the scattered blocks of a small incremental need neither. */
  #shared: SharedMemory | undefined;
  readonly #free = Array.from({ length: SLOTS }, (_, slot) => slot);
  readonly #pending = new Map<number, (done: boolean) => void>();
  #worker: Worker | undefined;
  #usable = true;

  /** 32 bytes for each block of `data`; a block of zeroes has a digest of zeroes. `data` may change afterwards. */
  async digests(data: Uint8Array): Promise<Buffer> {
    const pieces: Promise<Buffer>[] = [];
    for (let at = 0; at < data.length; at += SLOT_BYTES)
      pieces.push(this.#piece(data.subarray(at, at + SLOT_BYTES)));
    return Buffer.concat(await Promise.all(pieces));
  }

  /** Idempotent. */
  async close(): Promise<void> {
    this.#giveUp();
    await this.#worker?.terminate();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #piece(data: Uint8Array): Promise<Buffer> {
    const slot = this.#usable && data.length >= MIN_SHARED_BYTES ? this.#free.pop() : undefined;
    if (slot === undefined) return digestBlocks(data);
    const shared = (this.#shared ??= shareMemory());
    shared.content.set(data, slot * SLOT_BYTES);
    const done = await this.#hash(shared, slot, data.length);
    const content = shared.content.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + data.length);
    const digests = done ? collect(shared, slot, content) : digestBlocks(content);
    this.#free.push(slot);
    return digests;
  }

  /** False if the worker cannot do it. */
  #hash(shared: SharedMemory, slot: number, length: number): Promise<boolean> {
    this.#worker ??= this.#start(shared);
    const worker = this.#worker;
    return new Promise((resolve) => {
      this.#pending.set(slot, resolve);
      worker.postMessage({ slot, length });
    });
  }

  #start({ content, digests }: SharedMemory): Worker {
    const workerData = {
      content: content.buffer,
      digests: digests.buffer,
      ...{ SLOT_BYTES, DIGESTS_BYTES, BLOCK_SIZE, DIGEST_BYTES },
    };
    const worker = new Worker(WORKER_SOURCE, { eval: true, workerData, env: {}, execArgv: [] });
    // Nobody's exit waits for digests.
    worker.unref();
    worker.on("message", (slot: number) => this.#settle(slot, true));
    worker.once("error", () => this.#giveUp());
    worker.once("exit", () => this.#giveUp());
    return worker;
  }

  #settle(slot: number, done: boolean): void {
    const resolve = this.#pending.get(slot);
    this.#pending.delete(slot);
    resolve?.(done);
  }

  #giveUp(): void {
    this.#usable = false;
    for (const slot of [...this.#pending.keys()]) this.#settle(slot, false);
  }
}

interface SharedMemory {
  readonly content: Buffer;
  readonly digests: Buffer;
}

function shareMemory(): SharedMemory {
  return {
    content: Buffer.from(new SharedArrayBuffer(SLOTS * SLOT_BYTES)),
    digests: Buffer.from(new SharedArrayBuffer(SLOTS * DIGESTS_BYTES)),
  };
}

/** What the worker has made of a slot. */
function collect(shared: SharedMemory, slot: number, content: Uint8Array): Buffer {
  const start = slot * DIGESTS_BYTES;
  const digests = Buffer.from(
    shared.digests.subarray(start, start + blocksOf(content.length) * DIGEST_BYTES),
  );
  let at = 0;
  for (const block of blocksIn(content)) {
    if (isZero(block)) digests.fill(0, at, at + DIGEST_BYTES);
    at += DIGEST_BYTES;
  }
  return digests;
}

function digestBlocks(data: Uint8Array): Buffer {
  const digests = Buffer.alloc(blocksOf(data.length) * DIGEST_BYTES);
  let at = 0;
  for (const block of blocksIn(data)) {
    digests.set(digestBlock(block), at);
    at += DIGEST_BYTES;
  }
  return digests;
}

/** A string rather than a file, since a worker's file would have another name in sources, tests and a build. */
const WORKER_SOURCE = `
  const { hash } = require("node:crypto");
  const { parentPort, workerData } = require("node:worker_threads");
  const { SLOT_BYTES, DIGESTS_BYTES, BLOCK_SIZE, DIGEST_BYTES } = workerData;
  const content = Buffer.from(workerData.content);
  const digests = Buffer.from(workerData.digests);
  parentPort.on("message", ({ slot, length }) => {
    const end = slot * SLOT_BYTES + length;
    let to = slot * DIGESTS_BYTES;
    for (let from = slot * SLOT_BYTES; from < end; from += BLOCK_SIZE, to += DIGEST_BYTES) {
      digests.set(hash("sha256", content.subarray(from, Math.min(from + BLOCK_SIZE, end)), "buffer"), to);
    }
    parentPort.postMessage(slot);
  });
`;
