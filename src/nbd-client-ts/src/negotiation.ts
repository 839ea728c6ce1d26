import { ByteFeeder, type ByteParser } from "./byte-feeder.js";
import { asNbdError, NbdError } from "./errors.js";
import { sendAbort } from "./handshake.js";
import type { Send } from "./option.js";
import { startTls, type TlsAnswer } from "./option-starttls.js";
import type { TlsSettings } from "./tls-options.js";
import { TlsTransport } from "./tls-transport.js";
import { SocketTransport, type SocketAddress, type Transport, type TransportListener } from "./transport.js";

/** How long a server may take to hang up after we ended the handshake, before we do. */
const HANG_UP_MS = 2000;

export interface Negotiable<T, R> {
  readonly address: SocketAddress;
  /** For connecting and the whole handshake. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  readonly tls: TlsSettings | undefined;
  /** `greeted` are the server's handshake flags when TLS came first. */
  readonly handshake: (send: Send, greeted?: number) => ByteParser<T>;
  /** Takes the transport over, right after the last byte of the handshake. */
  readonly done: (result: T, transport: Transport) => R;
}

/** Opens a transport and runs a handshake over it. Nothing stays open if it rejects. */
export async function negotiate<T, R>(what: Negotiable<T, R>): Promise<R> {
  const { address, timeoutMs, signal } = what;
  if (signal?.aborted === true) throw connectAborted(signal);
  const negotiation = new Negotiation(what);
  const onAbort = () => {
    if (signal !== undefined) negotiation.fail(connectAborted(signal));
  };
  const timer = setTimeout(() => {
    negotiation.fail(
      new NbdError("TIMEOUT", `Expected to connect to ${describe(address)} within ${timeoutMs} ms`),
    );
  }, timeoutMs);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await negotiation.result;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  }
}

interface ClearPhase {
  readonly feeder: ByteFeeder<TlsAnswer>;
  readonly transport: TlsTransport;
  readonly tls: TlsSettings;
}

class Negotiation<T, R> implements TransportListener {
  readonly result: Promise<R>;
  readonly #what: Negotiable<T, R>;
  readonly #transport: Transport;
  /** What comes before TLS, if TLS is wanted. */
  readonly #clear: ClearPhase | undefined;
  #feeder: ByteFeeder<T> | undefined;
  #over = false;
  #resolve: (result: R) => void = () => undefined;
  #reject: (error: NbdError) => void = () => undefined;

  constructor(what: Negotiable<T, R>) {
    this.#what = what;
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    const { tls, address } = what;
    if (tls === undefined) {
      this.#feeder = new ByteFeeder(what.handshake(this.#send));
      this.#transport = new SocketTransport(address, this);
      return;
    }
    const transport = new TlsTransport(address, this);
    this.#transport = transport;
    this.#clear = { feeder: new ByteFeeder(startTls(this.#send, tls.required)), transport, tls };
  }

  readonly #send = (bytes: Uint8Array) => void this.#transport.write(bytes);

  /** Does nothing once the negotiation is over: the transport then has another owner. */
  fail(error: NbdError): void {
    if (this.#over) return;
    this.#over = true;
    if (HEALTHY_SERVER.has(error.code)) {
      leaveHandshake(this.#transport);
    } else {
      this.#transport.listener = IGNORE;
      this.#transport.destroy();
    }
    this.#reject(error);
  }

  receiveTarget(): undefined {
    return undefined; // everything in a handshake is small
  }

  received(memory: Uint8Array, length: number): void {
    const chunk = memory.subarray(0, length);
    try {
      if (this.#feeder !== undefined) this.#receive(this.#feeder, chunk);
      else if (this.#clear !== undefined) this.#receiveInClear(this.#clear, chunk);
    } catch (error) {
      this.fail(asNbdError(error, "BAD_REPLY"));
    }
  }

  #receive(feeder: ByteFeeder<T>, chunk: Uint8Array): void {
    const used = feeder.push(chunk);
    if (feeder.result === undefined) return;
    if (used < chunk.length) {
      throw new NbdError(
        "UNSOLICITED_DATA",
        `The server sent ${chunk.length - used} bytes before any request`,
      );
    }
    this.#over = true;
    this.#resolve(this.#what.done(feeder.result.value, this.#transport));
  }

  #receiveInClear({ feeder, transport, tls }: ClearPhase, chunk: Uint8Array): void {
    const used = feeder.push(chunk);
    if (feeder.result === undefined) return;
    if (used < chunk.length) {
      // Whoever can write to the wire could have them taken for words of the verified server.
      const extra = chunk.length - used;
      throw new NbdError("TLS_INJECTION", `Expected TLS after STARTTLS, ${extra} bytes came in clear`);
    }
    const { granted, handshakeFlags } = feeder.result.value;
    const begin = () => {
      if (!this.#over) this.#feeder = new ByteFeeder(this.#what.handshake(this.#send, handshakeFlags));
    };
    if (granted) transport.upgrade(tls.connection, begin);
    else begin();
  }

  drained(): void {
    // options are small and wait for their answers
  }

  ended(cause: (Error & { readonly syscall?: string }) | undefined): void {
    if (cause instanceof NbdError) {
      this.fail(cause);
      return;
    }
    const where = describe(this.#what.address);
    if (cause?.syscall === "connect" || cause?.syscall === "getaddrinfo") {
      this.fail(new NbdError("CONNECT_FAILED", `Connecting to ${where} failed: ${cause.message}`, { cause }));
      return;
    }
    const why = cause === undefined ? "the server hung up" : cause.message;
    this.fail(
      new NbdError("CONNECTION_LOST", `The connection to ${where} was lost in the handshake: ${why}`, {
        cause,
      }),
    );
  }
}

/** After these the server waits for another option, so it is told that none will come. */
const HEALTHY_SERVER: ReadonlySet<string> = new Set([
  "EXPORT_NOT_FOUND",
  "CONTEXT_NOT_OFFERED",
  "TLS_REQUIRED",
  "TLS_NOT_OFFERED",
  "OPTION_REFUSED",
  "SERVER_SHUTTING_DOWN",
]);

const IGNORE: TransportListener = {
  receiveTarget: () => undefined,
  received: () => undefined,
  drained: () => undefined,
  ended: () => undefined,
};

/** Ends the option phase in good order, without making the caller wait for the other side. */
export function leaveHandshake(transport: Transport): void {
  const timer = setTimeout(() => transport.destroy(), HANG_UP_MS);
  transport.listener = {
    ...IGNORE,
    ended: () => {
      clearTimeout(timer);
      transport.destroy();
    },
  };
  sendAbort((bytes) => void transport.write(bytes));
  transport.end();
}

function connectAborted(signal: AbortSignal): NbdError {
  return new NbdError("ABORTED", "Connecting was aborted", { cause: signal.reason });
}

function describe(address: SocketAddress): string {
  return "path" in address ? address.path : `${address.host}:${address.port}`;
}
