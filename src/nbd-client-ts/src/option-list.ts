import type { ByteParser } from "./byte-feeder.js";
import { LIMIT, OPTION, OPTION_REPLY } from "./constants.js";
import { cleanText } from "./errors.js";
import {
  badOptionReply,
  optionRefused,
  readOptionReplies,
  sendOption,
  type OptionReply,
  type Send,
} from "./option.js";

export interface ListedExport {
  readonly name: string;
  /** Free text of the server for humans; may be empty. */
  readonly description: string;
}

/** Asks for the names of all exports. */
export function* list(send: Send): ByteParser<readonly ListedExport[]> {
  sendOption(send, OPTION.LIST);
  const found: ListedExport[] = [];
  const end = yield* readOptionReplies(OPTION.LIST, (reply) => {
    if (reply.type !== OPTION_REPLY.SERVER) return false;
    found.push(readExport(reply));
    return true;
  });
  if (end !== true) throw optionRefused(OPTION.LIST, end, "");
  return found;
}

function readExport(reply: OptionReply): ListedExport {
  const nameBytes = reply.payload.length < 4 ? Infinity : reply.payload.readUInt32BE(0);
  if (nameBytes > reply.payload.length - 4) {
    throw badOptionReply(OPTION.LIST, "the name is longer than its reply");
  }
  // Many long ones add up: a list is the one answer that is kept as a whole.
  if (reply.payload.length > 4 + 2 * LIMIT.stringBytes) {
    throw badOptionReply(OPTION.LIST, `a name or description is longer than ${LIMIT.stringBytes} bytes`);
  }
  return {
    name: reply.payload.toString("utf8", 4, 4 + nameBytes),
    description: cleanText(reply.payload.subarray(4 + nameBytes)),
  };
}
