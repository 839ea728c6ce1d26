import { stat } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { IntactEntry } from "../../../src/model/backup.js";
import { isIntact } from "../../../src/model/backup.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { dataRun, DOMAIN, noise, RepositoryFixture, zeroRun } from "./backup-fixture.js";

const BLOCKS = 16;
const SIZE = BLOCKS * BLOCK_SIZE + 512;

async function listed({ repository }: RepositoryFixture): Promise<readonly IntactEntry[]> {
  const entries = await repository.list(DOMAIN);
  expect(entries.filter((entry) => !isIntact(entry))).toEqual([]);
  return entries.filter(isIntact);
}

describe("DirectoryRepository.merge", () => {
  it("merges a full into the increment that is based on it: data, zeroes and what only the full has", async () => {
    const fixture = await RepositoryFixture.create();
    const first = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content: first } });
    const second = Buffer.from(first);
    noise(2 * BLOCK_SIZE, 2).copy(second, BLOCK_SIZE);
    second.fill(0, 4 * BLOCK_SIZE, 6 * BLOCK_SIZE);
    second.fill(7, BLOCKS * BLOCK_SIZE);
    const cut = { offset: BLOCKS * BLOCK_SIZE, length: 512, kind: "data" } as const;
    const runs = [dataRun(1, 2), zeroRun(4, 2), cut];
    const next = await fixture.backUp("b2", { vda: { content: second, runs } }, full);
    const third = Buffer.from(second);
    third.fill(9, 0, BLOCK_SIZE);
    const last = await fixture.backUp("b3", { vda: { content: third, runs: [dataRun(0)] } }, next);
    const image = await stat(fixture.file("b1", "vda.qcow2"));

    const lock = await fixture.repository.lock(DOMAIN);
    const merged = await fixture.repository.merge(full);
    await lock.release();

    expect(merged.writtenBytes).toBe(2 * BLOCK_SIZE + 512);
    expect((await stat(fixture.file("b2", "vda.qcow2"))).ino).toBe(image.ino);
    const [two, three, ...more] = await listed(fixture);
    expect(more).toEqual([]);
    expect(two).toEqual(merged.entry);
    expect(two?.manifest).toMatchObject({ schemaVersion: 3, level: "full", disks: [{ mode: "whole" }] });
    expect(two?.manifest.parent).toBeUndefined();
    expect(three).toEqual(last);
    for (const [entry, content] of [
      [merged.entry, second],
      [last, third],
    ] as const) {
      expect((await fixture.read(entry, "vda")).equals(content)).toBe(true);
      expect(await fixture.verify(entry, "vda")).toBeUndefined();
    }
  });
});
