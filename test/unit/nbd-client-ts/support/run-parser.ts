import { ByteFeeder, type ByteParser } from "../../../../src/nbd-client-ts/src/byte-feeder.js";
import { NbdError } from "nbd-client-ts";

/** How the input is cut: lengths of the chunks; what remains comes as one. */
export type Cuts = readonly number[];

export function* cut(bytes: Buffer, cuts: Cuts): Generator<Buffer> {
  let at = 0;
  for (const length of cuts) {
    if (at >= bytes.length) return;
    yield bytes.subarray(at, at + length);
    at += length;
  }
  if (at < bytes.length) yield bytes.subarray(at);
}

export type Outcome<T> =
  | { readonly kind: "result"; readonly value: T; readonly unused: number }
  | { readonly kind: "hungry" }
  | { readonly kind: "error"; readonly code: string; readonly message: string };

/** Feeds a parser all bytes in the given chunks, straight into its targets where `inPlace` says so. */
export function runParser<T>(
  parser: ByteParser<T>,
  bytes: Buffer,
  cuts: Cuts = [],
  inPlace = false,
): Outcome<T> {
  let used = 0;
  try {
    const feeder = new ByteFeeder(parser);
    for (const chunk of cut(bytes, cuts)) {
      used += inPlace ? pushInPlace(feeder, chunk) : feeder.push(Buffer.from(chunk));
      if (feeder.result !== undefined) {
        return { kind: "result", value: feeder.result.value, unused: bytes.length - used };
      }
    }
    return { kind: "hungry" };
  } catch (error) {
    if (!(error instanceof NbdError)) throw error;
    return { kind: "error", code: error.code, message: error.message };
  }
}

/** As a kernel does that was given the parser's target: fills it as far as the bytes go, then asks again. */
function pushInPlace<T>(feeder: ByteFeeder<T>, chunk: Buffer): number {
  let at = 0;
  while (at < chunk.length) {
    const target = feeder.target ?? Buffer.alloc(7);
    const count = Math.min(target.length, chunk.length - at);
    target.set(chunk.subarray(at, at + count));
    const used = feeder.push(target.subarray(0, count));
    at += used;
    if (used < count) break;
  }
  return at;
}
