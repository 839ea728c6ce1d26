import { randomInt } from "node:crypto";
import { createConnection, type Socket } from "node:net";
import * as z from "zod";
import { LineFramer } from "../../qmp/index.js";
import { errnoOf, FleeceError } from "../../shared/errors.js";

/** Beyond any answer to what is asked here: `guest-info` has about 5 KiB. It bounds what a guest can make us hold. */
const MAX_LINE_BYTES = 256 * 1024;
/** Of the guest's own words, which are not to be trusted, in our messages. */
const MAX_QUOTED_CHARACTERS = 200;
/** Ends what the agent may have half read, and begins its answer to `guest-sync-delimited`; no byte of UTF-8. */
const DELIMITER = 0xff;

const replySchema = z.union([
  z.object({ return: z.unknown() }),
  z.object({ error: z.object({ class: z.string(), desc: z.string() }) }),
]);
const statusSchema = z.enum(["thawed", "frozen"]);
const countSchema = z.int().nonnegative();
const infoSchema = z.object({
  supported_commands: z.array(z.object({ name: z.string(), enabled: z.boolean() })),
});

export interface CallLimits {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

interface PendingReply {
  readonly command: string;
  readonly take: (text: string) => void;
  readonly fail: (cause: Error) => void;
}

/**
 * The guest agent of a running domain (QEMU's guest agent protocol: JSON lines without ids over a virtio-serial port). What
 * answers is a program inside the guest, so nothing that it says is believed without a look, and every call has a
 * deadline. Replies carry no ids: after a call that failed in any way but the agent's own refusal, the connection is over.
 *
 * Errors are QUIESCE_FAILED, with the fact `absent` where nobody listens on the socket (QEMU has ended), or INTERRUPTED.
 */
export class GuestAgent implements AsyncDisposable {
  readonly #socketPath: string;
  readonly #socket: Socket;
  #framer = new LineFramer(MAX_LINE_BYTES);
  #syncing = false;
  #pending: PendingReply | undefined;
  #cause: Error | undefined;

  private constructor(socketPath: string) {
    this.#socketPath = socketPath;
    this.#socket = createConnection({ path: socketPath });
    this.#socket.on("data", (chunk) => this.#receive(chunk));
    this.#socket.on("error", (error) => this.#end(this.#socketError(error)));
    this.#socket.on("close", () => this.#end(this.#failure("closed the connection")));
  }

  /** Resolves once the agent has answered, so that it is known to run, and no reply to a former client is left. */
  static async connect(socketPath: string, limits: CallLimits): Promise<GuestAgent> {
    const agent = new GuestAgent(socketPath);
    try {
      await agent.#synchronize(limits);
      return agent;
    } catch (error) {
      await agent.close();
      throw error;
    }
  }

  /** Names of the commands that the agent obeys; its administrator may have switched some off. */
  async commands(limits: CallLimits): Promise<ReadonlySet<string>> {
    const info = await this.#call("guest-info", infoSchema, limits);
    return new Set(info.supported_commands.flatMap(({ name, enabled }) => (enabled ? [name] : [])));
  }

  status(limits: CallLimits): Promise<"thawed" | "frozen"> {
    return this.#call("guest-fsfreeze-status", statusSchema, limits);
  }

  /** Resolves with how many file systems are frozen. */
  freeze(limits: CallLimits): Promise<number> {
    return this.#call("guest-fsfreeze-freeze", countSchema, limits);
  }

  /** Resolves with how many file systems were frozen until now. */
  thaw(limits: CallLimits): Promise<number> {
    return this.#call("guest-fsfreeze-thaw", countSchema, limits);
  }

