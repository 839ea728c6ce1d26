import { AbortHub } from "./abort-hub.js";
import { ByteFeeder } from "./byte-feeder.js";
import { LIMIT } from "./constants.js";
import { abortError, asNbdError, NbdError } from "./errors.js";
import { Pending, type Submission } from "./pending.js";
import { describeRange } from "./receiver.js";
import { parseReplies, type ReplyReceiver, type ReplyTable } from "./reply-parser.js";
import { encodeExtendedRequest, encodeRequest } from "./request.js";
import type { Transport, TransportListener } from "./transport.js";

/**
 * - `open`: takes requests.
 * - `closing`: takes none, waits for the replies that the server owes.
 * - `disconnecting`: has sent DISC, waits for the server to hang up.
 * - `closed`: over; every promise is settled.
 */
type SessionState = "open" | "closing" | "disconnecting" | "closed";

const LEGAL_MOVES: Readonly<Record<SessionState, readonly SessionState[]>> = {
  open: ["closing", "closed"],
  closing: ["disconnecting", "closed"],
  disconnecting: ["closed"],
  closed: [],
};

/** How long a server may take to hang up after DISC before we do. */
const HANG_UP_MS = 2000;

/** What both sides agreed to speak. */
export interface HeaderKinds {
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
}

/**
 * The transmission phase over one transport: numbers requests, keeps a bounded window of them on the wire, matches
 * replies in any order, and has one way to end, in which the first error wins.
 */
