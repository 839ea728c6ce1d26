import { NbdConnection } from "./connection.js";
import { LIMIT } from "./constants.js";
import { NbdError } from "./errors.js";
import { enterExport, listAllExports } from "./handshake.js";
import { leaveHandshake, negotiate } from "./negotiation.js";
import type { ListedExport } from "./option-list.js";
import type { NbdConnectOptions, NbdServerOptions } from "./options.js";
import { Session } from "./session.js";
import type { SocketAddress } from "./transport.js";

const DEFAULT_PORT = 10809;
const DEFAULT_CONNECT_TIMEOUT_MS = 30_000;
const DEFAULT_REQUEST_TIMEOUT_MS = 60_000;

/**
 * Connects to one export. Rejects with an `NbdError`: `CONNECT_FAILED`, `TIMEOUT`, `EXPORT_NOT_FOUND`,
 * `CONTEXT_NOT_OFFERED`, `TLS_REQUIRED`, …; nothing stays open then.
 */
export async function connectNbd(options: NbdConnectOptions): Promise<NbdConnection> {
  const metaContexts = [...new Set(options.metaContexts ?? [])];
  for (const name of [options.exportName, ...metaContexts]) checkString(name);
  const wildcard = metaContexts.find((name) => !name.includes(":") || name.endsWith(":"));
  if (wildcard !== undefined) {
    throw new NbdError(
      "INVALID_ARGUMENT",
      `Expected the full name of a metadata context, got ${JSON.stringify(wildcard)}`,
    );
  }
  const requestTimeoutMs = checkTimeout(options.requestTimeoutMs ?? DEFAULT_REQUEST_TIMEOUT_MS);
  const handshake = {
    exportName: options.exportName,
    metaContexts,
    optionalContexts: options.optionalContexts ?? false,
  };
  return await negotiate({
    ...checkServer(options),
    handshake: (send) => enterExport(send, handshake),
    done: (negotiated, transport) => {
      const session = new Session(transport, negotiated.structuredReplies, requestTimeoutMs);
      return new NbdConnection(session, options.exportName, negotiated);
    },
  });
}

/** The exports that a server lists, over a connection of its own. Servers may hide exports that exist. */
export async function listExports(options: NbdServerOptions): Promise<readonly ListedExport[]> {
  return await negotiate({
    ...checkServer(options),
    handshake: listAllExports,
    done: (found, transport) => {
      leaveHandshake(transport);
      return found;
    },
  });
}

function checkServer(options: NbdServerOptions) {
  return {
    address: checkAddress(options),
    timeoutMs: checkTimeout(options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS),
    signal: options.signal,
  };
}

function checkAddress(options: NbdServerOptions): SocketAddress {
  const { socketPath, host, port = DEFAULT_PORT } = options;
  if (socketPath !== undefined && socketPath !== "" && host === undefined && options.port === undefined) {
    const bytes = Buffer.byteLength(socketPath, "utf8");
    if (bytes <= LIMIT.socketPathBytes) return { path: socketPath };
    throw new NbdError(
      "INVALID_ARGUMENT",
      `Expected a socketPath of at most ${LIMIT.socketPathBytes} bytes, got ${bytes}`,
    );
  }
  if (host === undefined || host === "" || socketPath !== undefined) {
    throw new NbdError("INVALID_ARGUMENT", "Expected either a socketPath, or a host and perhaps a port");
  }
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw new NbdError("INVALID_ARGUMENT", `Expected a port between 1 and 65535, got ${port}`);
  }
  return { host, port };
}

function checkTimeout(timeoutMs: number): number {
  // setTimeout turns anything larger into 1 ms
  if (timeoutMs > 0 && timeoutMs <= 0x7fffffff) return timeoutMs;
  throw new NbdError("INVALID_ARGUMENT", `Expected a timeout between 1 ms and 2^31 - 1 ms, got ${timeoutMs}`);
}

function checkString(text: string): void {
  const bytes = Buffer.byteLength(text, "utf8");
  if (bytes <= LIMIT.stringBytes) return;
  throw new NbdError(
    "INVALID_ARGUMENT",
    `Expected a name of at most ${LIMIT.stringBytes} bytes, got ${bytes}`,
  );
}
