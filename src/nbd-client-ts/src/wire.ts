/** Reads an unsigned 64-bit integer. Above 2^53 the result is inexact but stays above 2^53: check before use. */
export function readUint64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 0x100000000 + bytes.readUInt32BE(at + 4);
}

/** Writes a safe integer as 64 bits. */
export function writeUint64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / 0x100000000), at);
  bytes.writeUInt32BE(value % 0x100000000, at + 4);
}

export interface Magic {
  readonly high: number;
  readonly low: number;
}

export function hasMagic(bytes: Buffer, magic: Magic, at = 0): boolean {
  return bytes.readUInt32BE(at) === magic.high && bytes.readUInt32BE(at + 4) === magic.low;
}

/** A string as the protocol's option data has it: 32-bit length, then UTF-8. */
export function lengthPrefixed(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
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
