/** Numbers of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md, section "Values"). */

/** Magic values of 64 bits are kept as their two halves: a `number` cannot hold them. */
export const NBD_MAGIC = { high: 0x4e42444d, low: 0x41474943 } as const; // "NBDMAGIC"
export const OPTION_MAGIC = { high: 0x49484156, low: 0x454f5054 } as const; // "IHAVEOPT"
export const OLDSTYLE_MAGIC = { high: 0x00004202, low: 0x81861253 } as const;
export const OPTION_REPLY_MAGIC = { high: 0x0003e889, low: 0x045565a9 } as const;
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** Handshake flags (server) and client flags share the meaning of their low two bits. */
export const HANDSHAKE_FLAG = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;

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
  EXTENDED_HEADERS: 11,
} as const;

/** Option replies with this bit are errors, also those we do not know. */
export const OPTION_REPLY_ERROR_BIT = 0x80000000;
export const OPTION_REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: OPTION_REPLY_ERROR_BIT + 1,
  ERR_POLICY: OPTION_REPLY_ERROR_BIT + 2,
  ERR_INVALID: OPTION_REPLY_ERROR_BIT + 3,
  ERR_PLATFORM: OPTION_REPLY_ERROR_BIT + 4,
  ERR_TLS_REQD: OPTION_REPLY_ERROR_BIT + 5,
  ERR_UNKNOWN: OPTION_REPLY_ERROR_BIT + 6,
  ERR_SHUTDOWN: OPTION_REPLY_ERROR_BIT + 7,
  ERR_BLOCK_SIZE_REQD: OPTION_REPLY_ERROR_BIT + 8,
  ERR_TOO_BIG: OPTION_REPLY_ERROR_BIT + 9,
} as const;

export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const TRANSMISSION_FLAG = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  /** Only with extended headers: BLOCK_STATUS may have a payload that names contexts. */
  BLOCK_STAT_PAYLOAD: 1 << 12,
} as const;

export const COMMAND = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;
export type CommandName = keyof typeof COMMAND;

export const COMMAND_FLAG = {
  FUA: 1,
  NO_HOLE: 2,
  DF: 4,
  REQ_ONE: 8,
  FAST_ZERO: 16,
  /** With extended headers: the length in the header is that of the payload. */
  PAYLOAD_LEN: 32,
} as const;

export const CHUNK_FLAG_DONE = 1;
export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;
/** Chunk types with this bit are errors, also those we do not know. */
export const CHUNK_ERROR_BIT = 0x8000;

/** What this client accepts and sends at most, each with its reason. */
export const LIMIT = {
  /** Strings of the protocol: names, contexts, messages. */
  stringBytes: 4096,
  /** `sun_path` without its end: Node 20 cuts a longer path off and connects to whatever that names. */
  socketPathBytes: 107,
  /** One option reply: far above any valid one, far below what would hurt. */
  optionReplyBytes: 65536,
  /** Replies to one option before its ACK: a server may not feed us for ever. */
  optionReplies: 16384,
  /** Descriptors in one BLOCK_STATUS chunk; QEMU sends at most 131,072. */
  extentsPerChunk: 1 << 20,
  /** READ and WRITE without an agreed maximum ("Size constraints"). */
  defaultMaximumBytes: 32 << 20,
  /** Our own READ and WRITE requests: half of the work per byte that 1 MiB costs, if the server is warm (`warmUp`). */
  payloadBytes: 2 << 20,
  /** glibc keeps mapped what it frees up to twice this size: all that a connection's requests need at once. Its limit is 32 MiB. */
  warmUpBytes: 16 << 20,
  /** A copy of less is over before a warm-up pays. */
  worthWarmUpBytes: 256 << 20,
  /** Our own TRIM and WRITE_ZEROES requests: a server that must write the zeroes still answers in time. */
  zeroBytes: 128 << 20,
  /** The first BLOCK_STATUS request of a walk, and any where the map is dense. */
  statusBytes: 1 << 30,
  /** The largest of a walk through a sparse map, in 32 bits. */
  statusWideBytes: 2 ** 31,
  /** With extended headers. QEMU's main loop stands still while it looks at a large hole, 0.3 to 0.6 s for 16 TiB at once. */
  statusExtendedBytes: 2 ** 37,
  /** One TRIM or fast zero with extended headers: more than 32 bits hold, and only metadata for the server. */
  fastExtendedBytes: 2 ** 35,
  /** CACHE requests: QEMU accepts no more, although nothing travels. */
  cacheBytes: 32 << 20,
  /** Requests without a payload, once a server found larger ones too large. */
  cautiousBytes: 32 << 20,
  /** Lengths on the wire have 32 bits. */
  wireLengthBytes: 0xffffffff,
  /** Requests on the wire at once: QEMU serves 16 per connection and leaves the rest unread. */
  inFlight: 16,
  /** Connections of one pool. */
  connections: 16,
  /** Pieces of one large call on the wire at once, per connection: enough to keep a local server busy, and other calls get their turn. */
  piecesInFlight: 4,
} as const;
