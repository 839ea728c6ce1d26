import { EventEmitter, once } from "node:events";
import { connect, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";

export type Json =
  null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json | undefined };
export type JsonObject = Readonly<Record<string, Json | undefined>>;

const messageSchema = z.object({
  QMP: z.unknown().optional(),
  id: z.number().optional(),
  return: z.unknown().optional(),
  error: z.object({ class: z.string(), desc: z.string() }).optional(),
  event: z.string().optional(),
  data: z.record(z.string(), z.unknown()).optional(),
});

export interface MonitorEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export class MonitorError extends Error {
  override readonly name = "MonitorError";
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

interface PendingCall {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

/**
 * The tests' own QMP client. It shares nothing with `src/qmp`, so that what the agent did is judged by other code
 * than the agent's.
 */
export class Monitor implements AsyncDisposable {
  readonly events: MonitorEvent[] = [];
  readonly #socket: Socket;
  readonly #calls = new Map<number, PendingCall>();
  readonly #arrivals = new EventEmitter();
  #nextId = 1;
  #closed: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#arrivals.setMaxListeners(0);
    socket.on("error", () => undefined);
    socket.on("close", () => this.#fail(new MonitorError("CLOSED", "The monitor connection ended")));
    // The line reader repeats the socket's errors; the socket's end is what counts here.
    const lines = createInterface({ input: socket });
    lines.on("line", (line) => this.#receive(line)).on("error", () => undefined);
  }

  /** Connects as soon as QEMU listens. Rejects with the signal's reason if that comes first. */
  static async connect(path: string, signal: AbortSignal): Promise<Monitor> {
    for (;;) {
      signal.throwIfAborted();
      const socket = connect(path);
      try {
        await once(socket, "connect", { signal });
        const monitor = new Monitor(socket);
        await monitor.execute("qmp_capabilities");
        return monitor;
      } catch (error) {
        socket.destroy();
        if (!isNotListening(error)) throw error;
        await delay(10, undefined, { signal });
      }
    }
  }

  async execute(command: string, args?: JsonObject): Promise<unknown> {
    if (this.#closed !== undefined) throw this.#closed;
    const id = this.#nextId++;
    const reply = new Promise<unknown>((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    return reply;
  }

  /** The first event of this name, also one that came already, for which `accept` says yes. */
  async waitForEvent(
    name: string,
    options: { timeoutMs: number; accept?: (event: MonitorEvent) => boolean },
  ): Promise<MonitorEvent> {
    const accept = options.accept ?? (() => true);
    const signal = AbortSignal.timeout(options.timeoutMs);
    for (;;) {
      const found = this.events.find((event) => event.name === name && accept(event));
      if (found !== undefined) return found;
      if (this.#closed !== undefined) throw this.#closed;
      await once(this.#arrivals, "arrival", { signal });
    }
  }

  /** Ends the connection; calls in flight fail. */
  close(): void {
    this.#socket.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  #receive(line: string): void {
    const message = messageSchema.parse(JSON.parse(line));
    if (message.event !== undefined) {
      this.events.push({ name: message.event, data: message.data ?? {} });
      this.#arrivals.emit("arrival");
    }
    if (message.id === undefined) return;
    const call = this.#calls.get(message.id);
    this.#calls.delete(message.id);
    if (message.error === undefined) call?.resolve(message.return);
    else call?.reject(new MonitorError(message.error.class, message.error.desc));
  }

  #fail(error: Error): void {
    this.#closed ??= error;
    for (const call of this.#calls.values()) call.reject(this.#closed);
    this.#calls.clear();
    this.#arrivals.emit("arrival");
  }
}

function isNotListening(error: unknown): boolean {
  return (
    error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ECONNREFUSED")
  );
}
