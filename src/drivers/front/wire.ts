/** The server's side of the NBD handshake (NetworkBlockDevice/nbd, doc/proto.md, "Fixed newstyle negotiation"). */

import {
  HANDSHAKE_FLAG,
  hasMagic,
  lengthPrefixed,
  type Magic,
  NBD_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY_ERROR_BIT,
  OPTION_REPLY_MAGIC,
  uint16,
  uint32,
} from "nbd-client-ts/protocol";

export const LIMIT = {
  /** Strings of the protocol ("Conventions"). */
  stringBytes: 4096,
  /** The data of one option: a name and many queries for contexts. */
  optionBytes: 65536,
  /** Before TLS only options without data make sense; others are skipped, for their reply. */
  clearOptionBytes: 8192,
  clearOptions: 16,
  /** All options of a client: some hundred exports can be asked about one by one. */
  optionsBytes: 1 << 20,
  optionsTotal: 4096,
  /** What a backend may answer to one option. */
  backendReplyBytes: 65536,
  backendRepliesBytes: 1 << 20,
} as const;

export const OPTION_HEADER_BYTES = 16;
export const REPLY_HEADER_BYTES = 20;
export const GREETING_BYTES = 18;

export interface Option {
  readonly option: number;
  readonly data: Buffer;
}

export interface Reply {
  readonly type: number;
  readonly payload: Buffer;
}

export function isError(reply: Reply): boolean {
  return reply.type >= OPTION_REPLY_ERROR_BIT;
}

export function greeting(): Buffer {
  const flags = uint16(HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES);
  return Buffer.concat([magic(NBD_MAGIC), magic(OPTION_MAGIC), flags]);
}

/** The handshake flags of a server's greeting, or undefined if it is none. */
export function parseGreeting(bytes: Buffer): number | undefined {
  const isGreeting = hasMagic(bytes, NBD_MAGIC) && hasMagic(bytes, OPTION_MAGIC, 8);
  return isGreeting ? bytes.readUInt16BE(16) : undefined;
}

export function optionRequest(option: number, data: Buffer): Buffer {
  return Buffer.concat([magic(OPTION_MAGIC), uint32(option), uint32(data.length), data]);
}

export function parseOptionHeader(header: Buffer): { option: number; length: number } | undefined {
  if (!hasMagic(header, OPTION_MAGIC)) return undefined;
  return { option: header.readUInt32BE(8), length: header.readUInt32BE(12) };
}

export function optionReply(option: number, { type, payload }: Reply): Buffer {
  const head = [magic(OPTION_REPLY_MAGIC), uint32(option), uint32(type), uint32(payload.length)];
  return Buffer.concat([...head, payload]);
}

export function parseReplyHeader(
  header: Buffer,
): { option: number; type: number; length: number } | undefined {
  if (!hasMagic(header, OPTION_REPLY_MAGIC)) return undefined;
  return {
    option: header.readUInt32BE(8),
    type: header.readUInt32BE(12),
    length: header.readUInt32BE(16),
  };
}

/** An option's data that begins with the name of an export. */
export interface NamedData {
  readonly exportName: string;
  /** All after the name. */
  readonly rest: Buffer;
}

/**
 * The data of INFO, GO and the metadata options, or undefined unless all of it is as the protocol says: nothing
 * malformed gets to a backend.
 */
export function parseNamed(option: number, data: Buffer): NamedData | undefined {
  const name = stringAt(data, 0);
  if (name === undefined) return undefined;
  const exportName = decode(name);
  const rest = data.subarray(4 + name.length);
  if (exportName === undefined) return undefined;
  const isMeta = option === OPTION.LIST_META_CONTEXT || option === OPTION.SET_META_CONTEXT;
  return (isMeta ? areQueries(rest) : areInfoRequests(rest)) ? { exportName, rest } : undefined;
}

/** A name as the protocol wants it; undefined for one that is too long or not UTF-8. */
export function decode(bytes: Buffer): string | undefined {
  if (bytes.length > LIMIT.stringBytes) return undefined;
  const text = bytes.toString("utf8");
  return Buffer.from(text, "utf8").equals(bytes) ? text : undefined;
}

export function namedData(exportName: string, rest: Buffer): Buffer {
  return Buffer.concat([lengthPrefixed(exportName), rest]);
}

function magic({ high, low }: Magic): Buffer {
  return Buffer.concat([uint32(high), uint32(low)]);
}

function stringAt(data: Buffer, at: number): Buffer | undefined {
  if (data.length < at + 4) return undefined;
  const length = data.readUInt32BE(at);
  if (length > LIMIT.stringBytes || length > data.length - at - 4) return undefined;
  return data.subarray(at + 4, at + 4 + length);
}

function areInfoRequests(rest: Buffer): boolean {
  return rest.length >= 2 && rest.length === 2 + 2 * rest.readUInt16BE(0);
}

function areQueries(rest: Buffer): boolean {
  if (rest.length < 4) return false;
  let at = 4;
  for (let left = rest.readUInt32BE(0); left > 0; left -= 1) {
    const query = stringAt(rest, at);
    if (query === undefined) return false;
    at += 4 + query.length;
  }
  return at === rest.length;
}