  close(): Promise<void> {
    this.#end(this.#failure("was left"));
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The answer is the line after the last delimiter that has our number; anything else is for a former client. */
  async #synchronize(limits: CallLimits): Promise<void> {
    const id = randomInt(2 ** 47);
    const request = JSON.stringify({ execute: "guest-sync-delimited", arguments: { id } });
    this.#syncing = true;
    await this.#exchange(
      "guest-sync-delimited",
      Buffer.concat([Buffer.of(DELIMITER), Buffer.from(`${request}\n`)]),
      limits,
      (text) => parseReply(text)?.return === id || undefined,
    );
    this.#syncing = false;
  }

  async #call<T>(command: string, schema: z.ZodType<T>, limits: CallLimits): Promise<T> {
    const text = await this.#exchange(
      command,
      Buffer.from(`${JSON.stringify({ execute: command })}\n`),
      limits,
      (line) => line,
    );
    const reply = parseReply(text);
    if (reply?.error !== undefined) {
      throw this.#failure(`refused ${command}: ${quote(reply.error.desc)}`);
    }
    const parsed = schema.safeParse(reply?.return);
    if (parsed.success) return parsed.data;
    const breach = this.#failure(`gave no proper answer to ${command}: ${quote(text)}`);
    this.#end(breach);
    throw breach;
  }

  /** Sends a request and resolves with the first line that `accept` makes something of. */
  #exchange<T>(
    command: string,
    request: Buffer,
    { timeoutMs, signal }: CallLimits,
    accept: (text: string) => T | undefined,
  ): Promise<T> {
    if (signal?.aborted === true) return Promise.reject(interrupted(signal));
    if (this.#cause !== undefined) return Promise.reject(this.#cause);
    return new Promise<T>((resolve, reject) => {
      const onAbort = (): void => this.#end(interrupted(signal));
      const timer = setTimeout(() => {
        this.#end(this.#failure(`did not answer ${command} within ${timeoutMs} ms`));
      }, timeoutMs);
      const settle = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
        this.#pending = undefined;
      };
      signal?.addEventListener("abort", onAbort);
      this.#pending = {
        command,
        take: (text) => {
          const value = accept(text);
          if (value === undefined) return;
          settle();
          resolve(value);
        },
        fail: (cause) => {
          settle();
          reject(cause);
        },
      };
      this.#socket.write(request);
    });
  }

  #receive(chunk: Buffer): void {
    let rest = chunk;
    if (this.#syncing && chunk.includes(DELIMITER)) {
      this.#framer = new LineFramer(MAX_LINE_BYTES);
      rest = chunk.subarray(chunk.lastIndexOf(DELIMITER) + 1);
    }
    for (const frame of this.#framer.push(rest)) {
      if (frame.kind === "line") this.#take(frame.text);
      else if (!this.#syncing) this.#end(this.#failure(`sent what cannot be read (${frame.kind})`));
    }
  }

  #take(text: string): void {
    if (this.#pending !== undefined) this.#pending.take(text);
    else if (this.#cause === undefined) this.#end(this.#failure(`spoke unasked: ${quote(text)}`));
  }

  /** The first cause wins. */
  #end(cause: Error): void {
    this.#cause ??= cause;
    this.#socket.destroy();
    this.#pending?.fail(this.#cause);
  }

  #socketError(error: Error): FleeceError {
    const errno = errnoOf(error);
    const absent = errno === "ENOENT" || errno === "ECONNREFUSED";
    return this.#failure(absent ? "cannot be reached: nobody listens there" : `failed: ${error.message}`, {
      cause: error,
      ...(absent ? { facts: { absent } } : {}),
    });
  }

  #failure(what: string, options: ConstructorParameters<typeof FleeceError>[2] = {}): FleeceError {
    return new FleeceError("QUIESCE_FAILED", `The guest agent at ${this.#socketPath} ${what}`, options);
  }
}

interface Reply {
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
}

function parseReply(text: string): Reply | undefined {
  try {
    return replySchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, MAX_QUOTED_CHARACTERS));
}

function interrupted(signal: AbortSignal | undefined): FleeceError {
  return new FleeceError("INTERRUPTED", "Cancelled", { cause: signal?.reason });
}
