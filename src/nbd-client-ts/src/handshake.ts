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
import { exportName, go, info, type ExportDetails, type ExportInfo } from "./option-go.js";
import { list, type ListedExport } from "./option-list.js";
import { listMetaContexts, setMetaContexts, type Contexts } from "./option-meta-context.js";
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
  /** Ask for extended headers first, default false. */
  readonly extendedHeaders?: boolean;
  /** Go on with the contexts that the server has, instead of failing. */
  readonly optionalContexts: boolean;
}

/** What both sides agreed on before transmission. */
export interface Negotiated extends ExportInfo {
  /** Also true with extended headers, which are structured replies with more room. */
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  readonly contexts: Contexts;
}

/** The handshake up to an entered export. `greeted` are the server's flags if TLS came first. */
export function* enterExport(
  send: Send,
  options: HandshakeOptions,
  greeted?: number,
): ByteParser<Negotiated> {
  const flags = greeted ?? (yield* greet(send));
  const fixed = (flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) !== 0;
  const noZeroes = (flags & HANDSHAKE_FLAG.NO_ZEROES) !== 0;

  // Without "fixed newstyle" a server may answer any other option by hanging up.
  const extendedHeaders =
    fixed &&
    options.extendedHeaders === true &&
    (yield* requestHeaders(send, OPTION.EXTENDED_HEADERS, options));
  const structuredReplies =
    extendedHeaders || (fixed && (yield* requestHeaders(send, OPTION.STRUCTURED_REPLY, options)));
  const contexts: Contexts =
    structuredReplies && options.metaContexts.length > 0
      ? yield* setMetaContexts(send, options.exportName, options.metaContexts)
      : new Map();
  if (!options.optionalContexts) checkContexts(options, contexts);

  const entered =
    (fixed ? yield* go(send, options.exportName) : undefined) ??
    (yield* fallBack(send, options.exportName, { noZeroes, extendedHeaders }));
  return { ...entered, structuredReplies, extendedHeaders, contexts };
}

/** The handshake up to the list of exports. */
export function* listAllExports(send: Send, greeted?: number): ByteParser<readonly ListedExport[]> {
  yield* greetFixed(send, greeted);
  return yield* list(send);
}

/** The handshake up to what the server says about an export, which is not entered. */
export function* describeOneExport(
  send: Send,
  exportName: string,
  greeted?: number,
): ByteParser<ExportDetails> {
  yield* greetFixed(send, greeted);
  return yield* info(send, exportName);
}

/** The handshake up to the names of the contexts that an export offers. */
export function* listContexts(
  send: Send,
  exportName: string,
  queries: readonly string[],
  greeted?: number,
): ByteParser<readonly string[]> {
  yield* greetFixed(send, greeted);
  // Servers refuse to list contexts, too, before structured replies.
  const structuredReplies = yield* requestHeaders(send, OPTION.STRUCTURED_REPLY, { exportName });
  return structuredReplies ? yield* listMetaContexts(send, exportName, queries) : [];
}

/** For what cannot be asked the old way. */
function* greetFixed(send: Send, greeted: number | undefined): ByteParser<void> {
  const flags = greeted ?? (yield* greet(send));
  if ((flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) !== 0) return;
  throw new NbdError(
    "UNSUPPORTED_SERVER",
    "Expected a fixed newstyle server, this one only lets clients enter an export",
  );
}

/** Ends the option phase in the way a healthy server expects. Its answer is not waited for: some just hang up. */
export function sendAbort(send: Send): void {
  sendOption(send, OPTION.ABORT);
}

/** Reads the greeting and answers it; returns the server's handshake flags. */
export function* greet(send: Send): ByteParser<number> {
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

/** EXPORT_NAME, which the protocol forbids once extended headers were agreed on: GO comes with them. */
function* fallBack(
  send: Send,
  name: string,
  agreed: { readonly noZeroes: boolean; readonly extendedHeaders: boolean },
): ByteParser<ExportInfo> {
  if (agreed.extendedHeaders) {
    throw badOptionReply(OPTION.GO, "the server agreed to extended headers, but does not know the option");
  }
  return yield* exportName(send, name, agreed.noZeroes);
}

/** Asks for another form of headers. False if the server does not have it. */
function* requestHeaders(
  send: Send,
  option: typeof OPTION.STRUCTURED_REPLY | typeof OPTION.EXTENDED_HEADERS,
  { exportName: name }: Pick<HandshakeOptions, "exportName">,
): ByteParser<boolean> {
  sendOption(send, option);
  const reply = yield* readOptionReply(option);
  if (reply.type === OPTION_REPLY.ACK) return true;
  if (!isErrorReply(reply)) {
    throw badOptionReply(option, `its type ${reply.type} is not known`);
  }
  if (reply.type === OPTION_REPLY.ERR_TLS_REQD || reply.type === OPTION_REPLY.ERR_SHUTDOWN) {
    throw optionRefused(option, reply, name);
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
