import type { Duplex } from "node:stream";
import type { Clock } from "../../ports/clock.js";
import type { Backend } from "./backend.js";
import type { Grant } from "./grants.js";

/** A timer of Node holds 2^31 ms at most. */
const LONGEST_SLEEP_MS = 60_000;
/** How long a client may take to receive the last bytes after the backend hung up. */
const FAREWELL_MS = 5_000;

export interface SpliceOptions {
  readonly client: Duplex;
  readonly backend: Backend;
  readonly grant: Grant;
  readonly clock: Clock;
  /** Ends the splice at once. */
  readonly signal: AbortSignal;
}

/** Why it ended. */
export type SpliceEnd = "client hung up" | "backend hung up" | "idle" | "ended";

/**
 * Carries the bytes of the transmission phase both ways until one side ends, nothing moves for the grant's idle time, or
 * the signal. Neither direction reads on while the other end does not take what was read.
 */
export async function splice(options: SpliceOptions): Promise<SpliceEnd> {
  const { grant, signal } = options;
  if (signal.aborted) return "ended";
  const stop = new AbortController();
  grant.connections += 1;
  grant.connectionsTotal += 1;
  try {
    return await new Promise<SpliceEnd>((resolve) => {
      signal.addEventListener("abort", () => resolve("ended"), { signal: stop.signal });
      new Splice(options, stop.signal, resolve).start();
    });
  } finally {
    grant.connections -= 1;
    stop.abort();
  }
}

interface Waiting {
  readonly chunk: Buffer;
  readonly release: () => void;
}

class Splice {
  readonly #client: Duplex;
  readonly #backend: Backend;
  readonly #grant: Grant;
  readonly #clock: Clock;
  readonly #stop: AbortSignal;
  readonly #end: (why: SpliceEnd) => void;
  readonly #toClient: Waiting[] = [];
  #sending: Waiting | undefined;
  #backendEnded = false;
  /** What keeps the client from being read: a full backend, the rate limit. */
  #backendFull = false;
  #clientWaits = false;
  /** Directions that wait for the rate limit: that is not idleness. */
  #throttled = 0;
  #movedAtMs: number;

  constructor(options: SpliceOptions, stop: AbortSignal, end: (why: SpliceEnd) => void) {
    this.#client = options.client;
    this.#backend = options.backend;
    this.#grant = options.grant;
    this.#clock = options.clock;
    this.#stop = stop;
    this.#end = end;
    this.#movedAtMs = this.#clock.monotonicMs();
  }

  start(): void {
    const gone = () => this.#end("client hung up");
    this.#client.on("data", (chunk: Buffer) => this.#fromClient(chunk));
    this.#client.on("end", gone);
    this.#client.on("close", gone);
    this.#backend.splice(
      (chunk, release) => this.#fromBackend({ chunk, release }),
      () => {
        this.#backendFull = false;
        this.#readClient();
      },
      () => {
        if (this.#backendEnded) return;
        this.#backendEnded = true;
        this.#send();
      },
    );
    this.#readClient();
    void this.#watchIdle();
  }

  #fromClient(chunk: Buffer): void {
    this.#grant.bytesReceived += chunk.length;
    this.#movedAtMs = this.#clock.monotonicMs();
    if (!this.#backend.write(chunk)) this.#backendFull = true;
    const waitMs = this.#grant.bucket?.spend(chunk.length) ?? 0;
    if (waitMs > 0) {
      this.#clientWaits = true;
      this.#after(waitMs, () => {
        this.#clientWaits = false;
        this.#readClient();
      });
    }
    this.#readClient();
  }

  #readClient(): void {
    if (this.#backendFull || this.#clientWaits) this.#client.pause();
    else this.#client.resume();
  }

  #fromBackend(waiting: Waiting): void {
    this.#toClient.push(waiting);
    this.#send();
    const waitMs = this.#grant.bucket?.spend(waiting.chunk.length) ?? 0;
    if (waitMs === 0) return;
    this.#backend.hold();
    this.#after(waitMs, () => this.#backend.resume());
  }

  /** One write at a time: TLS encrypts a single buffer where it is, and copies several together first. */
  #send(): void {
    if (this.#sending !== undefined) return;
    const next = this.#toClient.shift();
    this.#sending = next;
    if (next !== undefined) this.#client.write(next.chunk, (error) => this.#sent(next, error));
    else if (this.#backendEnded) this.#farewell();
  }

  #sent({ chunk, release }: Waiting, error: Error | null | undefined): void {
    if (error !== null && error !== undefined) {
      this.#end("client hung up");
      return;
    }
    this.#grant.bytesSent += chunk.length;
    this.#movedAtMs = this.#clock.monotonicMs();
    this.#sending = undefined;
    release();
    this.#send();
  }

  #farewell(): void {
    const end = () => this.#end("backend hung up");
    this.#client.end(end);
    this.#after(FAREWELL_MS, end);
  }

  #after(ms: number, then: () => void): void {
    this.#throttled += 1;
    const done = () => {
      this.#throttled -= 1;
      this.#movedAtMs = this.#clock.monotonicMs();
      then();
    };
    this.#clock.sleep(ms, this.#stop).then(done, () => undefined);
  }

  async #watchIdle(): Promise<void> {
    const { idleMs } = this.#grant.terms;
    try {
      while (!this.#stop.aborted) {
        const leftMs = this.#movedAtMs + idleMs - this.#clock.monotonicMs();
        if (leftMs <= 0 && this.#throttled === 0) {
          this.#end("idle");
          return;
        }
        // While throttled there may be nothing left: then the next look is an idle time away.
        await this.#clock.sleep(Math.min(leftMs > 0 ? leftMs : idleMs, LONGEST_SLEEP_MS), this.#stop);
      }
    } catch {
      // The splice has ended.
    }
  }
}
