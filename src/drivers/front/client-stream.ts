import type { Duplex } from "node:stream";
import { Inbox } from "./inbox.js";
import { LIMIT } from "./wire.js";

/** The client's side has ended; nobody's fault. */
export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

/** Takes a client's bytes in the handshake, and hands the socket on with what was not taken. */
export class ClientStream {
  readonly socket: Duplex;
  readonly #inbox = new Inbox();
  readonly #onData = (chunk: Buffer) => {
    this.#inbox.push(chunk);
    if (this.#inbox.length > 2 * LIMIT.optionBytes) this.socket.pause();
  };
  readonly #onEnd = () => this.#inbox.end(new ClientGone("the client hung up"));

  constructor(socket: Duplex) {
    this.socket = socket;
    socket.on("data", this.#onData);
    socket.on("end", this.#onEnd);
    socket.on("close", this.#onEnd);
    if (socket.destroyed || socket.readableEnded) this.#onEnd();
  }

  async take(bytes: number): Promise<Buffer> {
    this.socket.resume();
    return await this.#inbox.take(bytes);
  }

  /** Resolves when the kernel has the bytes. */
  async send(...parts: readonly Buffer[]): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.socket.write(Buffer.concat(parts), (error) => {
        if (error === null || error === undefined) resolve();
        else reject(new ClientGone("the client hung up", { cause: error }));
      });
    });
  }

  /** Stops reading. Returns what has come and was not taken. */
  detach(): Buffer {
    this.socket.pause();
    this.socket.off("data", this.#onData);
    this.socket.off("end", this.#onEnd);
    this.socket.off("close", this.#onEnd);
    const buffered = this.socket.read() as Buffer | null;
    if (buffered !== null) this.#inbox.push(buffered);
    return this.#inbox.takeAll();
  }
}
