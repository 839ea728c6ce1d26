import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { isIntact } from "../../../src/model/backup.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { dataRun, DOMAIN, noise, RepositoryFixture, zeroRun } from "./backup-fixture.js";

const SIZE = 16 * BLOCK_SIZE + 512;

describe("DirectoryRepository.merge of a backup in clear into one that is encrypted", () => {
  it("can be read and finished wherever it was interrupted, with nothing of the younger in clear", async () => {
    const directory = await temporaryDirectory();
    const keyFile = directory.file("key");
    await writeFile(keyFile, "k".repeat(44), { mode: 0o600 });
    const plain = await RepositoryFixture.create();
    const first = noise(SIZE, 1);
    const full = await plain.backUp("b1", { vda: { content: first } });
    const fixture = await RepositoryFixture.create(plain.path, { keyFile });
    const second = Buffer.from(first);
    noise(2 * BLOCK_SIZE, 2).copy(second, BLOCK_SIZE);
    second.fill(0, 4 * BLOCK_SIZE, 6 * BLOCK_SIZE);
    const runs = [dataRun(1, 2), zeroRun(4, 2)];
    const younger = await fixture.backUp("b2", { vda: { content: second, runs } }, full);

    const merged = await RepositoryFixture.create(directory.file("merged"), { keyFile });
    await cp(plain.path, merged.path, { recursive: true });
    const done = await locked(merged, () => merged.repository.merge(full));
    expect(done.writtenBytes).toBe(SIZE + 2 * BLOCK_SIZE);
    expect(done.entry.manifest).toMatchObject({
      ...{ schemaVersion: 5, level: "full" },
      disks: [{ mode: "whole", keyId: younger.manifest.disks[0]?.keyId }],
    });
    expect((await merged.read(done.entry, "vda")).equals(second)).toBe(true);
    expect(await merged.verify(done.entry, "vda")).toBeUndefined();
    const image = merged.file("b2", "vda.qcow2");
    expect((await readFile(image)).includes(second.subarray(BLOCK_SIZE, BLOCK_SIZE + 256))).toBe(false);
    expect((await readFile(image)).includes(first.subarray(8 * BLOCK_SIZE, 8 * BLOCK_SIZE + 256))).toBe(
      false,
    );

    const stops = {
      copying: { place: "b1/vda.qcow2.encrypted", removed: false },
      placed: { place: "b2/vda.qcow2", removed: false },
      removed: { place: "b2/vda.qcow2", removed: true },
    };
    for (const [name, { place, removed }] of Object.entries(stops)) {
      const at = await RepositoryFixture.create(directory.file(name), { keyFile });
      await cp(plain.path, at.path, { recursive: true });
      await writeFile(at.file("b1", "merging.json"), '{"schemaVersion":1,"into":"b2"}\n');
      await cp(image, join(at.path, DOMAIN, place));
      if (removed) await rm(at.file("b1", "vda.qcow2"));
      const [entry, ...others] = (await at.repository.list(DOMAIN)).filter(isIntact);
      if (entry === undefined) throw new Error(`Expected a backup amid a merge that is ${name}`);
      expect(others).toEqual([]);
      expect((await at.read(entry, "vda")).equals(second)).toBe(true);
      expect(await at.verify(entry, "vda")).toBeUndefined();
      await locked(at, () => at.repository.finishMerges(DOMAIN));
      const [after] = (await at.repository.list(DOMAIN)).filter(isIntact);
      expect(after).toMatchObject({ id: "b2", manifest: { level: "full", schemaVersion: 5 } });
      if (after !== undefined) expect((await at.read(after, "vda")).equals(second)).toBe(true);
      expect(await at.verify(younger, "vda")).toBeUndefined();
    }
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
