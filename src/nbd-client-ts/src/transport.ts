import { connect, type Socket, type TcpNetConnectOpts, type IpcNetConnectOpts } from "node:net";

/** Who receives what a transport brings. Its methods must not throw. */
export interface TransportListener {
  /** Memory that the next bytes belong in, if that is known. Chunks may nevertheless come in any other buffer. */
  receiveTarget(): Uint8Array | undefined;
  /** The first `length` bytes of the memory are new. They are only valid during the call. */
  received(memory: Uint8Array, length: number): void;
  /** `write` may be used again. */
  drained(): void;
  /** Called once, when nothing will be received any more: the peer hung up, or with the error. */
  ended(cause: Error | undefined): void;
}

/** A byte stream in both directions: `SocketTransport`, or `TlsTransport`, which brings ordinary chunks. */
export interface Transport {
  listener: TransportListener;
  /** The parts are not copied. Returns false when the caller should wait for `drained`. */
  write(...parts: readonly Uint8Array[]): boolean;
  /** Closes after what was written has been sent. */
  end(): void;
  destroy(): void;
}

/** Headers and other small things land here; larger buffers only mean more to copy out of it. */
const STAGING_BYTES = 4096;

export type SocketAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/**
 * A Unix or TCP socket that receives payloads straight into their final memory: Node asks for the buffer of the next
 * read after each callback, and gets the parser's own target when it is large enough to be worth it.
 */
export class SocketTransport implements Transport {
  listener: TransportListener;
  readonly #socket: Socket;
  readonly #outbox: Outbox;
  readonly #staging = Buffer.allocUnsafeSlow(STAGING_BYTES);
  #error: Error | undefined;
  #ended = false;

  constructor(address: SocketAddress, listener: TransportListener) {
    this.listener = listener;
    this.#socket = connect(this.#socketOptions(address));
    this.#outbox = new Outbox(this.#socket);
    this.#socket.on("drain", () => this.listener.drained());
    this.#socket.on("error", (error) => (this.#error = error));
    this.#socket.on("end", () => this.#end());
    this.#socket.on("close", () => this.#end());
  }

  write(...parts: readonly Uint8Array[]): boolean {
    return this.#outbox.write(parts);
  }

  end(): void {
    this.#outbox.flush();
    this.#socket.end();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.listener.ended(this.#error);
  }

  #socketOptions(address: SocketAddress): TcpNetConnectOpts | IpcNetConnectOpts {
    const onread = {
      buffer: () => this.#nextBuffer(),
      callback: (bytes: number, buffer: Uint8Array) => {
        this.listener.received(buffer, bytes);
        return true;
      },
    };
    return "path" in address
      ? { path: address.path, onread }
      : { host: address.host, port: address.port, noDelay: true, onread };
  }

  #nextBuffer(): Uint8Array {
    const target = this.listener.receiveTarget();
    return target !== undefined && target.length >= STAGING_BYTES ? target : this.#staging;
  }
}

/** A part up to this size is cheaper copied than handed to the socket by itself. */
const SMALL_PART_BYTES = 4096;

/**
 * What is written in one tick, sent together at its end: many small requests cost one system call. It keeps clear of
 * `cork`, whose bookkeeping costs more than all the rest of a request.
 */
export class Outbox {
  readonly #socket: Socket;
  readonly #flush = () => this.flush();
  #parts: Uint8Array[] = [];
  #bytes = 0;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** The parts are not copied until the tick ends. Returns false when the caller should wait for `drain`. */
  write(parts: readonly Uint8Array[]): boolean {
    if (this.#socket.destroyed) return false;
    if (this.#parts.length === 0) process.nextTick(this.#flush);
    for (const part of parts) {
      this.#parts.push(part);
      this.#bytes += part.length;
    }
    return this.#socket.writableLength + this.#bytes < this.#socket.writableHighWaterMark;
  }

  flush(): void {
    const [first, ...others] = this.#parts;
    if (first === undefined) return;
    const bytes = this.#bytes;
    this.#parts = [];
    this.#bytes = 0;
    if (others.length === 0) {
      this.#socket.write(first);
    } else if (bytes <= SMALL_PART_BYTES) {
      this.#socket.write(Buffer.concat([first, ...others], bytes));
    } else {
      this.#socket.cork();
      this.#socket.write(first);
      for (const part of others) this.#socket.write(part);
      this.#socket.uncork();
    }
  }
}
