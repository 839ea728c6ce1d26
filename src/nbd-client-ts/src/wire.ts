/** Reads an unsigned 64-bit integer. Above 2^53 the result is inexact but stays above 2^53: check before use. */
export function readUint64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 0x100000000 + bytes.readUInt32BE(at + 4);
}

/** The same through a view. The transmission phase uses views: V8 compiles them to much less code than a Buffer's methods. */
export function getUint64(view: DataView, at: number): number {
  return view.getUint32(at) * 0x100000000 + view.getUint32(at + 4);
}

/** Writes a safe integer as 64 bits. */
export function setUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value / 0x100000000);
  view.setUint32(at + 4, value);
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
