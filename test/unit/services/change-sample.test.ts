import { describe, expect, it } from "vitest";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import type { BlockExpectations } from "../../../src/ports/repository.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { ChangeSample } from "../../../src/services/change-sample.js";
import { preflight } from "../../../src/services/preflight.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const BLOCKS = 8;
const nothingExpected: BlockExpectations = {
  firstMismatch: () => Promise.resolve(undefined),
  firstNonZero: () => Promise.resolve(undefined),
  runs: () => [],
  [Symbol.asyncDispose]: () => Promise.resolve(),
};

async function world(sampleShare: number): Promise<FakeWorld> {
  const { path } = await temporaryDirectory();
  const at = new FakeWorld(path, {
    disks: ["vda", "vdb"].map((target) => ({ target, sizeBytes: BLOCKS * BLOCK_SIZE })),
  });
  at.sampleShare = sampleShare;
  at.domain.write("vda", 0, 3 * BLOCK_SIZE, 1);
  at.domain.write("vdb", 0, 3 * BLOCK_SIZE, 2);
  return at;
}

/** A write that no bitmap records. */
function writeUnseen(at: FakeWorld, block: number, pattern: number, target = "vda"): void {
  at.domain.disk(target).content.fill(pattern, block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
}

const modesOf = ({
  disks,
}: {
  readonly disks: readonly { target: string; mode: string }[];
}): readonly string[] => disks.map(({ target, mode }) => `${target} ${mode}`);

describe("an incremental with a sample", () => {
  it("finds a change that counts as none, compares the disk at once, and trusts its bitmaps afterwards", async () => {
    const at = await world(1);
    const { context } = at.process();
    const full = await runBackup(context, { domain: "vm" });
    at.domain.write("vda", BLOCK_SIZE, 512, 3);
    writeUnseen(at, 5, 4);
    const compared = await runBackup(context, { domain: "vm", level: "incremental" });
    expect(modesOf(compared.manifest)).toEqual(["vda compare", "vdb changes"]);
    expect(compared.manifest.parent).toBe(full.id);
    expect(compared.manifest.disks[0]?.reason).toMatch(
      /^a sample at \S+Z found its block at byte 327680 changed, which its bitmaps had not recorded$/,
    );
    expect(at.repository.content(compared.id, "vda").equals(at.domain.disk("vda").content)).toBe(true);
    expect(at.log).toContain(`Disk vda: ${compared.manifest.disks[0]?.reason ?? ""}`);
    at.domain.write("vda", 6 * BLOCK_SIZE, 512, 5);
    const after = await runBackup(context, { domain: "vm" });
    expect(modesOf(after.manifest)).toEqual(["vda changes", "vdb changes"]);
    expect(at.repository.content(after.id, "vda").equals(at.domain.disk("vda").content)).toBe(true);
  });

  it("finds one on each of two disks", async () => {
    const at = await world(1);
    const { context } = at.process();
    await runBackup(context, { domain: "vm" });
    writeUnseen(at, 7, 4, "vda");
    writeUnseen(at, 0, 4, "vdb");
    expect(modesOf((await runBackup(context, { domain: "vm" })).manifest)).toEqual([
      "vda compare",
      "vdb compare",
    ]);
  });

  it("does not try for ever when the clock was set back since the parent was taken", async () => {
    const at = await world(1);
    const { context } = at.process();
    await runBackup(context, { domain: "vm" });
    writeUnseen(at, 5, 4);
    let nowMs = Date.UTC(2020, 0, 1);
    Object.assign(at.domain, { now: () => (nowMs += 1000) });
    const entry = await runBackup(context, { domain: "vm" });
    expect(entry.manifest.time).toMatch(/^2020/);
    expect(modesOf(entry.manifest)).toEqual(["vda compare", "vdb changes"]);
  });

  it("knows after a kill that the disk is to be compared, and says so beforehand", async () => {
    const at = await world(1);
    await runBackup(at.process().context, { domain: "vm" });
    writeUnseen(at, 5, 4);
    let isNoted = false;
    const first = at.process((point) => {
      isNoted ||= point === "store.writeNote: after";
      if (isNoted && point === "repository.list: before") throw new Error("It ends here");
    });
    await expect(runBackup(first.context, { domain: "vm" })).rejects.toThrow("It ends here");
    await first.die();
    at.sampleShare = 0;
    const { context } = at.process();
    expect((await preflight(context, { domain: "vm" })).decision?.disks.get("vda")?.mode).toBe("compare");
    const entry = await runBackup(context, { domain: "vm" });
    expect(modesOf(entry.manifest)).toEqual(["vda compare", "vdb changes"]);
    expect(at.repository.content(entry.id, "vda").equals(at.domain.disk("vda").content)).toBe(true);
  });

  it("reads no more than asked for: none of it with a share of 0", async () => {
    const at = await world(0);
    const { context } = at.process();
    await runBackup(context, { domain: "vm" });
    writeUnseen(at, 5, 4);
    expect(modesOf((await runBackup(context, { domain: "vm" })).manifest)).toEqual([
      "vda changes",
      "vdb changes",
    ]);
  });
});

describe("ChangeSample.pick", () => {
  async function sample(sampleShare: number, sizeBytes: number): Promise<ChangeSample> {
    const { context } = (await world(sampleShare)).process();
    return new ChangeSample(context, { domain: "vm", target: "vda", sizeBytes, timeMs: 0 }, nothingExpected);
  }

  it("takes every block of every stretch with a share of 1, the short last one, too", async () => {
    const all = await sample(1, 3 * BLOCK_SIZE + 512);
    expect([...all.pick(0, 0), ...all.pick(BLOCK_SIZE, 2 * BLOCK_SIZE)].map(({ offset }) => offset)).toEqual([
      BLOCK_SIZE,
    ]);
    expect([...all.pick(3 * BLOCK_SIZE, 3 * BLOCK_SIZE + 512)]).toEqual([
      { offset: 3 * BLOCK_SIZE, length: 512, kind: "unchanged" },
    ]);
  });

  it("takes its share over many stretches, ascending and within them", async () => {
    const tenth = await sample(0.1, 2 ** 34);
    const offsets: number[] = [];
    for (let at = 0; at < 2 ** 30; at += 4 * BLOCK_SIZE) {
      for (const { offset, length } of tenth.pick(at, at + 3 * BLOCK_SIZE)) {
        expect(offset >= at && offset + length <= at + 3 * BLOCK_SIZE).toBe(true);
        offsets.push(offset);
      }
    }
    expect(offsets).toEqual([...new Set(offsets)].toSorted((a, b) => a - b));
    // 12288 blocks were offered, and a 16th of 2^34 bytes is the limit: 768 are expected, ± 8 standard deviations.
    expect(offsets.length).toBeGreaterThan(550);
    expect(offsets.length).toBeLessThan(990);
  });

  it("reads 1 GiB of a disk at most, spread over all of it", async () => {
    const half = await sample(0.5, 2 ** 36);
    const offsets = [...half.pick(0, 2 ** 36)].map(({ offset }) => offset);
    expect(offsets.length).toBeLessThanOrEqual(2 ** 14);
    expect(offsets.length).toBeGreaterThan(15_000);
    expect(offsets.at(-1)).toBeGreaterThan(2 ** 35);
  });
});
