import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ReadAssembler } from "../../../src/nbd-client-ts/src/read-assembler.js";

const LENGTH = 64;

describe("ReadAssembler", () => {
  it("accepts exactly the sets of chunks that cover each byte once", () => {
    const chunks = fc.array(
      fc.record({ start: fc.nat(LENGTH), length: fc.integer({ min: 1, max: 24 }), hole: fc.boolean() }),
      { maxLength: 12 },
    );
    fc.assert(
      fc.property(chunks, (sent) => {
        const seen = new Set<number>();
        const assembler = new ReadAssembler(
          { command: "READ", offset: 100, length: LENGTH },
          Buffer.alloc(LENGTH),
        );
        for (const { start, length, hole } of sent) {
          const bytes = Array.from({ length }, (_, index) => start + index);
          const add = () =>
            hole ? assembler.hole(100 + start, length) : assembler.data(100 + start, length);
          if (start + length > LENGTH) {
            expect(add).toThrow(expect.objectContaining({ code: "CHUNK_OUT_OF_RANGE" }));
          } else if (bytes.some((each) => seen.has(each))) {
            expect(add).toThrow(expect.objectContaining({ code: "CHUNK_OVERLAP" }));
          } else {
            add();
            bytes.forEach((each) => seen.add(each));
          }
        }
        const complete = () => assembler.complete();
        if (seen.size === LENGTH) complete();
        else expect(complete).toThrow(expect.objectContaining({ code: "READ_INCOMPLETE" }));
      }),
      { numRuns: 500 },
    );
  });

  it("leaves the memory of an abandoned read alone", () => {
    const memory = Buffer.alloc(8, 0xee);
    const assembler = new ReadAssembler({ command: "READ", offset: 0, length: 8 }, memory);
    assembler.abandoned = true;
    expect(assembler.data(0, 4)).toBe(4);
    assembler.hole(4, 4);
    expect(memory).toEqual(Buffer.alloc(8, 0xee));
  });
});
