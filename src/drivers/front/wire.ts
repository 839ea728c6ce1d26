/** The server's side of the NBD handshake (NetworkBlockDevice/nbd, doc/proto.md, "Fixed newstyle negotiation"). */

export const OPTION = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
} as const;

const ERROR_BIT = 0x80000000;
export const REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: ERROR_BIT + 1,
  ERR_POLICY: ERROR_BIT + 2,
  ERR_INVALID: ERROR_BIT + 3,
  ERR_TLS_REQD: ERROR_BIT + 5,
  ERR_UNKNOWN: ERROR_BIT + 6,
  ERR_SHUTDOWN: ERROR_BIT + 7,
} as const;

export const INFO = { EXPORT: 0, NAME: 1 } as const;
/** Handshake flags of the server and flags of the client share their low two bits. */
export const FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
export const TRANSMISSION_READ_ONLY = 2;

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
const NBD_MAGIC = Buffer.from("NBDMAGIC");
const OPTION_MAGIC = Buffer.from("IHAVEOPT");
const REPLY_MAGIC = Buffer.from("0003e889045565a9", "hex");
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
  return reply.type >= ERROR_BIT;
}

export function greeting(): Buffer {
  return Buffer.concat([NBD_MAGIC, OPTION_MAGIC, uint16(FLAG.FIXED_NEWSTYLE | FLAG.NO_ZEROES)]);
}

/** The handshake flags of a server's greeting, or undefined if it is none. */
export function parseGreeting(bytes: Buffer): number | undefined {
  const isGreeting = bytes.subarray(0, 8).equals(NBD_MAGIC) && bytes.subarray(8, 16).equals(OPTION_MAGIC);
  return isGreeting ? bytes.readUInt16BE(16) : undefined;
}

export function optionRequest(option: number, data: Buffer): Buffer {
  return Buffer.concat([OPTION_MAGIC, uint32(option), uint32(data.length), data]);
}

export function parseOptionHeader(header: Buffer): { option: number; length: number } | undefined {
  if (!header.subarray(0, 8).equals(OPTION_MAGIC)) return undefined;
  return { option: header.readUInt32BE(8), length: header.readUInt32BE(12) };
}

export function optionReply(option: number, { type, payload }: Reply): Buffer {
  return Buffer.concat([REPLY_MAGIC, uint32(option), uint32(type), uint32(payload.length), payload]);
}

export function parseReplyHeader(
  header: Buffer,
): { option: number; type: number; length: number } | undefined {
  if (!header.subarray(0, 8).equals(REPLY_MAGIC)) return undefined;
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

export function lengthPrefixed(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  return Buffer.concat([uint32(bytes.length), bytes]);
}

export function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
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
