import type { ByteParser } from "./byte-feeder.js";
import { takeBytes } from "./byte-feeder.js";
import {
  HANDSHAKE_FLAG,
  NBD_MAGIC,
  OLDSTYLE_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY,
} from "./constants.js";
import { NbdError } from "./errors.js";
import { exportName, go, type ExportInfo } from "./option-go.js";
import { list, type ListedExport } from "./option-list.js";
import { setMetaContexts, type Contexts } from "./option-meta-context.js";
import {
  badOptionReply,
  isErrorReply,
  optionRefused,
  readOptionReply,
  sendOption,
  type Send,
} from "./option.js";
import { hasMagic, uint32 } from "./wire.js";

export interface HandshakeOptions {
  readonly exportName: string;
  readonly metaContexts: readonly string[];
  /** Go on with the contexts that the server has, instead of failing. */
  readonly optionalContexts: boolean;
}

/** What both sides agreed on before transmission. */
export interface Negotiated extends ExportInfo {
  readonly structuredReplies: boolean;
  readonly contexts: Contexts;
}

/**
 * The handshake up to an entered export. STARTTLS will come first here, as a step of its own: what it negotiates
 * replaces the transport, and everything before it is void.
 */
export function* enterExport(send: Send, options: HandshakeOptions): ByteParser<Negotiated> {
  const flags = yield* greet(send);
  const fixed = (flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) !== 0;
  const noZeroes = (flags & HANDSHAKE_FLAG.NO_ZEROES) !== 0;

  // Without "fixed newstyle" a server may answer any other option by hanging up.
  const structuredReplies = fixed && (yield* requestStructuredReplies(send, options.exportName));
  const contexts: Contexts =
    structuredReplies && options.metaContexts.length > 0
      ? yield* setMetaContexts(send, options.exportName, options.metaContexts)
      : new Map();
  if (!options.optionalContexts) checkContexts(options, contexts);

  const info =
    (fixed ? yield* go(send, options.exportName) : undefined) ??
    (yield* exportName(send, options.exportName, noZeroes));
  return { ...info, structuredReplies, contexts };
}

/** The handshake up to the list of exports. */
export function* listAllExports(send: Send): ByteParser<readonly ListedExport[]> {
  const flags = yield* greet(send);
  if ((flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) === 0) {
    throw new NbdError(
      "UNSUPPORTED_SERVER",
      "Expected a fixed newstyle server, this one cannot list exports",
    );
  }
  return yield* list(send);
}

/** Ends the option phase in the way a healthy server expects. Its answer is not waited for: some just hang up. */
export function sendAbort(send: Send): void {
  sendOption(send, OPTION.ABORT);
}

/** Reads the greeting and answers it; returns the server's handshake flags. */
function* greet(send: Send): ByteParser<number> {
  const first = yield* takeBytes(8);
  if (!hasMagic(first, NBD_MAGIC)) {
    throw new NbdError("NOT_NBD", `Expected the greeting NBDMAGIC, the peer sent ${first.toString("hex")}`);
  }
  const second = yield* takeBytes(8);
  if (hasMagic(second, OLDSTYLE_MAGIC)) {
    throw new NbdError(
      "UNSUPPORTED_SERVER",
      "Expected a newstyle server, this one speaks the oldstyle protocol",
    );
  }
  if (!hasMagic(second, OPTION_MAGIC)) {
    throw new NbdError(
      "NOT_NBD",
      `Expected IHAVEOPT after NBDMAGIC, the peer sent ${second.toString("hex")}`,
    );
  }
  const flags = (yield* takeBytes(2)).readUInt16BE(0);
  // The same two bits mean the same from our side; a server must drop a client that sets any other.
  send(uint32(flags & (HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES)));
  return flags;
}

function* requestStructuredReplies(send: Send, name: string): ByteParser<boolean> {
  sendOption(send, OPTION.STRUCTURED_REPLY);
  const reply = yield* readOptionReply(OPTION.STRUCTURED_REPLY);
  if (reply.type === OPTION_REPLY.ACK) return true;
  if (!isErrorReply(reply)) {
    throw badOptionReply(OPTION.STRUCTURED_REPLY, `its type ${reply.type} is not known`);
  }
  if (reply.type === OPTION_REPLY.ERR_TLS_REQD || reply.type === OPTION_REPLY.ERR_SHUTDOWN) {
    throw optionRefused(OPTION.STRUCTURED_REPLY, reply, name);
  }
  return false;
}

function checkContexts(options: HandshakeOptions, contexts: Contexts): void {
  const offered = new Set(contexts.values());
  const missing = options.metaContexts.filter((name) => !offered.has(name));
  if (missing.length === 0) return;
  throw new NbdError(
    "CONTEXT_NOT_OFFERED",
    `Expected export ${JSON.stringify(options.exportName)} to offer ${missing.join(", ")}, the server does not`,
  );
}
