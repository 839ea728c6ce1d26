import type { ByteParser } from "./byte-feeder.js";
import { takeBytes } from "./byte-feeder.js";
import { INFO, LIMIT, OPTION, OPTION_REPLY } from "./constants.js";
import { cleanText, NbdError } from "./errors.js";
import {
  badOptionReply,
  optionRefused,
  readOptionReplies,
  sendOption,
  type OptionReply,
  type Send,
} from "./option.js";
import { lengthPrefixed, readUint64, uint16 } from "./wire.js";

/** Sizes that requests should have ("Size constraints"), in bytes. */
export interface BlockSize {
  /** Offsets and lengths are multiples of this, except at the end of the export. */
  readonly minimumBytes: number;
  /** Multiples of this are the fastest. */
  readonly preferredBytes: number;
  /** The largest payload of one READ or WRITE. */
  readonly maximumBytes: number;
}

/** What the server says about an export. */
export interface ExportInfo {
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
  readonly blockSize: BlockSize;
}

/** What NBD_OPT_INFO tells about an export. */
export interface ExportDetails extends ExportInfo {
  /** The server's own name of the export: that of the default export, for example. */
  readonly name: string;
  /** Free text of the server for humans; may be empty. */
  readonly description: string;
}

/** Without an agreement: what a client that wants to work with any server keeps to. */
const DEFAULT_BLOCK_SIZE: BlockSize = {
  minimumBytes: 512,
  preferredBytes: 4096,
  maximumBytes: LIMIT.defaultMaximumBytes,
};

/** Enters the export with NBD_OPT_GO. Returns undefined when the server does not know the option. */
export function* go(send: Send, exportName: string): ByteParser<ExportInfo | undefined> {
  const answer = yield* ask(send, OPTION.GO, exportName, [INFO.BLOCK_SIZE]);
  if (!("type" in answer)) {
    const { sizeBytes, transmissionFlags, blockSize } = answer;
    return { sizeBytes, transmissionFlags, blockSize };
  }
  if (answer.type === OPTION_REPLY.ERR_UNSUP) return undefined;
  throw optionRefused(OPTION.GO, answer, exportName);
}

/** Asks about the export with NBD_OPT_INFO, which has the same replies but does not end the handshake. */
export function* info(send: Send, exportName: string): ByteParser<ExportDetails> {
  const wanted = [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
  const answer = yield* ask(send, OPTION.INFO, exportName, wanted);
  if ("type" in answer) throw optionRefused(OPTION.INFO, answer, exportName);
  return answer;
}

type AskOption = typeof OPTION.GO | typeof OPTION.INFO;

/** Returns the error reply if there is one. */
function* ask(
  send: Send,
  option: AskOption,
  exportName: string,
  wanted: readonly number[],
): ByteParser<ExportDetails | OptionReply> {
  const requests = [wanted.length, ...wanted].map(uint16);
  sendOption(send, option, Buffer.concat([lengthPrefixed(exportName), ...requests]));

  const infos: { size?: SizeAndFlags; blockSize?: BlockSize; name?: string; description?: string } = {};
  const end = yield* readOptionReplies(option, (reply) => {
    if (reply.type !== OPTION_REPLY.INFO) return false;
    const type = readInfoType(option, reply);
    if (type === INFO.EXPORT) infos.size = readExportInfo(option, reply);
    if (type === INFO.BLOCK_SIZE) infos.blockSize = readBlockSize(option, reply);
    if (type === INFO.NAME) infos.name = readString(option, reply).toString("utf8");
    if (type === INFO.DESCRIPTION) infos.description = cleanText(readString(option, reply));
    return true; // infos that we do not know change nothing
  });
  if (end !== true) return end;
  if (infos.size === undefined) {
    throw badOptionReply(option, "it was acknowledged without the export's size");
  }
  const { size, blockSize = DEFAULT_BLOCK_SIZE, name = exportName, description = "" } = infos;
  return { ...size, blockSize, name, description };
}

/** Enters the export the old way. A server that lacks the export just hangs up: the option has no error reply. */
export function* exportName(send: Send, name: string, noZeroes: boolean): ByteParser<ExportInfo> {
  sendOption(send, OPTION.EXPORT_NAME, Buffer.from(name, "utf8"));
  const sizeAndFlags = readSizeAndFlags(yield* takeBytes(10), 0);
  if (!noZeroes) yield 124; // reserved zeroes of the plain newstyle
  return { ...sizeAndFlags, blockSize: DEFAULT_BLOCK_SIZE };
}

interface SizeAndFlags {
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
}

function readInfoType(option: AskOption, reply: OptionReply): number {
  if (reply.payload.length < 2) {
    throw badOptionReply(option, `an info has at least 2 bytes, the server sent ${reply.payload.length}`);
  }
  return reply.payload.readUInt16BE(0);
}

function readExportInfo(option: AskOption, reply: OptionReply): SizeAndFlags {
  if (reply.payload.length !== 12) {
    throw badOptionReply(option, `the export info has 12 bytes, the server sent ${reply.payload.length}`);
  }
  return readSizeAndFlags(reply.payload, 2);
}

function readSizeAndFlags(bytes: Buffer, at: number): SizeAndFlags {
  const sizeBytes = readUint64(bytes, at);
  if (!Number.isSafeInteger(sizeBytes)) {
    throw new NbdError("BAD_REPLY", `The export has ${sizeBytes} bytes, at most 2^53 - 1 are accepted`);
  }
  return { sizeBytes, transmissionFlags: bytes.readUInt16BE(at + 8) };
}

function readString(option: AskOption, reply: OptionReply): Buffer {
  const text = reply.payload.subarray(2);
  if (text.length <= LIMIT.stringBytes) return text;
  throw badOptionReply(option, `a name or description has more than ${LIMIT.stringBytes} bytes`);
}

function readBlockSize(option: AskOption, reply: OptionReply): BlockSize {
  const bytes = reply.payload;
  if (bytes.length !== 14) {
    throw badOptionReply(option, `the block size info has 14 bytes, the server sent ${bytes.length}`);
  }
  const minimumBytes = bytes.readUInt32BE(2);
  const preferredBytes = bytes.readUInt32BE(6);
  const maximumBytes = bytes.readUInt32BE(10);
  const valid =
    isPowerOfTwo(minimumBytes) &&
    minimumBytes <= 65536 &&
    isPowerOfTwo(preferredBytes) &&
    preferredBytes >= Math.max(512, minimumBytes) &&
    maximumBytes >= minimumBytes;
  if (!valid) {
    throw badOptionReply(
      option,
      `block sizes of ${minimumBytes} minimum, ${preferredBytes} preferred and ${maximumBytes} maximum make no sense`,
    );
  }
  return { minimumBytes, preferredBytes, maximumBytes };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}
