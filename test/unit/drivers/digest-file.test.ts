import { hash } from "node:crypto";
import { writeFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ChainExpectations } from "../../../src/drivers/repository/chain-expectations.js";
import { DIGEST_BYTES, digestBlock } from "../../../src/drivers/repository/block-digest.js";
import { DigestFile } from "../../../src/drivers/repository/digest-file.js";
import { DigestWriter } from "../../../src/drivers/repository/digest-writer.js";
import { RepositoryKey } from "../../../src/drivers/repository/repository-key.js";
import { BLOCK_SIZE, type BlockRun } from "../../../src/model/extents.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const KEY = new RepositoryKey("x".repeat(32));
const BLOCKS = 12;
/** The last block is cut. */
const DISK_BYTES = (BLOCKS - 1) * BLOCK_SIZE + 512;

/** What one backup stores of a block: nothing, zeroes, or a block filled with the number. */
type Stored = "nothing" | number;

function blockOf(index: number, fill: number): Buffer {
  return Buffer.alloc(Math.min(BLOCK_SIZE, DISK_BYTES - index * BLOCK_SIZE), fill);
}

async function writeDigests(
  path: string,
  blocks: readonly Stored[],
  zeroRuns: boolean,
  key?: RepositoryKey,
): Promise<DigestFile> {
  const writer = await DigestWriter.create(path, DISK_BYTES, key);
  const runs: BlockRun[] = blocks.flatMap((stored, index) => {
    if (stored === "nothing") return [];
    const kind = stored === 0 && zeroRuns ? "zero" : "data";
    return [{ offset: index * BLOCK_SIZE, length: blockOf(index, 0).length, kind }];
  });
  for (const run of runs) writer.expect(run);
  for (const { offset, length, kind } of runs.toReversed()) {
    const index = offset / BLOCK_SIZE;
    if (kind === "zero") writer.zeroes(offset, length);
    else await writer.write(offset, length, digestBlock(blockOf(index, Number(blocks[index]))));
  }
  const sha256 = await writer.finish();
  return await DigestFile.open({ path, diskBytes: DISK_BYTES, sha256, key });
}

