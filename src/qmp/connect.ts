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
  const socket = createConnection({ path: socketPath });
  let connection: QmpConnection | undefined;
  const establish = async (): Promise<QmpSession> => {
    await connected(socket, socketPath);
    connection = new QmpConnection(socket, options.maxLineBytes ?? defaultMaxLineBytes, options);
    const version = await connection.greeted;
    await connection.negotiate();
    return new QmpSession(connection, version, options.commandTimeoutMs ?? defaultCommandTimeoutMs);
  };
  try {
    return await limitWait(establish(), { timeoutMs, signal }, "Connecting");
  } catch (error) {
    const failure = explain(error, socketPath, timeoutMs, connection?.isGreeted === true);
    connection?.fail(failure);
    socket.destroy();
    throw failure;
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
