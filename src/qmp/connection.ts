import { randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import { QmpError } from "./errors.js";
import { type Frame, LineFramer } from "./line-framer.js";
import { encodeCommand, parseMessage, type QmpMessage } from "./messages.js";
import { RunState, type StateChangeListener } from "./run-state.js";
import type { QmpEvent } from "./schema/events.js";
import type { QmpVersion } from "./version.js";
import { abortedError, limitWait, type WaitLimits } from "./wait.js";

/** Something odd that does not end the session. */
export type QmpWarning =
  /** `count` is how many replies of this session nobody had asked for. */
  | { readonly kind: "unknown-reply"; readonly id: unknown; readonly count: number }
  | { readonly kind: "listener-failed"; readonly event: string; readonly error: unknown };

export interface ConnectionHooks {
  readonly onWarning?: ((warning: QmpWarning) => void) | undefined;
  readonly onStateChange?: StateChangeListener | undefined;
}

export type EventListener = (event: QmpEvent) => void;

interface PendingCall {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: QmpError) => void;
}

/**
 * One QMP conversation over a byte stream, which it owns: greeting, calls matched to replies by id, events. Untyped;
 * `QmpSession` puts the types on. Out-of-band execution is not negotiated: every command waits its turn in QEMU.
 */
export class QmpConnection {
  /** Resolves with the first cause, once the stream is gone. Never rejects. */
  readonly closed: Promise<QmpError>;
  /** Resolves with the server's version; rejects if the conversation ends before that. */
  readonly greeted: Promise<QmpVersion>;

  readonly #stream: Duplex;
  readonly #framer: LineFramer;
  readonly #hooks: ConnectionHooks;
  readonly #state: RunState;
  readonly #pending = new Map<string, PendingCall>();
  readonly #listeners = new Set<EventListener>();
  /**
   * Random: QEMU 7.2 may hand the new client a reply that the one before it was waiting for, maybe also one of ours. Short: QEMU
   * takes a command byte by byte, a poll and a read for each, which is 5 to 10 µs (measured).
   */
  readonly #idPrefix = randomBytes(4).toString("base64url");
  #nextId = 1;
  #unknownReplies = 0;
  #cause: QmpError | undefined;
  #onGreeting: { resolve: (version: QmpVersion) => void; reject: (error: QmpError) => void } | undefined;

