import { connect, type Socket } from "node:net";
import { HANDSHAKE_FLAG, OPTION, OPTION_REPLY, uint32 } from "nbd-client-ts/protocol";
import { errorMessage, FleeceError } from "../../shared/errors.js";
import { Inbox } from "./inbox.js";
import {
  GREETING_BYTES,
  isError,
  LIMIT,
  namedData,
  optionRequest,
  parseGreeting,
  parseReplyHeader,
  REPLY_HEADER_BYTES,
  type Reply,
} from "./wire.js";

/** More than a Unix socket holds by default, so that one read empties it. */
const BUFFER_BYTES = 256 * 1024;
/** One is being filled, one encrypted and sent, one waits in between. */
const BUFFERS = 3;

/** Takes what the backend sends, in order. The memory is its own until it calls `release`. */
export type Receive = (chunk: Buffer, release: () => void) => void;

/**
 * A connection to the private socket of an export. Its reads land in a ring of buffers; while all of them are taken,
 * nothing is read, so the kernel slows the backend down.
 */
export class Backend {
  /** What the grant calls the export. */
  readonly exportName: string;
  structuredReplies = false;
  readonly #privateName: string;
  readonly #socket: Socket;
  readonly #inbox = new Inbox();
  readonly #ring = Array.from({ length: BUFFERS }, () => Buffer.allocUnsafeSlow(BUFFER_BYTES));
  #filling = 0;
  #taken = 0;
  #held = false;
  #corked = false;
  #receive: Receive | undefined;

  private constructor(exportName: string, address: { socketPath: string; exportName: string }) {
    this.exportName = exportName;
    this.#privateName = address.exportName;
    const onread = {
      buffer: () => this.#ring[this.#filling] ?? Buffer.alloc(0),
      callback: (bytes: number) => this.#read(bytes),
    };
    this.#socket = connect({ path: address.socketPath, onread });
    const ended = (cause?: Error) => this.#inbox.end(failure("it hung up", cause));
    this.#socket.on("error", ended);
    this.#socket.on("end", () => ended());
    this.#socket.on("close", () => ended());
  }

  /** Connects and greets. Fails with NBD_FAILED; the signal ends the connection, then and later. */
  static async connect(
    exportName: string,
    address: { readonly socketPath: string; readonly exportName: string },
    signal: AbortSignal,
  ): Promise<Backend> {
    signal.throwIfAborted();
    const backend = new Backend(exportName, address);
    const destroy = () => backend.destroy();
    signal.addEventListener("abort", destroy, { once: true });
    backend.#socket.once("close", () => signal.removeEventListener("abort", destroy));
    try {
      const flags = parseGreeting(await backend.#inbox.take(GREETING_BYTES));
      if (flags === undefined || (flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) === 0) {
        throw failure("expected a fixed newstyle NBD server");
      }
      backend.#socket.write(uint32(flags & (HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES)));
      return backend;
    } catch (error) {
      backend.destroy();
      throw error;
    }
  }

  /** The front agrees to structured replies before it knows the backend, so a backend without them cannot be used. */
  async negotiateStructuredReplies(): Promise<void> {
    if (this.structuredReplies) return;
    const replies = await this.#ask(OPTION.STRUCTURED_REPLY, Buffer.alloc(0));
    if (replies.at(-1)?.type !== OPTION_REPLY.ACK) throw failure("it lacks structured replies");
    this.structuredReplies = true;
  }

  /** Asks about the export: replies up to the last one, which is an ACK or an error. Fails with NBD_FAILED. */
  async ask(option: number, rest: Buffer): Promise<readonly Reply[]> {
    return await this.#ask(option, namedData(this.#privateName, rest));
  }

  /** From now on everything goes to `receive`. `ended` is called when nothing more comes. */
  splice(receive: Receive, drained: () => void, ended: () => void): void {
    this.#receive = receive;
    this.#socket.on("drain", drained);
    this.#socket.on("end", ended);
    this.#socket.on("close", ended);
    if (this.#inbox.length > 0) receive(this.#inbox.takeAll(), () => undefined);
    if (this.#socket.readableEnded || this.#socket.destroyed) ended();
  }

  /**
   * Returns false when the caller should wait for `drained`. What comes in one turn of the event loop goes out together:
   * each request is a TLS record of its own. With requests of 256 KiB that saves about a tenth of the front's CPU time.
   */
  write(chunk: Uint8Array): boolean {
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      setImmediate(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    return this.#socket.write(chunk);
  }

  /** Reads nothing until `resume`. */
  hold(): void {
    this.#held = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#held = false;
    if (this.#taken < BUFFERS) this.#socket.resume();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  /** Node has asked for the next buffer when this returns, and reads into it when it reads again: it must be free by then. */
  #read(bytes: number): boolean {
    const buffer = this.#ring[this.#filling];
    if (buffer === undefined) return false;
    const chunk = buffer.subarray(0, bytes);
    if (this.#receive === undefined) {
      this.#inbox.push(Buffer.from(chunk));
      if (this.#inbox.length > 2 * LIMIT.backendRepliesBytes) this.destroy();
      return true;
    }
    this.#filling = (this.#filling + 1) % BUFFERS;
    this.#taken += 1;
    this.#receive(chunk, () => {
      this.#taken -= 1;
      if (!this.#held) this.#socket.resume();
    });
    return this.#taken < BUFFERS && !this.#held;
  }

  async #ask(option: number, data: Buffer): Promise<readonly Reply[]> {
    this.#socket.write(optionRequest(option, data));
    const replies: Reply[] = [];
    for (let bytes = 0; bytes <= LIMIT.backendRepliesBytes;) {
      const header = parseReplyHeader(await this.#inbox.take(REPLY_HEADER_BYTES));
      if (header?.option !== option || header.length > LIMIT.backendReplyBytes) {
        throw failure(`it does not answer option ${option} as it must`);
      }
      const reply = { type: header.type, payload: await this.#inbox.take(header.length) };
      replies.push(reply);
      if (reply.type === OPTION_REPLY.ACK || isError(reply)) return replies;
      bytes += REPLY_HEADER_BYTES + header.length;
    }
    throw failure(`it answers option ${option} without end`);
  }
}

function failure(why: string, cause?: Error): FleeceError {
  const reason = cause === undefined ? why : errorMessage(cause);
  return new FleeceError("NBD_FAILED", `The server of the export cannot be used: ${reason}`, { cause });
}
