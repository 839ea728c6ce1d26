import {
  COMMAND,
  COMMAND_FLAG,
  EXTENDED_REQUEST_MAGIC,
  REQUEST_MAGIC,
  type CommandName,
} from "./constants.js";
import { setUint64 } from "./wire.js";

export interface Request {
  readonly command: CommandName;
  readonly flags: number;
  /** In bytes; offset and length are 0 for commands without a range. */
  readonly offset: number;
  /** With the flag PAYLOAD_LEN that of the payload, which then says how far the request reaches. */
  readonly length: number;
}

const HEADER_BYTES = 28;
const EXTENDED_HEADER_BYTES = 32;

/** "Request message" */
export function encodeRequest(request: Request, cookie: number): Uint8Array {
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  header.setUint32(0, REQUEST_MAGIC);
  header.setUint16(4, request.flags);
  setMiddle(header, request, cookie);
  header.setUint32(24, request.length);
  return new Uint8Array(header.buffer);
}

/** "Extended request message": 64 bits of length, which say by a flag whether they count a payload or an effect. */
export function encodeExtendedRequest(request: Request, cookie: number): Uint8Array {
  const header = new DataView(new ArrayBuffer(EXTENDED_HEADER_BYTES));
  const payloadFlag = request.command === "WRITE" ? COMMAND_FLAG.PAYLOAD_LEN : 0;
  header.setUint32(0, EXTENDED_REQUEST_MAGIC);
  header.setUint16(4, request.flags | payloadFlag);
  setMiddle(header, request, cookie);
  setUint64(header, 24, request.length);
  return new Uint8Array(header.buffer);
}

/** Payload of a BLOCK_STATUS request with PAYLOAD_LEN: how long its range is, and the ids of the contexts it is about. */
export function encodeStatusFilter(rangeBytes: number, contextIds: readonly number[]): Uint8Array {
  const payload = new DataView(new ArrayBuffer(8 + 4 * contextIds.length));
  setUint64(payload, 0, rangeBytes);
  contextIds.forEach((id, index) => payload.setUint32(8 + 4 * index, id));
  return new Uint8Array(payload.buffer);
}

function setMiddle(header: DataView, request: Request, cookie: number): void {
  header.setUint16(6, COMMAND[request.command]);
  setUint64(header, 8, cookie);
  setUint64(header, 16, request.offset);
}