describe("ChainExpectations", () => {
  it("expects of each block what the newest backup that stores it has, and zeroes where none does", async () => {
    const stored = fc.oneof(
      fc.constant<Stored>("nothing"),
      fc.constant<Stored>(0),
      fc.integer({ min: 1, max: 3 }),
    );
    const backup = fc.array(stored, { minLength: BLOCKS, maxLength: BLOCKS });
    const chains = fc.array(backup, { minLength: 1, maxLength: 4 });
    const range = fc.tuple(fc.nat(BLOCKS - 1), fc.nat(BLOCKS - 1));
    await fc.assert(
      fc.asyncProperty(
        chains,
        range,
        fc.boolean(),
        fc.nat(BLOCKS - 1),
        fc.boolean(),
        async (chain, [a, b], zeroRuns, wrong, encrypted) => {
          await using directory = await TemporaryDirectory.create();
          const files: DigestFile[] = [];
          for (const [index, blocks] of chain.entries()) {
            files.push(
              await writeDigests(
                directory.file(`${index}`),
                blocks,
                zeroRuns,
                encrypted && index !== 1 ? KEY : undefined,
              ),
            );
          }
          await using expected = new ChainExpectations(files, DISK_BYTES);
          const content = Array.from({ length: BLOCKS }, (_, index) => {
            const newest = chain.find((blocks) => blocks[index] !== "nothing");
            return Number(newest?.[index] ?? 0);
          });
          const [first, last] = [Math.min(a, b), Math.max(a, b)];
          const bytes = (fills: readonly number[]): Buffer =>
            Buffer.concat(fills.map((fill, index) => blockOf(index, fill)).slice(first, last + 1));
          const offset = first * BLOCK_SIZE;
          const right = bytes(content);

          expect(await expected.firstMismatch(offset, right)).toBeUndefined();
          const changed = content.map((fill, index) => (index === wrong ? fill + 1 : fill));
          const inside = wrong >= first && wrong <= last;
          expect(await expected.firstMismatch(offset, bytes(changed))).toBe(
            inside ? wrong * BLOCK_SIZE : undefined,
          );
          const nonZero = content.findIndex((fill, index) => index >= first && index <= last && fill !== 0);
          expect(await expected.firstNonZero(offset, right.length)).toBe(
            nonZero < 0 ? undefined : nonZero * BLOCK_SIZE,
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  it("refuses ranges that are not whole blocks of the disk", async () => {
    const { path } = await temporaryDirectory();
    const file = await writeDigests(join(path, "d"), [1], false);
    await using expected = new ChainExpectations([file], DISK_BYTES);
    await expect(expected.firstNonZero(512, BLOCK_SIZE)).rejects.toMatchObject({ code: "INTERNAL" });
    await expect(expected.firstNonZero(0, 512)).rejects.toMatchObject({ code: "INTERNAL" });
    await expect(expected.firstNonZero(0, BLOCKS * BLOCK_SIZE)).rejects.toMatchObject({ code: "INTERNAL" });
  });
});

describe("an encrypted digest file", () => {
  it("has no digest of a block in it, and none that it has in common with another file", async () => {
    const { path } = await temporaryDirectory();
    const blocks = Array.from({ length: BLOCKS }, () => 1);
    const slots = async (name: string, key?: RepositoryKey): Promise<string[]> => {
      await (await writeDigests(join(path, name), blocks, false, key)).close();
      const content = await readFile(join(path, name));
      return blocks.map((_, slot) => content.toString("hex", 64 + slot * 32, 96 + slot * 32));
    };
    expect(new Set(await slots("plain"))).toContain(Buffer.from(digestBlock(blockOf(0, 1))).toString("hex"));
    const [plain, one, two] = [await slots("a"), await slots("b", KEY), await slots("c", KEY)];
    expect(new Set([...plain, ...one, ...two]).size).toBe(new Set(plain).size + 2 * BLOCKS);
  });

  it("is opened with its own key alone, and not as one that is in clear", async () => {
    const { path } = await temporaryDirectory();
    const digests = await readDigests(await writeDigests(join(path, "d"), [1], false, KEY));
    expect(digests).toEqual(Buffer.from(digestBlock(blockOf(0, 1))));
    const sha256 = hash("sha256", await readFile(join(path, "d")), "hex");
    const facts = { path: join(path, "d"), diskBytes: DISK_BYTES, sha256 };
    await expect(DigestFile.open(facts)).rejects.toMatchObject({ code: "DAMAGED" });
    const other = await DigestFile.open({ ...facts, key: new RepositoryKey("y".repeat(32)) });
    expect(await readDigests(other)).not.toEqual(digests);
  });
});

async function readDigests(file: DigestFile): Promise<Uint8Array> {
  try {
    return await file.digests(0, 1);
  } finally {
    await file.close();
  }
}

describe("DigestWriter", () => {
  it("joins adjacent runs, so that the file has a fixed cost and 32 bytes a block", async () => {
    const { path } = await temporaryDirectory();
    const file = await writeDigests(
      join(path, "d"),
      Array.from({ length: BLOCKS }, () => 1),
      false,
    );
    expect(file.runs.runCount).toBe(1);
    expect((await readFile(join(path, "d"))).length).toBe(64 + BLOCKS * DIGEST_BYTES + 24 + 64);
    await file.close();
  });

  it("does not finish before the content of every block has come, however often others did", async () => {
    const { path } = await temporaryDirectory();
    const writer = await DigestWriter.create(join(path, "d"), DISK_BYTES);
    writer.expect({ offset: 0, length: 2 * BLOCK_SIZE, kind: "data" });
    for (let round = 0; round < 2; round++) await writer.write(0, BLOCK_SIZE, Buffer.alloc(32, 1));
    await expect(writer.finish()).rejects.toThrow(/content of 2 data and 0 zero blocks, got 1 and 0/);
    await writer.write(BLOCK_SIZE, BLOCK_SIZE, Buffer.alloc(32, 1));
    expect(await writer.finish()).toMatch(/^[0-9a-f]{64}$/);
    await writer.close();
  });
});

describe("DigestWriter.write", () => {
  it("puts each digest into its slot, in whatever order and pieces they come, and the last one counts", async () => {
    const { path } = await temporaryDirectory();
    const slots = 5000;
    const writer = await DigestWriter.create(join(path, "d"), slots * BLOCK_SIZE);
    writer.expect({ offset: 0, length: slots * BLOCK_SIZE, kind: "data" });
    const digestsOf = (first: number, count: number, salt: number): Buffer =>
      Buffer.concat(
        Array.from({ length: count }, (_, index) => digestBlock(Buffer.from(`${first + index} ${salt}`))),
      );
    const put = (first: number, count: number, salt: number): Promise<void> =>
      writer.write(first * BLOCK_SIZE, count * BLOCK_SIZE, digestsOf(first, count, salt));
    for (let first = 4996; first >= 0; first -= 7) await put(first, Math.min(7, slots - first), 1);
    await put(0, 5, 1);
    await put(3000, 3, 2);
    await put(4990, 2, 2);
    await writer.finish();
    const written = await readFile(join(path, "d"));
    const expected = digestsOf(0, slots, 1);
    digestsOf(3000, 3, 2).copy(expected, 3000 * DIGEST_BYTES);
    digestsOf(4990, 2, 2).copy(expected, 4990 * DIGEST_BYTES);
    expect(written.subarray(64, 64 + slots * DIGEST_BYTES).equals(expected)).toBe(true);
  });
});

describe("DigestFile.open", () => {
  it("says DAMAGED for any single byte that differs, and for any length", async () => {
    const { path } = await temporaryDirectory();
    const writer = await DigestWriter.create(join(path, "d"), DISK_BYTES);
    writer.expect({ offset: 0, length: BLOCK_SIZE, kind: "data" });
    await writer.write(0, BLOCK_SIZE, Buffer.alloc(32, 1));
    const facts = { path: join(path, "d"), diskBytes: DISK_BYTES, sha256: await writer.finish() };
    const intact = await readFile(facts.path);
    const variants = [
      ...Array.from(intact, (_, at) =>
        Buffer.from(intact.map((byte, index) => (index === at ? byte ^ 1 : byte))),
      ),
      intact.subarray(0, -1),
      Buffer.alloc(0),
      Buffer.concat([intact, Buffer.alloc(24)]),
    ];
    for (const bytes of variants) {
      await writeFile(facts.path, bytes);
      await expect(DigestFile.open(facts)).rejects.toMatchObject({ code: "DAMAGED" });
    }
  });

  it("says DAMAGED, not more, for nonsense whose SHA-256 the manifest vouches for", async () => {
    const { path } = await temporaryDirectory();
    const { createHash } = await import("node:crypto");
    const writer = await DigestWriter.create(join(path, "d"), DISK_BYTES);
    writer.expect({ offset: 0, length: BLOCK_SIZE, kind: "data" });
    await writer.write(0, BLOCK_SIZE, Buffer.alloc(32, 1));
    await writer.finish();
    const intact = await readFile(join(path, "d"));
    const runs = 64 + DIGEST_BYTES;
    for (let at = 0; at < intact.length; at++) {
      // Digests themselves may be anything.
      if (at >= 64 && at < runs) continue;
      const bytes = Buffer.from(intact);
      bytes[at] = (bytes[at] ?? 0) ^ 0xff;
      await writeFile(join(path, "d"), bytes);
      const sha256 = createHash("sha256").update(bytes).digest("hex");
      await expect(
        DigestFile.open({ path: join(path, "d"), diskBytes: DISK_BYTES, sha256 }),
        `byte ${at}`,
      ).rejects.toMatchObject({ code: "DAMAGED" });
    }
  });

  it("says DAMAGED for a digest file of a disk of another size", async () => {
    const { path } = await temporaryDirectory();
    const writer = await DigestWriter.create(join(path, "d"), DISK_BYTES);
    const sha256 = await writer.finish();
    const open = DigestFile.open({ path: join(path, "d"), diskBytes: DISK_BYTES + 512, sha256 });
    await expect(open).rejects.toThrow(/is of a disk of/);
  });
});
