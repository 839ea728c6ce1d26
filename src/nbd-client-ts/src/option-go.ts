import type { ByteParser } from "./byte-feeder.js";
import { takeBytes } from "./byte-feeder.js";
import { INFO, LIMIT, OPTION, OPTION_REPLY } from "./constants.js";
import { NbdError } from "./errors.js";
import {
  badOptionReply,
  optionRefused,
  readOptionReplies,
  sendOption,
  type OptionReply,
  type Send,
} from "./option.js";
import { lengthPrefixed, readUint64 } from "./wire.js";

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

/** Without an agreement: what a client that wants to work with any server keeps to. */
const DEFAULT_BLOCK_SIZE: BlockSize = {
  minimumBytes: 512,
  preferredBytes: 4096,
  maximumBytes: LIMIT.defaultMaximumBytes,
};

/** Enters the export with NBD_OPT_GO. Returns undefined when the server does not know the option. */
export function* go(send: Send, exportName: string): ByteParser<ExportInfo | undefined> {
  const infoRequests = Buffer.alloc(4);
  infoRequests.writeUInt16BE(1, 0);
  infoRequests.writeUInt16BE(INFO.BLOCK_SIZE, 2);
  sendOption(send, OPTION.GO, Buffer.concat([lengthPrefixed(exportName), infoRequests]));

  const infos: { size?: SizeAndFlags; blockSize?: BlockSize } = {};
  const end = yield* readOptionReplies(OPTION.GO, (reply) => {
    if (reply.type !== OPTION_REPLY.INFO) return false;
    const info = readInfoType(reply);
    if (info === INFO.EXPORT) infos.size = readExportInfo(reply);
    if (info === INFO.BLOCK_SIZE) infos.blockSize = readBlockSize(reply);
    return true; // names, descriptions and infos that we do not know change nothing
  });
  if (end !== true) {
    if (end.type === OPTION_REPLY.ERR_UNSUP) return undefined;
    throw optionRefused(OPTION.GO, end, exportName);
  }
  if (infos.size === undefined) {
    throw badOptionReply(OPTION.GO, "it was acknowledged without the export's size");
  }
  return { ...infos.size, blockSize: infos.blockSize ?? DEFAULT_BLOCK_SIZE };
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

function readInfoType(reply: OptionReply): number {
  if (reply.payload.length < 2) {
    throw badOptionReply(OPTION.GO, `an info has at least 2 bytes, the server sent ${reply.payload.length}`);
  }
  return reply.payload.readUInt16BE(0);
}

function readExportInfo(reply: OptionReply): SizeAndFlags {
  if (reply.payload.length !== 12) {
    throw badOptionReply(OPTION.GO, `the export info has 12 bytes, the server sent ${reply.payload.length}`);
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

function readBlockSize(reply: OptionReply): BlockSize {
  const bytes = reply.payload;
  if (bytes.length !== 14) {
    throw badOptionReply(OPTION.GO, `the block size info has 14 bytes, the server sent ${bytes.length}`);
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
      OPTION.GO,
      `block sizes of ${minimumBytes} minimum, ${preferredBytes} preferred and ${maximumBytes} maximum make no sense`,
    );
  }
  return { minimumBytes, preferredBytes, maximumBytes };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}
