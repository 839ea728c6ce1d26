import { connect, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from "node:tls";
import { NbdError } from "./errors.js";
import { Outbox, type SocketAddress, type Transport, type TransportListener } from "./transport.js";

/**
 * A socket that starts in clear and can be upgraded once. Node's TLS ignores `onread`, and the clear socket must not
 * read ahead into memory of ours, so both deliver ordinary chunks, which the parsers copy.
 */
export class TlsTransport implements Transport {
  listener: TransportListener;
  #socket: Socket;
  #outbox: Outbox;
  #error: Error | undefined;
  #ended = false;

  constructor(address: SocketAddress, listener: TransportListener) {
    this.listener = listener;
    this.#socket = connect("path" in address ? { path: address.path } : { ...address, noDelay: true });
    this.#outbox = new Outbox(this.#socket);
    this.#listen(this.#socket);
    this.#socket.on("error", (error) => (this.#error = error));
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

  /**
   * Starts the TLS handshake; `secured` is called when the server is verified. A failure ends the transport with an
   * `NbdError`. Must be called while the last clear bytes are being received: whatever follows them is read as TLS.
   */
  upgrade(options: ConnectionOptions, secured: () => void): void {
    const clear = this.#socket;
    for (const event of ["data", "drain", "end", "close", "error"]) clear.removeAllListeners(event);
    clear.on("error", () => undefined); // it comes to the TLS socket as well
    const tls = connectTls({ ...options, socket: clear });
    this.#socket = tls;
    this.#outbox = new Outbox(tls);
    let isSecure = false;
    tls.once("secureConnect", () => {
      isSecure = true;
      this.#listen(tls);
      secured();
    });
    // A peer that hangs up before is an error, which comes after `end`.
    tls.on("error", (error: Error) => (this.#error = tlsError(tls, error, isSecure)));
    tls.on("close", () => this.#end());
  }

  #listen(socket: Socket): void {
    socket.on("data", (chunk: Uint8Array) => this.listener.received(chunk, chunk.length));
    socket.on("drain", () => this.listener.drained());
    socket.on("end", () => this.#end());
    socket.on("close", () => this.#end());
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.listener.ended(this.#error);
  }
}

/** A server may also refuse our certificate after our side of the handshake is over (TLS 1.3): by an alert. */
function tlsError(socket: TLSSocket, error: Error & { readonly code?: string }, isSecure: boolean): Error {
  // Node types it as an Error and leaves it null, or gives it a code.
  const untrusted = (socket.authorizationError as unknown) ?? undefined;
  if (!isSecure && untrusted !== undefined) {
    const message = `Expected a server that can be trusted: ${error.message}`;
    return new NbdError("TLS_UNTRUSTED", message, { cause: error });
  }
  if (isSecure && error.code?.startsWith("ERR_SSL_") !== true) return error;
  return new NbdError("TLS_FAILED", `The TLS handshake failed: ${error.message}`, { cause: error });
}
