import { LIMIT } from "./constants.js";
import { NbdError } from "./errors.js";
import type { BesideUri, NbdServerOptions } from "./options.js";
import { loadTls, type TlsSettings } from "./tls-options.js";
import type { SocketAddress } from "./transport.js";
import { parseNbdUri, type NbdUri } from "./uri.js";

const DEFAULT_PORT = 10809;
const DEFAULT_CONNECT_TIMEOUT_MS = 30_000;

/** A URI with the options beside it becomes options; of those about TLS, the ones beside it win. */
export function resolveTarget<T extends NbdServerOptions>(
  target: string | T,
  besideUri: BesideUri<T>,
): T | (NbdUri & BesideUri<T>) {
  if (typeof target !== "string") return { ...target, ...besideUri };
  const uri = parseNbdUri(target);
  const { tls } = besideUri;
  return tls === undefined ? { ...besideUri, ...uri } : { ...besideUri, ...uri, tls: { ...uri.tls, ...tls } };
}

export interface CheckedServer {
  readonly address: SocketAddress;
  readonly tls: TlsSettings | undefined;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export async function checkServer(options: NbdServerOptions): Promise<CheckedServer> {
  const address = checkAddress(options);
  const timeoutMs = checkTimeout(options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS);
  const host = "host" in address ? address.host : "localhost";
  const tls = options.tls === undefined ? undefined : await loadTls(options.tls, host);
  return { address, tls, timeoutMs, signal: options.signal };
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

export function checkTimeout(timeoutMs: number): number {
  // setTimeout turns anything larger into 1 ms
  if (timeoutMs > 0 && timeoutMs <= 0x7fffffff) return timeoutMs;
  throw new NbdError("INVALID_ARGUMENT", `Expected a timeout between 1 ms and 2^31 - 1 ms, got ${timeoutMs}`);
}

export function checkString(text: string): void {
  const bytes = Buffer.byteLength(text, "utf8");
  if (bytes <= LIMIT.stringBytes) return;
  throw new NbdError(
    "INVALID_ARGUMENT",
    `Expected a name of at most ${LIMIT.stringBytes} bytes, got ${bytes}`,
  );
}
