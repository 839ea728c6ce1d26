import {
  COMMAND,
  COMMAND_FLAG,
  EXTENDED_REQUEST_MAGIC,
  REQUEST_MAGIC,
  type CommandName,
} from "./constants.js";
import { writeUint64 } from "./wire.js";

export interface Request {
  readonly command: CommandName;
  readonly flags: number;
  /** In bytes; offset and length are 0 for commands without a range. */
  readonly offset: number;
  readonly length: number;
}

const HEADER_BYTES = 28;
const EXTENDED_HEADER_BYTES = 32;

/** "Request message" */
export function encodeRequest(request: Request, cookie: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES);
  header.writeUInt32BE(REQUEST_MAGIC, 0);
  header.writeUInt16BE(request.flags, 4);
  writeMiddle(header, request, cookie);
  header.writeUInt32BE(request.length, 24);
  return header;
}

/** "Extended request message": 64 bits of length, which say by a flag whether they count a payload or an effect. */
export function encodeExtendedRequest(request: Request, cookie: number): Buffer {
  const header = Buffer.allocUnsafe(EXTENDED_HEADER_BYTES);
  const payloadFlag = request.command === "WRITE" ? COMMAND_FLAG.PAYLOAD_LEN : 0;
  header.writeUInt32BE(EXTENDED_REQUEST_MAGIC, 0);
  header.writeUInt16BE(request.flags | payloadFlag, 4);
  writeMiddle(header, request, cookie);
  writeUint64(header, request.length, 24);
  return header;
}

function writeMiddle(header: Buffer, request: Request, cookie: number): void {
  header.writeUInt16BE(COMMAND[request.command], 6);
  writeUint64(header, cookie, 8);
  writeUint64(header, request.offset, 16);
}