  constructor(stream: Duplex, maxLineBytes: number, hooks: ConnectionHooks = {}) {
    this.#stream = stream;
    this.#framer = new LineFramer(maxLineBytes);
    this.#hooks = hooks;
    this.#state = new RunState(hooks.onStateChange);
    this.greeted = new Promise((resolve, reject) => (this.#onGreeting = { resolve, reject }));
    // Whoever is interested awaits it too; a conversation that ends ungreeted must not become an unhandled rejection.
    this.greeted.catch(() => undefined);
    this.closed = new Promise((resolve) => {
      stream.once("close", () => resolve(this.#finish()));
    });
    stream.on("data", (chunk: Uint8Array) => this.#receive(chunk));
    stream.on("end", () => this.fail(this.#endOfStream()));
    stream.on("error", (cause) =>
      this.fail(new QmpError("QMP_DISCONNECTED", `QMP connection broke: ${cause.message}`, { cause })),
    );
  }

  get isGreeted(): boolean {
    return this.#onGreeting === undefined;
  }

  /** Ends the greeting phase: from here on `request` takes any command. */
  async negotiate(): Promise<void> {
    await this.#send("qmp_capabilities", undefined);
    if (!this.#state.isOver) this.#state.move("running", "capabilities negotiated");
  }

  /**
   * Sends a command and waits for its reply. After QMP_TIMEOUT or QMP_ABORTED it may still take effect; its late reply
   * is dropped.
   */
  async request(command: string, args: object | undefined, limits: WaitLimits): Promise<unknown> {
    if (this.#cause === undefined && this.#state.current !== "running")
      throw new Error(`${command} sent before the capabilities were negotiated`);
    if (limits.signal?.aborted === true) {
      throw abortedError(limits.signal, command, { command });
    }
    return await limitWait(this.#send(command, args), limits, command, { command });
  }

  /** Listeners run in order of arrival, before later replies are handed out. Returns how to stop listening. */
  onEvent(listener: EventListener): () => void {
    const own: EventListener = (event) => listener(event);
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  /** The one way to end: the first cause wins, all pending calls fail with it, the stream is destroyed. Idempotent. */
  fail(cause: QmpError): void {
    if (this.#cause !== undefined) return;
    this.#cause = cause;
    this.#state.move("closing", cause.message);
    this.#onGreeting?.reject(cause);
    for (const call of this.#pending.values()) call.reject(pendingError(call.command, cause));
    this.#pending.clear();
    this.#stream.destroy();
  }

  async #send(command: string, args: object | undefined): Promise<unknown> {
    if (this.#cause !== undefined) throw pendingError(command, this.#cause);
    const id = `${this.#idPrefix}-${this.#nextId++}`;
    const line = encodeCommand(id, command, args);
    return await new Promise((resolve, reject) => {
      this.#pending.set(id, { command, resolve, reject });
      this.#stream.write(line);
    });
  }

  #receive(chunk: Uint8Array): void {
    for (const frame of this.#framer.push(chunk)) {
      if (this.#state.isOver) return;
      this.#take(frame);
    }
  }

  #take(frame: Frame): void {
    if (frame.kind === "too-long") {
      const text = `Expected QMP messages of at most ${frame.maxLineBytes} bytes, got a longer one`;
      this.fail(new QmpError("QMP_LINE_TOO_LONG", text));
    } else if (frame.kind === "not-utf8") {
      this.#protocolError(`expected UTF-8, got a line of ${frame.lineBytes} bytes that is not`);
    } else if (this.isGreeted) {
      this.#dispatch(parseMessage(frame.text));
    } else {
      this.#greet(frame.text);
    }
  }

  #greet(text: string): void {
    const message = parseMessage(text);
    if (message.kind === "greeting") {
      this.#state.move("negotiating", "greeted");
      this.#onGreeting?.resolve(message.version);
      this.#onGreeting = undefined;
    } else if (isForFormerClient(message)) {
      if (message.kind !== "event") this.#takeCall(message.id);
    } else if (text.trim() === "{") {
      const hint = "is the monitor in pretty-printing mode (pretty=on)?";
      this.#protocolError(`expected a greeting on one line, got an opening brace alone; ${hint}`);
    } else {
      this.#protocolError(
        message.kind === "invalid" ? message.reason : `expected a greeting, got a ${message.kind}`,
      );
    }
  }

  #dispatch(message: QmpMessage): void {
    switch (message.kind) {
      case "return":
        this.#takeCall(message.id)?.resolve(message.value);
        break;
      case "error":
        this.#onErrorReply(message.id, message.qmpClass, message.text);
        break;
      case "event":
        this.#deliver(message.event);
        break;
      case "greeting":
        this.#protocolError("expected a reply or event, got a second greeting");
        break;
      case "invalid":
        this.#protocolError(message.reason);
        break;
    }
  }

  /** An error without an id answers a line that QEMU could not read: then nothing tells which call it belongs to. */
  #onErrorReply(id: unknown, qmpClass: string, qemuText: string): void {
    if (id === undefined) {
      this.#protocolError(`expected an id in the error reply "${qemuText}", got none`);
      return;
    }
    const call = this.#takeCall(id);
    if (call === undefined) return;
    const { command } = call;
    call.reject(
      new QmpError("QMP_COMMAND_FAILED", `${command} failed: ${qemuText}`, { command, qmpClass, qemuText }),
    );
  }

  #takeCall(id: unknown): PendingCall | undefined {
    const call = typeof id === "string" ? this.#pending.get(id) : undefined;
    if (typeof id === "string" && call !== undefined) {
      this.#pending.delete(id);
      return call;
    }
    this.#unknownReplies += 1;
    this.#hooks.onWarning?.({ kind: "unknown-reply", id, count: this.#unknownReplies });
    return undefined;
  }

  #deliver(event: QmpEvent): void {
    for (const listener of [...this.#listeners]) {
      try {
        listener(event);
      } catch (error) {
        this.#hooks.onWarning?.({ kind: "listener-failed", event: event.event, error });
      }
    }
  }

  #protocolError(reason: string): void {
    this.fail(
      new QmpError(this.isGreeted ? "QMP_PROTOCOL" : "QMP_NOT_QMP", `QMP peer broke the protocol: ${reason}`),
    );
  }

  #endOfStream(): QmpError {
    const unfinished = this.#framer.unfinishedBytes;
    const where = unfinished > 0 ? ` in the middle of a message, after ${unfinished} bytes of it` : "";
    const when = this.isGreeted ? "" : " before its greeting";
    return new QmpError("QMP_DISCONNECTED", `QMP peer closed the connection${when}${where}`);
  }

  #finish(): QmpError {
    const cause = this.#cause ?? this.#endOfStream();
    this.fail(cause);
    this.#state.move("closed", cause.message);
    return cause;
  }
}

/** Each call gets an error of its own, so that stacks and commands differ; the code and the cause are the session's. */
function pendingError(command: string, cause: QmpError): QmpError {
  return new QmpError(cause.code, `${command} failed because the session ended: ${cause.message}`, {
    command,
    cause,
  });
}

/**
 * A QEMU whose former client left with a call pending may answer that call to us, even before it greets us (seen on
 * 7.2, about once in a thousand such cases). Every sane client sends ids, so an answer without one is something else.
 */
function isForFormerClient(
  message: QmpMessage,
): message is QmpMessage & { kind: "event" | "return" | "error" } {
  return (
    message.kind === "event" ||
    ((message.kind === "return" || message.kind === "error") && message.id !== undefined)
  );
}
