import { connect, type Socket, type TcpNetConnectOpts, type IpcNetConnectOpts } from "node:net";

/** Who receives what a transport brings. Its methods must not throw. */
export interface TransportListener {
  /** Memory that the next bytes belong in, if that is known. Chunks may nevertheless come in any other buffer. */
  receiveTarget(): Uint8Array | undefined;
  /** The chunk is only valid during the call. */
  received(chunk: Uint8Array): void;
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
  readonly #staging = Buffer.allocUnsafeSlow(STAGING_BYTES);
  #error: Error | undefined;
  #ended = false;

  constructor(address: SocketAddress, listener: TransportListener) {
    this.listener = listener;
    this.#socket = connect(this.#socketOptions(address));
    this.#socket.on("drain", () => this.listener.drained());
    this.#socket.on("error", (error) => (this.#error = error));
    this.#socket.on("end", () => this.#end());
    this.#socket.on("close", () => this.#end());
  }

  write(...parts: readonly Uint8Array[]): boolean {
    return writeParts(this.#socket, parts);
  }

  end(): void {
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
        this.listener.received(bytes === buffer.length ? buffer : buffer.subarray(0, bytes));
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

export function writeParts(socket: Socket, parts: readonly Uint8Array[]): boolean {
  if (socket.destroyed) return false;
  if (socket.writableCorked === 0) {
    // One system call for all that is written in this tick.
    socket.cork();
    process.nextTick(() => socket.uncork());
  }
  let more = true;
  for (const part of parts) more = socket.write(part);
  return more;
}
