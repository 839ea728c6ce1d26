import { takeBytes, type ByteParser } from "./byte-feeder.js";
import {
  CHUNK,
  CHUNK_ERROR_BIT,
  CHUNK_FLAG_DONE,
  EXTENDED_REPLY_MAGIC,
  LIMIT,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "./constants.js";
import { cleanText, errnoName, NbdError } from "./errors.js";
import { describeRange, type AckReceiver } from "./receiver.js";
import type { ReadAssembler } from "./read-assembler.js";
import type { StatusCollector } from "./status-collector.js";
import { getUint64, readUint64 } from "./wire.js";

export type ReplyReceiver = AckReceiver | ReadAssembler | StatusCollector;

/** The requests that the server owes a reply. */
export interface ReplyTable {
  readonly structuredReplies: boolean;
  /** Every reply is then an extended one. */
  readonly extendedHeaders: boolean;
  /** Throws if no such request is in flight. */
  find(cookie: number): ReplyReceiver;
  /** The reply is complete, or carried an error, which the receiver holds. */
  finish(cookie: number): void;
}

interface Chunk {
  readonly flags: number;
  readonly type: number;
  readonly cookie: number;
  readonly lengthBytes: number;
  /** The offset of the request, which only extended headers repeat. */
  readonly requestOffset?: number;
}

/** Where the numbers of a chunk of data or of a hole are received, always the same memory: they are read at once. */
interface SmallContent {
  readonly view: DataView;
  readonly offset: Uint8Array;
  readonly hole: Uint8Array;
}

function smallContent(): SmallContent {
  const memory = new ArrayBuffer(12);
  return { view: new DataView(memory), offset: new Uint8Array(memory, 0, 8), hole: new Uint8Array(memory) };
}

/** 6 bytes of error and text length, the text, and 8 bytes of offset. */
const MAX_ERROR_BYTES = 6 + LIMIT.stringBytes + 8;

/** Parses everything a server sends after the handshake. Throws an `NbdError` at the first violation. */
export function* parseReplies(table: ReplyTable): ByteParser<never> {
  const memory = new ArrayBuffer(32);
  const header = new DataView(memory);
  const magicPart = new Uint8Array(memory, 0, 4);
  const simplePart = new Uint8Array(memory, 4, 12);
  const structuredPart = new Uint8Array(memory, 4, 16);
  const extendedPart = new Uint8Array(memory, 4, 28);
  const content = smallContent();
  for (;;) {
    yield magicPart;
    const magic = header.getUint32(0);
    if (magic === SIMPLE_REPLY_MAGIC) {
      yield simplePart;
      yield* parseSimpleReply(table, getUint64(header, 8), header.getUint32(4));
    } else if (magic === EXTENDED_REPLY_MAGIC) {
      yield extendedPart;
      yield* parseChunk(
        table,
        {
          flags: header.getUint16(4),
          type: header.getUint16(6),
          cookie: getUint64(header, 8),
          requestOffset: getUint64(header, 16),
          lengthBytes: getUint64(header, 24),
        },
        content,
      );
    } else if (magic === STRUCTURED_REPLY_MAGIC) {
      yield structuredPart;
      yield* parseChunk(
        table,
        {
          flags: header.getUint16(4),
          type: header.getUint16(6),
          cookie: getUint64(header, 8),
          lengthBytes: header.getUint32(16),
        },
        content,
      );
    } else {
      throw new NbdError(
        "BAD_MAGIC",
        `Expected the magic of a reply, the server sent 0x${magic.toString(16)}`,
      );
    }
  }
}

/** "Simple reply message": a payload follows only a successful READ. */
function* parseSimpleReply(table: ReplyTable, cookie: number, error: number): ByteParser<void> {
  if (table.extendedHeaders) throw unexpectedReply("an extended", "a simple");
  const receiver = table.find(cookie);
  const mustBeStructured =
    receiver.kind === "read" ? table.structuredReplies : receiver.kind === "status" && error === 0;
  if (mustBeStructured) {
    throw new NbdError(
      "UNEXPECTED_REPLY",
      `Expected a structured reply to ${describeRange(receiver.range)}, the server sent a simple one`,
    );
  }
  if (error !== 0) receiver.fail({ errno: errnoName(error), text: "" });
  else if (receiver.kind === "read") yield receiver.whole();
  finish(table, cookie, receiver);
}

function* parseChunk(table: ReplyTable, chunk: Chunk, content: SmallContent): ByteParser<void> {
  const sent = chunk.requestOffset === undefined ? "a structured" : "an extended";
  if (table.extendedHeaders !== (chunk.requestOffset !== undefined)) {
    throw unexpectedReply(table.extendedHeaders ? "an extended" : "no extended", sent);
  }
  if (!table.structuredReplies) throw unexpectedReply("a simple", sent);
  const receiver = table.find(chunk.cookie);
  if (chunk.requestOffset !== undefined && chunk.requestOffset !== receiver.range.offset) {
    throw receiver.violation("BAD_REPLY", `a chunk for a request at offset ${chunk.requestOffset}`);
  }
  yield* parseContent(receiver, chunk, content);
  if ((chunk.flags & CHUNK_FLAG_DONE) !== 0) finish(table, chunk.cookie, receiver);
}

function* parseContent(receiver: ReplyReceiver, chunk: Chunk, content: SmallContent): ByteParser<void> {
  if (chunk.type === CHUNK.NONE) {
    checkLength(receiver, chunk, chunk.lengthBytes === 0 && (chunk.flags & CHUNK_FLAG_DONE) !== 0);
  } else if (chunk.type === CHUNK.OFFSET_DATA && receiver.kind === "read") {
    checkLength(receiver, chunk, chunk.lengthBytes >= 9);
    yield content.offset;
    yield receiver.data(getUint64(content.view, 0), chunk.lengthBytes - 8);
  } else if (chunk.type === CHUNK.OFFSET_HOLE && receiver.kind === "read") {
    checkLength(receiver, chunk, chunk.lengthBytes === 12);
    yield content.hole;
    const length = content.view.getUint32(8);
    if (length === 0) throw receiver.violation("BAD_REPLY", "a hole of length 0");
    receiver.hole(getUint64(content.view, 0), length);
  } else if (chunk.type === CHUNK.BLOCK_STATUS && receiver.kind === "status") {
    const extents = (chunk.lengthBytes - 4) / 8;
    checkLength(
      receiver,
      chunk,
      Number.isInteger(extents) && extents >= 1 && extents <= LIMIT.extentsPerChunk,
    );
    receiver.status(yield* takeBytes(chunk.lengthBytes));
  } else if (chunk.type === CHUNK.BLOCK_STATUS_EXT && receiver.kind === "status" && isExtended(chunk)) {
    const extents = (chunk.lengthBytes - 8) / 16;
    checkLength(
      receiver,
      chunk,
      Number.isInteger(extents) && extents >= 1 && extents <= LIMIT.extentsPerChunk,
    );
    receiver.extendedStatus(yield* takeBytes(chunk.lengthBytes));
  } else if ((chunk.type & CHUNK_ERROR_BIT) !== 0) {
    yield* parseError(receiver, chunk);
  } else {
    throw receiver.violation("BAD_REPLY", `a chunk of type ${chunk.type}, which does not belong there`);
  }
}

/** Error types that we do not know begin like those that we do ("Structured reply types"). */
function* parseError(receiver: ReplyReceiver, chunk: Chunk): ByteParser<void> {
  checkLength(receiver, chunk, chunk.lengthBytes >= 6 && chunk.lengthBytes <= MAX_ERROR_BYTES);
  const content = yield* takeBytes(chunk.lengthBytes);
  const error = content.readUInt32BE(0);
  if (error === 0) throw receiver.violation("BAD_REPLY", "an error chunk without an error");
  const textEnd = 6 + content.readUInt16BE(4);
  const hasOffset = chunk.type === CHUNK.ERROR_OFFSET;
  const fits = hasOffset ? textEnd + 8 === content.length : textEnd <= content.length;
  checkLength(receiver, chunk, fits && textEnd <= 6 + LIMIT.stringBytes);
  receiver.fail({
    errno: errnoName(error),
    text: cleanText(content.subarray(6, textEnd)),
    ...(hasOffset ? { offset: readUint64(content, textEnd) } : {}),
  });
}

function isExtended(chunk: Chunk): boolean {
  return chunk.requestOffset !== undefined;
}

function unexpectedReply(expected: string, sent: string): NbdError {
  return new NbdError("UNEXPECTED_REPLY", `Expected ${expected} reply, the server sent ${sent} one`);
}

function checkLength(receiver: ReplyReceiver, chunk: Chunk, valid: boolean): void {
  if (valid) return;
  const done = (chunk.flags & CHUNK_FLAG_DONE) === 0 ? "without" : "with";
  throw receiver.violation(
    "BAD_REPLY",
    `a chunk of type ${chunk.type} and ${chunk.lengthBytes} bytes ${done} the DONE flag, which cannot be`,
  );
}

function finish(table: ReplyTable, cookie: number, receiver: ReplyReceiver): void {
  if (receiver.error === undefined) receiver.complete();
  table.finish(cookie);
}
