import type { ByteParser } from "./byte-feeder.js";
import { takeBytes } from "./byte-feeder.js";
import { LIMIT, OPTION_MAGIC, OPTION_REPLY, OPTION_REPLY_MAGIC } from "./constants.js";
import { cleanText, NbdError, type NbdErrorCode } from "./errors.js";
import { hasMagic, type Magic } from "./wire.js";

/** Hands bytes of the client to whoever owns the connection. */
export type Send = (bytes: Uint8Array) => void;

export interface OptionReply {
  readonly type: number;
  readonly payload: Buffer;
}

const OPTION_NAMES = new Map([
  [1, "NBD_OPT_EXPORT_NAME"],
  [2, "NBD_OPT_ABORT"],
  [3, "NBD_OPT_LIST"],
  [5, "NBD_OPT_STARTTLS"],
  [6, "NBD_OPT_INFO"],
  [7, "NBD_OPT_GO"],
  [8, "NBD_OPT_STRUCTURED_REPLY"],
  [9, "NBD_OPT_LIST_META_CONTEXT"],
  [10, "NBD_OPT_SET_META_CONTEXT"],
  [11, "NBD_OPT_EXTENDED_HEADERS"],
]);

function optionName(option: number): string {
  return OPTION_NAMES.get(option) ?? `option ${option}`;
}

/** Sends one option. The protocol allows one in flight, so its replies must be read before the next. */
export function sendOption(send: Send, option: number, data: Buffer = Buffer.alloc(0)): void {
  const header = Buffer.alloc(16);
  writeMagic(header, OPTION_MAGIC);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  send(Buffer.concat([header, data]));
}

function writeMagic(bytes: Buffer, magic: Magic): void {
  bytes.writeUInt32BE(magic.high, 0);
  bytes.writeUInt32BE(magic.low, 4);
}

/** Reads one reply to `option` ("Fixed newstyle negotiation"). */
export function* readOptionReply(option: number): ByteParser<OptionReply> {
  const magic = yield* takeBytes(8);
  if (!hasMagic(magic, OPTION_REPLY_MAGIC)) {
    throw new NbdError(
      "BAD_MAGIC",
      `Expected the magic of a reply to ${optionName(option)}, the server sent ${magic.toString("hex")}`,
    );
  }
  const header = yield* takeBytes(12);
  const echoed = header.readUInt32BE(0);
  const type = header.readUInt32BE(4);
  const length = header.readUInt32BE(8);
  if (echoed !== option) {
    throw badOptionReply(option, `the server answered ${optionName(echoed)}`);
  }
  if (length > LIMIT.optionReplyBytes) {
    throw badOptionReply(option, `it has ${length} bytes, at most ${LIMIT.optionReplyBytes} are accepted`);
  }
  if (type === OPTION_REPLY.ACK && length !== 0) {
    throw badOptionReply(option, `an acknowledgement has no payload, this one has ${length} bytes`);
  }
  return { type, payload: yield* takeBytes(length) };
}

/**
 * Reads replies to `option` until its ACK (true) or an error reply (that reply). The others go to `each`, which
 * returns false for a type it does not know: fatal, unlike unknown errors.
 */
export function* readOptionReplies(
  option: number,
  each: (reply: OptionReply) => boolean,
): ByteParser<true | OptionReply> {
  for (let count = 0; count <= LIMIT.optionReplies; count += 1) {
    const reply = yield* readOptionReply(option);
    if (reply.type === OPTION_REPLY.ACK) return true;
    if (isErrorReply(reply)) return reply;
    if (!each(reply)) throw badOptionReply(option, `its type ${reply.type} is not known`);
  }
  throw badOptionReply(option, `more than ${LIMIT.optionReplies} replies came without an acknowledgement`);
}

export function isErrorReply(reply: OptionReply): boolean {
  return reply.type >= 0x80000000;
}

export function badOptionReply(option: number, what: string): NbdError {
  return new NbdError("BAD_REPLY", `The reply to ${optionName(option)} is malformed: ${what}`);
}

const REFUSALS: ReadonlyMap<number, { readonly code: NbdErrorCode; readonly meaning: string }> = new Map([
  [OPTION_REPLY.ERR_UNSUP, { code: "OPTION_REFUSED", meaning: "the server does not support it" }],
  [OPTION_REPLY.ERR_POLICY, { code: "OPTION_REFUSED", meaning: "the server's policy forbids it" }],
  [OPTION_REPLY.ERR_INVALID, { code: "OPTION_REFUSED", meaning: "the server finds it invalid" }],
  [OPTION_REPLY.ERR_PLATFORM, { code: "OPTION_REFUSED", meaning: "the server's platform cannot do it" }],
  [OPTION_REPLY.ERR_TLS_REQD, { code: "TLS_REQUIRED", meaning: "the server requires TLS" }],
  [OPTION_REPLY.ERR_UNKNOWN, { code: "EXPORT_NOT_FOUND", meaning: "the server has no such export" }],
  [OPTION_REPLY.ERR_SHUTDOWN, { code: "SERVER_SHUTTING_DOWN", meaning: "the server is shutting down" }],
  [
    OPTION_REPLY.ERR_BLOCK_SIZE_REQD,
    { code: "OPTION_REFUSED", meaning: "the server insists on its block sizes" },
  ],
  [OPTION_REPLY.ERR_TOO_BIG, { code: "OPTION_REFUSED", meaning: "the server finds it too long" }],
]);

/** The error that an error reply to an option means to the caller. */
export function optionRefused(option: number, reply: OptionReply, exportName: string): NbdError {
  const refusal = REFUSALS.get(reply.type) ?? {
    code: "OPTION_REFUSED" as const,
    meaning: `the server answered with the unknown error 0x${reply.type.toString(16)}`,
  };
  const serverText = cleanText(reply.payload.subarray(0, LIMIT.stringBytes));
  const quoted = serverText === "" ? "" : `: ${serverText}`;
  return new NbdError(
    refusal.code,
    `${optionName(option)} for export ${JSON.stringify(exportName)} was refused: ${refusal.meaning}${quoted}`,
    { serverText },
  );
}
