/**
 * What the caller may do next:
 * - `connection`: the connection is dead, or never came up. Nothing more will succeed on it; connect again, or give up.
 * - `request`: only this request failed. The connection goes on.
 * - `usage`: the call itself was wrong. Nothing was sent.
 */
export type NbdErrorScope = "connection" | "request" | "usage";

/** Every code with its scope. README.md explains each; a test keeps the two equal. */
export const NBD_ERROR_CODES = {
  CONNECT_FAILED: "connection",
  TIMEOUT: "connection",
  CONNECTION_LOST: "connection",
  CLOSED: "connection",
  NOT_NBD: "connection",
  UNSUPPORTED_SERVER: "connection",
  EXPORT_NOT_FOUND: "connection",
  TLS_REQUIRED: "connection",
  TLS_NOT_OFFERED: "connection",
  TLS_INJECTION: "connection",
  TLS_FAILED: "connection",
  TLS_UNTRUSTED: "connection",
  SERVER_SHUTTING_DOWN: "connection",
  OPTION_REFUSED: "connection",
  CONTEXT_NOT_OFFERED: "connection",
  CONNECTIONS_DIFFER: "connection",
  BAD_MAGIC: "connection",
  BAD_REPLY: "connection",
  UNEXPECTED_REPLY: "connection",
  UNSOLICITED_DATA: "connection",
  UNKNOWN_COOKIE: "connection",
  REPEATED_COOKIE: "connection",
  CHUNK_OUT_OF_RANGE: "connection",
  CHUNK_OVERLAP: "connection",
  READ_INCOMPLETE: "connection",
  BAD_BLOCK_STATUS: "connection",
  REQUEST_FAILED: "request",
  ABORTED: "request",
  INVALID_ARGUMENT: "usage",
  INVALID_URI: "usage",
  TLS_CREDENTIALS: "usage",
  OUT_OF_RANGE: "usage",
  UNALIGNED: "usage",
  NOT_SUPPORTED: "usage",
  READ_ONLY: "usage",
} as const satisfies Record<string, NbdErrorScope>;

export type NbdErrorCode = keyof typeof NBD_ERROR_CODES;

/** Error names of the protocol ("Error values"). */
export type NbdErrno =
  "EPERM" | "EIO" | "ENOMEM" | "EINVAL" | "ENOSPC" | "EOVERFLOW" | "ENOTSUP" | "ESHUTDOWN";

/** Facts about an error, where they apply. */
export interface NbdErrorDetails {
  readonly cause?: unknown;
  /** The error that the server answered with. Values we do not know count as EINVAL. */
  readonly errno?: NbdErrno;
  /** The server's own words: untrusted, at most 4096 bytes, without control characters. */
  readonly serverText?: string;
  /** Command of the failed request, such as `READ`. */
  readonly command?: string;
  /** Range of the failed request, in bytes. */
  readonly offset?: number;
  readonly length?: number;
}

/** Every error of this package. `scope` says what to do next, `code` is stable. */
export class NbdError extends Error {
  override readonly name = "NbdError";
  readonly code: NbdErrorCode;
  readonly scope: NbdErrorScope;
  readonly errno: NbdErrno | undefined;
  readonly serverText: string | undefined;
  readonly command: string | undefined;
  readonly offset: number | undefined;
  readonly length: number | undefined;

  constructor(code: NbdErrorCode, message: string, details: NbdErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.scope = NBD_ERROR_CODES[code];
    this.errno = details.errno;
    this.serverText = details.serverText;
    this.command = details.command;
    this.offset = details.offset;
    this.length = details.length;
  }
}

const ERRNO_NAMES: ReadonlyMap<number, NbdErrno> = new Map([
  [1, "EPERM"],
  [5, "EIO"],
  [12, "ENOMEM"],
  [22, "EINVAL"],
  [28, "ENOSPC"],
  [75, "EOVERFLOW"],
  [95, "ENOTSUP"],
  [108, "ESHUTDOWN"],
]);

/** Unknown values are treated as EINVAL ("Error values"). */
export function errnoName(value: number): NbdErrno {
  return ERRNO_NAMES.get(value) ?? "EINVAL";
}

/** A server's text made safe to log: no control characters, which could forge lines or drive a terminal. */
export function cleanText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    .toString("utf8")
    .replace(/\p{Cc}+/gu, " ")
    .trim();
}

/** An error of any kind as ours, keeping what is ours already. */
export function asNbdError(error: unknown, code: NbdErrorCode): NbdError {
  if (error instanceof NbdError) return error;
  return new NbdError(code, error instanceof Error ? error.message : String(error), { cause: error });
}

export function abortError(signal: AbortSignal, what: string): NbdError {
  return new NbdError("ABORTED", `${what} was aborted`, { cause: signal.reason });
}
