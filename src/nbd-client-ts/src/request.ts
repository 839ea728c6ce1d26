import { COMMAND, REQUEST_MAGIC, type CommandName } from "./constants.js";
import { writeUint64 } from "./wire.js";

export interface Request {
  readonly command: CommandName;
  readonly flags: number;
  /** In bytes; offset and length are 0 for commands without a range. */
  readonly offset: number;
  readonly length: number;
}

const HEADER_BYTES = 28;

/** "Request message". Extended headers will be a second encoder beside this one. */
export function encodeRequest(request: Request, cookie: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES);
  header.writeUInt32BE(REQUEST_MAGIC, 0);
  header.writeUInt16BE(request.flags, 4);
  header.writeUInt16BE(COMMAND[request.command], 6);
  writeUint64(header, cookie, 8);
  writeUint64(header, request.offset, 16);
  header.writeUInt32BE(request.length, 24);
  return header;
}
