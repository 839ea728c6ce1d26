import { createConnection, type Socket } from "node:net";
import { type ConnectionHooks, QmpConnection } from "./connection.js";
import { isQmpError, QmpError, type QmpErrorCode } from "./errors.js";
import { QmpSession } from "./session.js";
import { limitWait } from "./wait.js";

export interface QmpConnectOptions extends ConnectionHooks {
  /** Path of the monitor's Unix socket. */
  readonly socketPath: string;
  /** Milliseconds for connecting, greeting and capabilities together; default 5000. */
  readonly connectTimeoutMs?: number | undefined;
  /** Milliseconds for each command unless it says otherwise; default 30 000. */
  readonly commandTimeoutMs?: number | undefined;
  /** Bytes of the longest message accepted; default 64 MiB. */
  readonly maxLineBytes?: number | undefined;
  /** Aborts connecting; without effect once the session exists. */
  readonly signal?: AbortSignal | undefined;
}

const defaultConnectTimeoutMs = 5_000;
const defaultCommandTimeoutMs = 30_000;
/**
 * The longest answers are the schema (0.2 MiB) and `query-named-block-nodes`, at up to a few KiB for a node and
 * 1.2 KiB for a bitmap: this has room for some 50 000 bitmaps, and bounds what a runaway peer can make us hold.
 */
const defaultMaxLineBytes = 64 * 1024 * 1024;
/** `sun_path` holds 108 bytes, the last one a NUL (unix(7)). */
const maxSocketPathBytes = 107;

const connectFailures: Readonly<Record<string, readonly [QmpErrorCode, string]>> = {
  ENOENT: ["QMP_SOCKET_ABSENT", "does not exist"],
  ENOTDIR: ["QMP_SOCKET_ABSENT", "does not exist"],
  ECONNREFUSED: ["QMP_REFUSED", "has nobody listening"],
  EACCES: ["QMP_PERMISSION", "may not be opened by this user"],
  EPERM: ["QMP_PERMISSION", "may not be opened by this user"],
  // On a Unix socket: the queue of clients that wait to be accepted is full.
  EAGAIN: ["QMP_NO_GREETING", "has too many clients waiting already: QEMU serves one at a time"],
};

/**
 * Connects to a monitor and negotiates. Rejects with a QmpError that tells apart an absent socket, a refused or
 * forbidden one, a monitor that another client holds (QMP_NO_GREETING), a peer that does not speak QMP, and an end of
 * the connection meanwhile. Leaves nothing open when it rejects.
 */
export async function connectQmp(options: QmpConnectOptions): Promise<QmpSession> {
  const { socketPath, signal } = options;
  checkSocketPath(socketPath);
  if (signal?.aborted === true) throw abortedConnect(socketPath, signal.reason);
  const timeoutMs = options.connectTimeoutMs ?? defaultConnectTimeoutMs;
  const attempt = new Attempt(options);
  try {
    return await limitWait(attempt.run(), { timeoutMs, signal }, "Connecting");
  } catch (error) {
    const failure = explain(error, socketPath, timeoutMs, attempt.isGreeted);
    attempt.abandon(failure);
    throw failure;
  }
}

/** A monitor that has greeted answers at once, unless its main loop is busy: then the last attempt waits for it. */
const negotiationPatienceMs = 1_500;

/** Connects, again if need be; holds what must be torn down if that is given up. */
class Attempt {
  readonly #options: QmpConnectOptions;
  #socket: Socket | undefined;
  #connection: QmpConnection | undefined;

  constructor(options: QmpConnectOptions) {
    this.#options = options;
  }

  get isGreeted(): boolean {
    return this.#connection?.isGreeted === true;
  }

  /**
   * A QEMU that is just starting to listen may greet twice, and forget in between what was negotiated, or lose the command
   * altogether (seen on 7.2, rarely). So what breaks the protocol or stays unanswered after the greeting gets another
   * chance; a peer that never greets does not.
   */
  async run(): Promise<QmpSession> {
    for (let retriesLeft = 2; ; retriesLeft -= 1) {
      try {
        return await this.#once(retriesLeft > 0 ? negotiationPatienceMs : undefined);
      } catch (error) {
        const maySucceed =
          isQmpError(error) && (error.code === "QMP_PROTOCOL" || error.code === "QMP_TIMEOUT");
        if (retriesLeft === 0 || !maySucceed) throw error;
        this.abandon(error);
      }
    }
  }

  abandon(failure: QmpError): void {
    this.#connection?.fail(failure);
    this.#socket?.destroy();
  }

  async #once(patienceMs: number | undefined): Promise<QmpSession> {
    const { socketPath, maxLineBytes = defaultMaxLineBytes, commandTimeoutMs } = this.#options;
    this.#connection = undefined;
    this.#socket = createConnection({ path: socketPath });
    await connected(this.#socket, socketPath);
    const connection = new QmpConnection(this.#socket, maxLineBytes, this.#options);
    this.#connection = connection;
    const version = await connection.greeted;
    await limitWait(connection.negotiate(), { timeoutMs: patienceMs }, "qmp_capabilities");
    return new QmpSession(connection, version, commandTimeoutMs ?? defaultCommandTimeoutMs);
  }
}

function checkSocketPath(socketPath: string): void {
  const bytes = Buffer.byteLength(socketPath);
  if (bytes > 0 && bytes <= maxSocketPathBytes && !socketPath.includes("\0")) return;
  const text = `Expected a socket path of 1 to ${maxSocketPathBytes} bytes without NUL, got ${bytes} bytes`;
  throw new QmpError("QMP_ARGUMENT", text, { socketPath });
}

async function connected(socket: Socket, socketPath: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const onError = (cause: NodeJS.ErrnoException): void => {
      const [code, what] = connectFailures[cause.code ?? ""] ?? [
        "QMP_CONNECT_FAILED",
        `failed: ${cause.message}`,
      ];
      reject(new QmpError(code, `QMP socket ${socketPath} ${what}`, { cause, socketPath }));
    };
    // It stays: an error after a timeout must find a listener.
    socket.on("error", onError);
    socket.once("connect", resolve);
  });
}

function abortedConnect(socketPath: string, cause: unknown): QmpError {
  return new QmpError("QMP_ABORTED", `Connecting to QMP socket ${socketPath} was aborted`, {
    cause,
    socketPath,
  });
}

/** Adds the path, and says what a missing greeting usually means. */
function explain(error: unknown, socketPath: string, timeoutMs: number, greeted: boolean): QmpError {
  if (!isQmpError(error))
    return new QmpError("QMP_CONNECT_FAILED", `Connecting to ${socketPath} failed`, { cause: error });
  if (error.socketPath !== undefined) return error;
  if (error.code === "QMP_ABORTED") return abortedConnect(socketPath, error.cause);
  if (error.code === "QMP_TIMEOUT" && !greeted) {
    const text = `No greeting from QMP socket ${socketPath} within ${timeoutMs} ms: another client may hold the monitor`;
    return new QmpError("QMP_NO_GREETING", `${text}, since QEMU serves one at a time`, { socketPath });
  }
  const text = `Connecting to QMP socket ${socketPath} failed: ${error.message}`;
  return new QmpError(error.code, text, { cause: error, socketPath });
}
