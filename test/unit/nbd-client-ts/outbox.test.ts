import { Socket } from "node:net";
import { describe, expect, it } from "vitest";
import { Outbox } from "../../../src/nbd-client-ts/src/transport.js";

type Done = (error?: Error | null) => void;

/** A socket whose kernel is the test: it notes what comes in one go, and takes it when `accept` is called. */
class NotingSocket extends Socket {
  /** The parts of each system call that there would have been. */
  readonly calls: Uint8Array[][] = [];
  #done: Done | undefined;

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: Done): void {
    this.calls.push([chunk]);
    this.#done = done;
  }

  override _writev(chunks: { readonly chunk: Uint8Array }[], done: Done): void {
    this.calls.push(chunks.map(({ chunk }) => chunk));
    this.#done = done;
  }

  accept(): void {
    this.#done?.();
  }
}

async function tick(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

function noting() {
  const socket = new NotingSocket();
  return { socket, outbox: new Outbox(socket) };
}

const bytesOf = (calls: readonly Uint8Array[][]) => calls.map((parts) => Buffer.concat(parts).toString());

describe("Outbox", () => {
  it("sends the small requests of one tick in one go, in their order", async () => {
    const { socket, outbox } = noting();
    for (const text of ["a", "b", "c"]) expect(outbox.write([Buffer.from(text)])).toBe(true);
    expect(socket.calls).toEqual([]);
    await tick();
    expect(bytesOf(socket.calls)).toEqual(["abc"]);
    socket.accept();
    outbox.write([Buffer.from("d")]);
    await tick();
    expect(bytesOf(socket.calls)).toEqual(["abc", "d"]);
  });

  it("hands a long payload over as it is, in one go with its header", async () => {
    const { socket, outbox } = noting();
    const payload = Buffer.alloc(1 << 20);
    outbox.write([Buffer.from("header"), payload]);
    await tick();
    expect(socket.calls).toHaveLength(1);
    expect(socket.calls[0]?.[1]).toBe(payload);
  });

  it("asks to wait from the socket's high-water mark on, and there is a drain to wait for", async () => {
    const { socket, outbox } = noting();
    const half = Buffer.alloc(socket.writableHighWaterMark / 2);
    expect(outbox.write([half])).toBe(true);
    expect(outbox.write([half])).toBe(false);
    await tick();
    expect(outbox.write([Buffer.from("more")])).toBe(false);
    let drained = false;
    socket.once("drain", () => (drained = true));
    await tick();
    expect(drained).toBe(false);
    socket.accept();
    await tick();
    socket.accept(); // `more`, which waited in the socket
    await tick();
    expect(drained).toBe(true);
    expect(outbox.write([Buffer.from("on")])).toBe(true);
  });

  it("sends at once when it is flushed, and only once", async () => {
    const { socket, outbox } = noting();
    outbox.write([Buffer.from("last words")]);
    outbox.flush();
    expect(bytesOf(socket.calls)).toEqual(["last words"]);
    await tick();
    expect(socket.calls).toHaveLength(1);
  });

  it("takes nothing for a destroyed socket", async () => {
    const { socket, outbox } = noting();
    socket.destroy();
    expect(outbox.write([Buffer.from("a")])).toBe(false);
    await tick();
    expect(socket.calls).toEqual([]);
  });
});
