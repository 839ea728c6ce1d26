import { open, readFile, rename, stat } from "node:fs/promises";
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

    const merged = await locked(fixture, () => fixture.repository.merge(full));

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

  it("merges two increments, keeps a disk that is stored whole, and drops one that the younger does not hold", async () => {
    const fixture = await RepositoryFixture.create();
    const [vda, vdb] = [noise(SIZE, 1), noise(SIZE, 2)];
    const full = await fixture.backUp("b1", { vda: { content: vda }, vdb: { content: vdb } });
    const second = Buffer.from(vda);
    second.fill(0, 3 * BLOCK_SIZE, 5 * BLOCK_SIZE);
    const changed = { content: second, runs: [zeroRun(3, 2)] };
    const middle = await fixture.backUp("b2", { vda: changed, vdb: { content: vdb, runs: [] } }, full);
    const third = Buffer.from(second);
    third.fill(3, 4 * BLOCK_SIZE, 5 * BLOCK_SIZE);
    const grown = noise(SIZE + 3 * BLOCK_SIZE, 4);
    await fixture.backUp(
      "b3",
      { vda: { content: third, runs: [dataRun(4)] }, vdc: { content: grown, mode: "whole" } },
      middle,
    );
    const { entry } = await locked(fixture, () => fixture.repository.merge(middle));
    expect(entry.manifest).toMatchObject({
      level: "incremental",
      parent: "b1",
      disks: [
        { target: "vda", mode: "changes", storedBytes: BLOCK_SIZE, zeroBytes: BLOCK_SIZE },
        { target: "vdc", mode: "whole" },
      ],
    });
    expect((await fixture.read(entry, "vda")).equals(third)).toBe(true);
    expect(await fixture.verify(entry, "vda")).toBeUndefined();
    expect((await fixture.read(entry, "vdc")).equals(grown)).toBe(true);
    expect((await fixture.read(full, "vdb")).equals(vdb)).toBe(true);
  });

  it("costs what the younger stores, and not what the full has", async () => {
    const fixture = await RepositoryFixture.create();
    const size = 512 * BLOCK_SIZE;
    const first = noise(size, 1);
    const full = await fixture.backUp("b1", { vda: { content: first } });
    const second = Buffer.from(first);
    noise(BLOCK_SIZE, 2).copy(second, 7 * BLOCK_SIZE);
    await fixture.backUp("b2", { vda: { content: second, runs: [dataRun(7)] } }, full);
    const untouched = await changedBlocks(fixture.file("b1", "vda.qcow2"));
    const { entry, writtenBytes } = await locked(fixture, () => fixture.repository.merge(full));
    expect(writtenBytes).toBe(BLOCK_SIZE);
    // One cluster of data; where it was there already, not even a table of the image.
    expect(untouched(await readFile(fixture.file("b2", "vda.qcow2")))).toBeLessThanOrEqual(2 * BLOCK_SIZE);
    expect((await fixture.read(entry, "vda")).equals(second)).toBe(true);
  });

  it("refuses while one reads what would change, and readers while it works; others are free", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    const next = await fixture.backUp("b2", { vda: { content, runs: [dataRun(2)] } }, full);
    const other = await fixture.backUp("b3", { vda: { content } });
    const busy = { code: "REPOSITORY_BUSY" };
    {
      await using _ = await fixture.repository.open(next);
      await expect(locked(fixture, () => fixture.repository.merge(full))).rejects.toMatchObject(busy);
      await expect(locked(fixture, () => fixture.repository.remove(next))).rejects.toMatchObject(busy);
      await locked(fixture, () => fixture.repository.remove(other));
    }
    expect((await listed(fixture)).map(({ id }) => id)).toEqual(["b1", "b2"]);
    let refused: unknown;
    const onProgress = (): void => {
      refused ??= fixture.repository.open(next).catch((error: unknown) => error);
    };
    await locked(fixture, () => fixture.repository.merge(full, { onProgress }));
    expect(await refused).toMatchObject(busy);
    await using _ = await fixture.repository.open(next);
  });

  it("refuses damage before anything is changed, and stops at a block that is not what was stored", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    const next = await fixture.backUp("b2", { vda: { content, runs: [dataRun(2)] } }, full);
    const digests = fixture.file("b2", "vda.digests");
    await rename(digests, `${digests}-away`);
    const damaged = { code: "DAMAGED" };
    await expect(locked(fixture, () => fixture.repository.merge(full))).rejects.toMatchObject(damaged);
    await rename(`${digests}-away`, digests);
    expect((await listed(fixture)).map(({ id }) => id)).toEqual(["b1", "b2"]);

    const image = await open(fixture.file("b2", "vda.qcow2"), "r+");
    const at = (await image.readFile()).indexOf(content.subarray(2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 512));
    await image.write(Buffer.alloc(512, 1), 0, 512, at);
    await expect(locked(fixture, () => fixture.repository.merge(full))).rejects.toMatchObject(damaged);
    expect((await listed(fixture)).map(({ id }) => id)).toEqual(["b2"]);
    expect(await fixture.verify(next, "vda")).toBe(2 * BLOCK_SIZE);
    // Mended by hand, it goes on.
    await image.write(content, 2 * BLOCK_SIZE, 512, at);
    await image.close();
    await locked(fixture, () => fixture.repository.finishMerges(DOMAIN));
    const [last] = await listed(fixture);
    expect(last?.manifest).toMatchObject({ id: "b2", level: "full" });
    if (last !== undefined) expect(await fixture.verify(last, "vda")).toBeUndefined();
  });

  it("keeps protection in a side file, through a merge", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    const next = await fixture.backUp("b2", { vda: { content, runs: [dataRun(2)] } }, full);
    await locked(fixture, () => fixture.repository.protect(next, true));
    await locked(fixture, () => fixture.repository.merge(full));
    expect(await listed(fixture)).toMatchObject([{ id: "b2", protected: true }]);
    await locked(fixture, () => fixture.repository.protect(next, false));
    expect((await listed(fixture))[0]?.protected).toBeUndefined();
  });
});

async function locked<T>({ repository }: RepositoryFixture, action: () => Promise<T>): Promise<T> {
  const lock = await repository.lock(DOMAIN);
  try {
    return await action();
  } finally {
    await lock.release();
  }
}

/** Counts the bytes of clusters of an image that differ from now. */
async function changedBlocks(path: string): Promise<(later: Buffer) => number> {
  const before = await readFile(path);
  return (later) => {
    let changed = 0;
    for (let at = 0; at < Math.max(before.length, later.length); at += BLOCK_SIZE) {
      const same = before.subarray(at, at + BLOCK_SIZE).equals(later.subarray(at, at + BLOCK_SIZE));
      if (!same) changed += BLOCK_SIZE;
    }
    return changed;
  };
}
