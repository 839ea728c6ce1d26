import { describe, expect, it } from "vitest";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { pull } from "../../../src/services/pull.js";
import { MIB } from "../../../src/shared/units.js";
import { FakeReader } from "../../support/fake-reader.js";
import { FakeSink } from "../../support/fake-sink.js";

/** Pulls all data, or every other block. Resolves with the bytes that were given up meanwhile. */
async function pullAll(sizeBytes: number, scattered: boolean): Promise<number> {
  const blocks = Array.from({ length: sizeBytes / BLOCK_SIZE }, (_, index) => index);
  const reader = new FakeReader({
    ...{ exportName: "vda", socketPath: "", content: Buffer.alloc(sizeBytes, 7), ended: false },
    ...(scattered ? { changes: new Set(blocks.filter((index) => index % 2 === 0)) } : {}),
  });
  let releasedBytes = 0;
  const counted = Object.assign(reader, {
    release: (_offset: number, length: number) => {
      releasedBytes += length;
      return Promise.resolve();
    },
  });
  const sink = new FakeSink("vda", sizeBytes);
  const readBytes = await pull({ reader: counted, sink, mode: scattered ? "changes" : "whole" });
  expect(readBytes).toBe(scattered ? sizeBytes / 2 : sizeBytes);
  return releasedBytes;
}

describe("What a pull has read is given up", () => {
  it("at once in long pieces", async () => {
    expect(await pullAll(8 * MIB, false)).toBe(8 * MIB);
  });

  it("only beyond 32 MiB in small ones, for which a release costs as much as the read", async () => {
    expect(await pullAll(64 * MIB, true)).toBe(0);
    expect(await pullAll(96 * MIB, true)).toBe(16 * MIB);
  });
});
