/** Bytes as a server sends them, right or wrong: the tests' own reading of the protocol, not the client's. */

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

export const OPT = {
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
export const REP = { ACK: 1, SERVER: 2, INFO: 3, META_CONTEXT: 4 } as const;
export const REP_ERR = {
  UNSUP: 0x80000001,
  POLICY: 0x80000002,
  TLS_REQD: 0x80000005,
  UNKNOWN: 0x80000006,
  SHUTDOWN: 0x80000007,
} as const;
export const CHUNK = {
  NONE: 0,
  DATA: 1,
  HOLE: 2,
  STATUS: 5,
  STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/** HAS_FLAGS and everything a writable QEMU export offers, except READ_ONLY. */
export const ALL_FLAGS = 0b1101_1110_1101;

/** Flags: 1 fixed newstyle, 2 no zeroes. */
export function greeting(flags = 3): Buffer {
  return Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(flags)]);
}

export function optionReply(option: number, type: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(0x3e889045565a9n), u32(option), u32(type), u32(payload.length), payload]);
}

export function exportInfo(sizeBytes: number | bigint, flags = ALL_FLAGS): Buffer {
  return Buffer.concat([u16(0), u64(sizeBytes), u16(flags)]);
}

export function blockSizeInfo(minimum: number, preferred: number, maximum: number): Buffer {
  return Buffer.concat([u16(3), u32(minimum), u32(preferred), u32(maximum)]);
}

export function simpleReply(cookie: number | bigint, error = 0, payload: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u32(0x67446698), u32(error), u64(cookie), payload]);
}

export function chunk(cookie: number | bigint, type: number, payload: Buffer, done: boolean): Buffer {
  const header = [u32(0x668e33ef), u16(done ? 1 : 0), u16(type), u64(cookie), u32(payload.length)];
  return Buffer.concat([...header, payload]);
}

/** The same chunk under extended headers: with the offset of its request, and a length of 64 bits. */
export function extended(structured: Buffer, requestOffset: number | bigint): Buffer {
  return Buffer.concat([
    u32(0x6e8a278c),
    structured.subarray(4, 16),
    u64(requestOffset),
    u64(structured.readUInt32BE(16)),
    structured.subarray(20),
  ]);
}

/** Extents in 64 bits. To be wrapped in `extended`. */
export function statusExtChunk(
  cookie: number,
  contextId: number,
  extents: readonly (readonly [length: number | bigint, flags: number | bigint])[],
  done = false,
  count = extents.length,
): Buffer {
  const descriptors = extents.flatMap(([length, flags]) => [u64(length), u64(flags)]);
  return chunk(cookie, CHUNK.STATUS_EXT, Buffer.concat([u32(contextId), u32(count), ...descriptors]), done);
}

export function dataChunk(cookie: number, offset: number, data: Buffer, done = false): Buffer {
  return chunk(cookie, CHUNK.DATA, Buffer.concat([u64(offset), data]), done);
}

export function holeChunk(cookie: number, offset: number, length: number, done = false): Buffer {
  return chunk(cookie, CHUNK.HOLE, Buffer.concat([u64(offset), u32(length)]), done);
}

export function doneChunk(cookie: number): Buffer {
  return chunk(cookie, CHUNK.NONE, Buffer.alloc(0), true);
}

export function errorChunk(cookie: number, errno: number, text: string, done = true): Buffer {
  return chunk(
    cookie,
    CHUNK.ERROR,
    Buffer.concat([u32(errno), u16(Buffer.byteLength(text)), Buffer.from(text)]),
    done,
  );
}

export function errorOffsetChunk(cookie: number, errno: number, offset: number, done = true): Buffer {
  return chunk(cookie, CHUNK.ERROR_OFFSET, Buffer.concat([u32(errno), u16(0), u64(offset)]), done);
}

export function statusChunk(
  cookie: number,
  contextId: number,
  extents: readonly (readonly [length: number, flags: number])[],
  done = false,
): Buffer {
  const descriptors = extents.flatMap(([length, flags]) => [u32(length), u32(flags)]);
  return chunk(cookie, CHUNK.STATUS, Buffer.concat([u32(contextId), ...descriptors]), done);
}
