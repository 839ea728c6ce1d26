import type { ServiceError, StatusObject } from "@grpc/grpc-js";
import { Metadata, status } from "@grpc/grpc-js";
import protobuf from "protobufjs";
import type { ErrorCategory, ErrorCode, ErrorFacts } from "../shared/errors.js";
import { ERROR_CODES, FleeceError } from "../shared/errors.js";

/** How a FleeceError goes over gRPC and comes back: as status code, words, and a google.rpc.ErrorInfo. */

const DETAILS_KEY = "grpc-status-details-bin";
const ERROR_DOMAIN = "fleece";
const ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo";

/** Trailers have room for 16 KiB in many clients. */
const LONGEST_MESSAGE = 2048;
const LONGEST_FACTS = 4096;

/** The wire format of google/rpc/status.proto and error_details.proto. */
const { root } = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`);
root.resolveAll();
const Status = root.lookupType("Status");
const ErrorInfo = root.lookupType("ErrorInfo");

const BY_CATEGORY = {
  usage: status.INVALID_ARGUMENT,
  "not-found": status.NOT_FOUND,
  conflict: status.FAILED_PRECONDITION,
  unreachable: status.UNAVAILABLE,
  damage: status.DATA_LOSS,
  failed: status.FAILED_PRECONDITION,
} as const satisfies Record<ErrorCategory, status>;

/** ABORTED: the same call may succeed later, without anybody doing something about it. */
const BY_CODE: Partial<Record<ErrorCode, status>> = {
  ALREADY_EXISTS: status.ALREADY_EXISTS,
  DOMAIN_BUSY: status.ABORTED,
  REPOSITORY_BUSY: status.ABORTED,
  CHECKPOINT_BUSY: status.ABORTED,
  DISK_CHANGED: status.ABORTED,
  INTERRUPTED: status.ABORTED,
  NO_SPACE: status.RESOURCE_EXHAUSTED,
  TOO_MANY_CALLS: status.RESOURCE_EXHAUSTED,
  TOO_LARGE: status.RESOURCE_EXHAUSTED,
  ACCESS_DENIED: status.PERMISSION_DENIED,
  CLIENT_UNKNOWN: status.PERMISSION_DENIED,
  SNAPSHOT_BROKEN: status.DATA_LOSS,
  QEMU_FAILED: status.INTERNAL,
  TOOL_MISSING: status.INTERNAL,
  NBD_FAILED: status.INTERNAL,
  CLEANUP_INCOMPLETE: status.INTERNAL,
  INTERNAL: status.INTERNAL,
};

export function statusCodeOf({ code, category }: FleeceError): status {
  return BY_CODE[code] ?? BY_CATEGORY[category];
}

export function toStatus(error: FleeceError): StatusObject {
  const code = statusCodeOf(error);
  const details = cut(error.message, LONGEST_MESSAGE);
  const info = { reason: error.code, domain: ERROR_DOMAIN, metadata: writeFacts(error.facts) };
  const value = ErrorInfo.encode(ErrorInfo.fromObject(info)).finish();
  const whole = Status.fromObject({ code, message: details, details: [{ typeUrl: ERROR_INFO_URL, value }] });
  const metadata = new Metadata();
  metadata.set(DETAILS_KEY, Buffer.from(Status.encode(whole).finish()));
  return { code, details, metadata };
}

/** The error that the agent sent, or undefined for one of gRPC itself or of another program. */
export function fromStatus({
  details,
  metadata,
}: Pick<ServiceError, "details" | "metadata">): FleeceError | undefined {
  const info = errorInfoOf(metadata);
  if (info?.domain !== ERROR_DOMAIN) return undefined;
  const facts = readFacts(info.metadata ?? {});
  if (isErrorCode(info.reason)) return new FleeceError(info.reason, details, { facts });
  // The agent is of a later version.
  return new FleeceError("INTERNAL", `${details} (${info.reason})`, { facts });
}

interface Info {
  readonly reason: string;
  readonly domain: string;
  readonly metadata?: Readonly<Record<string, string>>;
}

function errorInfoOf(metadata: Metadata): Info | undefined {
  const [bytes] = metadata.get(DETAILS_KEY);
  if (!Buffer.isBuffer(bytes)) return undefined;
  try {
    const { details } = Status.toObject(Status.decode(bytes), { arrays: true }) as {
      details: readonly { readonly typeUrl: string; readonly value: Uint8Array }[];
    };
    const any = details.find(({ typeUrl }) => typeUrl === ERROR_INFO_URL);
    if (any === undefined) return undefined;
    return ErrorInfo.toObject(ErrorInfo.decode(any.value), { defaults: true }) as Info;
  } catch {
    // Not a Status; what gRPC itself says is enough.
    return undefined;
  }
}

function isErrorCode(reason: string): reason is ErrorCode {
  return Object.hasOwn(ERROR_CODES, reason);
}

/** Texts as they are, unless they could be taken for JSON; everything else is JSON. What is too long is left out. */
function writeFacts(facts: ErrorFacts): Record<string, string> {
  let length = 0;
  const written = Object.entries(facts).map(([key, value]) => {
    const isPlain = typeof value === "string" && parsed(value) === undefined;
    return [key, isPlain ? value : JSON.stringify(value)] as const;
  });
  return Object.fromEntries(
    written.filter(([key, value]) => {
      const next = length + Buffer.byteLength(key) + Buffer.byteLength(value);
      if (next > LONGEST_FACTS) return false;
      length = next;
      return true;
    }),
  );
}

function readFacts(metadata: Readonly<Record<string, string>>): ErrorFacts {
  return Object.fromEntries(
    Object.entries(metadata).map(([key, text]) => [key, (parsed(text) ?? text) as ErrorFacts[string]]),
  );
}

/** Undefined for what is no JSON; no fact is null. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

function cut(text: string, length: number): string {
  // gRPC percent-encodes it, and throws on half a surrogate pair: such a name, or the cut, must not end the agent.
  return Buffer.from(text.length <= length ? text : `${text.slice(0, length)}…`).toString();
}
