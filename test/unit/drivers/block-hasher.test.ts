import { createHash, randomFillSync } from "node:crypto";
import { describe, expect, it } from "vitest";
import { BlockHasher } from "../../../src/drivers/repository/block-hasher.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";

function reference(data: Uint8Array): Buffer {
  const digests: Buffer[] = [];
  for (let at = 0; at < data.length; at += BLOCK_SIZE) {
    const block = data.subarray(at, at + BLOCK_SIZE);
    const zero = block.every((byte) => byte === 0);
    digests.push(zero ? Buffer.alloc(32) : createHash("sha256").update(block).digest());
  }
  return Buffer.concat(digests);
}

/** With a block of zeroes, and a last block that is cut. */
function content(blocks: number): Buffer {
  const data = randomFillSync(Buffer.alloc(blocks * BLOCK_SIZE + 512));
  data.fill(0, BLOCK_SIZE, 2 * BLOCK_SIZE);
  return data;
}

describe("BlockHasher", () => {
  it("digests any number of requests side by side, also larger ones than it shares at once", async () => {
    await using hasher = new BlockHasher();
    const requests = [2, 15, 16, 40, ...Array.from({ length: 20 }, () => 8)].map(content);
    const digests = await Promise.all(requests.map((data) => hasher.digests(data)));
    for (const [index, data] of requests.entries()) expect(digests[index]).toEqual(reference(data));
  });

  it("is done with the caller's memory when it returns to the event loop", async () => {
    await using hasher = new BlockHasher();
    const data = content(8);
    const expected = reference(data);
    const digests = hasher.digests(data);
    data.fill(1);
    expect(await digests).toEqual(expected);
  });

  it("gives the same digests when it is closed under a request, and after", async () => {
    const hasher = new BlockHasher();
    const data = content(8);
    const digests = hasher.digests(data);
    await hasher.close();
    await hasher.close();
    expect(await digests).toEqual(reference(data));
    expect(await hasher.digests(data)).toEqual(reference(data));
  });
});