export class Session implements TransportListener, ReplyTable {
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** Settles when the session is over: undefined if it was closed from this side, else the first error. */
  readonly closed: Promise<NbdError | undefined>;
  readonly #transport: Transport;
  readonly #requestTimeoutMs: number;
  readonly #encode: typeof encodeRequest;
  readonly #feeder: ByteFeeder<never>;
  readonly #aborts = new AbortHub();
  readonly #queue: Pending[] = [];
  /** By cookie, in the order of sending, so the first is the oldest. */
  readonly #inFlight = new Map<number, Pending>();
  readonly #resolveClosed: (error: NbdError | undefined) => void;
  #state: SessionState = "open";
  #nextCookie = 1;
  #blocked = false;
  #firstError: NbdError | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(transport: Transport, headers: HeaderKinds, requestTimeoutMs: number) {
    this.#transport = transport;
    this.structuredReplies = headers.structuredReplies;
    this.extendedHeaders = headers.extendedHeaders;
    this.#encode = headers.extendedHeaders ? encodeExtendedRequest : encodeRequest;
    this.#requestTimeoutMs = requestTimeoutMs;
    let resolveClosed: (error: NbdError | undefined) => void = () => undefined;
    this.closed = new Promise((resolve) => (resolveClosed = resolve));
    this.#resolveClosed = resolveClosed;
    this.#feeder = new ByteFeeder(parseReplies(this));
    transport.listener = this;
  }

  /** Requests that have been submitted and not been answered. */
  get load(): number {
    return this.#inFlight.size + this.#queue.length;
  }

  /** Resolves when the server has done it. Rejects at once when the signal aborts; the reply is then discarded. */
  submit(submission: Submission): Promise<void> {
    const { signal, receiver } = submission;
    if (signal?.aborted === true) return Promise.reject(abortError(signal, describeRange(receiver.range)));
    if (this.#state !== "open") return Promise.reject(this.#notOpen());
    const pending = new Pending(submission, this.#aborts, this.#dequeue);
    const answer = pending.start();
    this.#queue.push(pending);
    this.#pump();
    return answer;
  }

  /** Soft disconnect: no new requests, waits for the replies owed, sends DISC. Idempotent, never rejects. */
  async close(): Promise<void> {
    if (this.#state === "open") {
      this.#move("closing");
      this.#disconnectIfIdle();
    }
    await this.closed;
  }

  /** Ends at once; requests in flight fail with `error`. Does nothing when the session is over. */
  destroy(error: NbdError): void {
    this.#finish(error);
  }

  // Replies

  find(cookie: number): ReplyReceiver {
    const pending = this.#inFlight.get(cookie);
    if (pending !== undefined) return pending.submission.receiver;
    if (cookie > 0 && cookie < this.#nextCookie) {
      throw new NbdError(
        "REPEATED_COOKIE",
        `The server answered request ${cookie} again after its last reply`,
      );
    }
    throw new NbdError("UNKNOWN_COOKIE", `The server answered request ${cookie}, which was never sent`);
  }

  finish(cookie: number): void {
    const pending = this.#inFlight.get(cookie);
    this.#inFlight.delete(cookie);
    pending?.answered();
    // A server that is shutting down asks for a soft disconnect ("Error values").
    if (pending?.submission.receiver.error?.errno === "ESHUTDOWN") void this.close();
    this.#pump();
    this.#disconnectIfIdle();
  }

  // Transport

  receiveTarget(): Uint8Array | undefined {
    return this.#feeder.target;
  }

  received(memory: Uint8Array, length: number): void {
    if (this.#state === "closed") return;
    try {
      this.#feeder.push(memory, length);
    } catch (error) {
      this.#finish(asNbdError(error, "BAD_REPLY"));
    }
  }

  drained(): void {
    this.#blocked = false;
    this.#pump();
  }

  ended(cause: Error | undefined): void {
    if (this.#state === "disconnecting") {
      this.#finish(undefined);
      return;
    }
    const why = cause === undefined ? "the server hung up" : cause.message;
    const owed = this.#inFlight.size === 1 ? "1 request" : `${this.#inFlight.size} requests`;
    const message = `The connection was lost with ${owed} in flight: ${why}`;
    this.#finish(new NbdError("CONNECTION_LOST", message, { cause }));
  }

  // Inside

  #pump(): void {
    while (!this.#blocked && this.#inFlight.size < LIMIT.inFlight && this.#state !== "closed") {
      const pending = this.#queue.shift();
      if (pending === undefined) break;
      this.#send(pending);
    }
    if (this.#timer === undefined && this.#inFlight.size > 0) this.#watch(this.#requestTimeoutMs);
  }

  #send(pending: Pending): void {
    const { request, payload } = pending.submission;
    const cookie = this.#nextCookie;
    this.#nextCookie += 1;
    pending.sentAtMs = performance.now();
    this.#inFlight.set(cookie, pending);
    const header = this.#encode(request, cookie);
    const more =
      payload === undefined ? this.#transport.write(header) : this.#transport.write(header, payload);
    // Back-pressure holds requests back, never replies: a client that stops reading while it writes can deadlock.
    this.#blocked = !more;
  }

  /** One timer watches the oldest request: those sent later cannot be overdue before it. */
  #watch(delayMs: number): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      const oldest = this.#inFlight.values().next().value;
      if (oldest === undefined) return;
      const leftMs = oldest.sentAtMs + this.#requestTimeoutMs - performance.now();
      if (leftMs > 0) {
        this.#watch(Math.ceil(leftMs));
        return;
      }
      const what = describeRange(oldest.submission.receiver.range);
      this.#finish(
        new NbdError("TIMEOUT", `Expected an answer to ${what} within ${this.#requestTimeoutMs} ms`),
      );
    }, delayMs);
  }

  /** A request that has not been sent can be taken back; one that has keeps its cookie until its reply. */
  readonly #dequeue = (pending: Pending): void => {
    const at = this.#queue.indexOf(pending);
    if (at >= 0) this.#queue.splice(at, 1);
    this.#disconnectIfIdle();
  };

  #disconnectIfIdle(): void {
    if (this.#state !== "closing" || this.#inFlight.size > 0 || this.#queue.length > 0) return;
    this.#move("disconnecting");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#finish(undefined), HANG_UP_MS);
    const disconnect = this.#encode({ command: "DISC", flags: 0, offset: 0, length: 0 }, this.#nextCookie);
    this.#transport.write(disconnect);
    this.#transport.end();
  }

  #finish(error: NbdError | undefined): void {
    if (this.#state === "closed") return;
    this.#move("closed");
    this.#firstError = error;
    clearTimeout(this.#timer);
    this.#transport.destroy();
    const unanswered = [...this.#inFlight.values(), ...this.#queue.splice(0)];
    this.#inFlight.clear();
    const first = error ?? new NbdError("CLOSED", "The connection was closed");
    for (const pending of unanswered) pending.connectionDied(first);
    this.#resolveClosed(error);
  }

  #notOpen(): NbdError {
    const first = this.#firstError;
    if (first === undefined) return new NbdError("CLOSED", "The connection was closed");
    return new NbdError(first.code, `The connection is dead: ${first.message}`, { cause: first });
  }

  #move(to: SessionState): void {
    if (!LEGAL_MOVES[this.#state].includes(to)) {
      throw new Error(`An NBD session cannot move from ${this.#state} to ${to}`);
    }
    this.#state = to;
  }
}
