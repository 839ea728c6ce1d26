import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Frame, LineFramer } from "../../../src/qmp/line-framer.js";

function frameAll(chunks: readonly Uint8Array[], maxLineBytes: number): Frame[] {
  const framer = new LineFramer(maxLineBytes);
  return chunks.flatMap((chunk) => framer.push(chunk));
}

function cut(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const places = [...new Set(cuts.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...places].map((place, index) => bytes.subarray(place, places[index] ?? bytes.length));
}

const lines = (...texts: string[]): Frame[] => texts.map((text) => ({ kind: "line", text }));
const bytes = (text: string): Uint8Array => Buffer.from(text);

/** Streams rich in what matters: line ends, empty lines, characters of several bytes, bytes that are not UTF-8. */
const streams = fc
  .array(
    fc.oneof(
      fc.constantFrom("\n", "\r\n", "\r", "\n\n", "{}", "é", "漢", "😀").map(bytes),
      fc.string({ unit: "binary" }).map(bytes),
      fc.uint8Array({ maxLength: 3 }),
    ),
    { maxLength: 40 },
  )
  .map((parts) => new Uint8Array(Buffer.concat(parts)));

describe("LineFramer", () => {
  it("gives the same frames for any chunking of the stream", () => {
    fc.assert(
      fc.property(
        streams,
        fc.array(fc.nat()),
        fc.integer({ min: 1, max: 60 }),
        (stream, cuts, maxLineBytes) => {
          expect(frameAll(cut(stream, cuts), maxLineBytes)).toEqual(frameAll([stream], maxLineBytes));
        },
      ),
      { numRuns: 2000 },
    );
  });

  it("gives back every line that it was given", () => {
    const texts = fc.array(
      fc.string({ unit: "grapheme", minLength: 1 }).filter((text) => !/[\r\n]/.test(text)),
    );
    fc.assert(
      fc.property(texts, fc.array(fc.nat()), (sent, cuts) => {
        const stream = bytes(sent.map((text) => `${text}\r\n`).join(""));
        expect(frameAll(cut(stream, cuts), 1_000_000)).toEqual(lines(...sent));
      }),
    );
  });

  it("joins a character that is split over chunks", () => {
    const stream = bytes("a😀b\n");
    expect(
      frameAll(
        [...stream].map((byte) => Uint8Array.of(byte)),
        100,
      ),
    ).toEqual(lines("a😀b"));
  });

  it("skips empty lines and accepts a bare line feed", () => {
    expect(frameAll([bytes("\r\n\na\n\r\nb\r\n")], 100)).toEqual(lines("a", "b"));
  });

  it("accepts a line of exactly the limit", () => {
    expect(frameAll([bytes("12345\n")], 5)).toEqual(lines("12345"));
  });

  it("reports a line over the limit before its end has come, and then stays silent", () => {
    const framer = new LineFramer(5);
    expect(framer.push(bytes("ok\n123456"))).toEqual([...lines("ok"), { kind: "too-long", maxLineBytes: 5 }]);
    expect(framer.push(bytes("\nok\n"))).toEqual([]);
  });

  it("reports a line that is not UTF-8", () => {
    expect(frameAll([Uint8Array.of(0x61, 0xc3, 0x0a)], 100)).toEqual([{ kind: "not-utf8", lineBytes: 2 }]);
  });

  it("counts the bytes of an unfinished line", () => {
    const framer = new LineFramer(100);
    framer.push(bytes("done\nhalf"));
    expect(framer.unfinishedBytes).toBe(4);
  });
});
