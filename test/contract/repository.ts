import { describe, expect, it } from "vitest";
import type { IntactEntry } from "../../src/model/backup.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { ReaderFactory } from "../../src/ports/block-io.js";
import type { BackupRepository } from "../../src/ports/repository.js";
import {
  dataRun,
  type DiskContent,
  DOMAIN,
  draftDisk,
  MemoryUndoLog,
  noise,
  pull,
  summary,
  zeroRun,
} from "../qemu/repository/backup-fixture.js";

export interface RepositoryHarness {
  readonly repository: BackupRepository;
  readonly readers: ReaderFactory;
}

/** What every BackupRepository does with the modes of a disk. */
export function testRepositoryModes(name: string, open: () => Promise<RepositoryHarness>): void {
  describe(`${name}, by the mode of a disk`, () => {
    const SIZE = 8 * BLOCK_SIZE + 512;
    const first = noise(SIZE, 1);
    first.fill(0, 6 * BLOCK_SIZE, 8 * BLOCK_SIZE);

    it("compare: stores what differs from the parent alone, and zeroes over its data", async () => {
      const harness = await open();
      const full = await backUp(harness, "b1", { vda: { content: first } });
      const second = Buffer.from(first);
      second.fill(9, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 512);
      second.fill(0, 3 * BLOCK_SIZE, 5 * BLOCK_SIZE);
      second.fill(8, 8 * BLOCK_SIZE);
      const cutBlock = { offset: 8 * BLOCK_SIZE, length: 512, kind: "data" } as const;
      const runs = [dataRun(0, 4), zeroRun(4), dataRun(5), zeroRun(6, 2), cutBlock];
      const vda = { content: second, runs, mode: "compare" } as const;
      const next = await backUp(harness, "b2", { vda }, full);
      expect(next.manifest).toMatchObject({ level: "incremental", parent: "b1" });
      expect(next.manifest.disks).toMatchObject([
        { mode: "compare", storedBytes: BLOCK_SIZE + 512, zeroBytes: 2 * BLOCK_SIZE },
      ]);
      expect((await read(harness, next, "vda")).equals(second)).toBe(true);
      expect((await read(harness, full, "vda")).equals(first)).toBe(true);
    });

    it("whole: needs nothing of the parent, and is what later ones are based on", async () => {
      const harness = await open();
      const full = await backUp(harness, "b1", { vda: { content: first } });
      const grown = Buffer.concat([first.subarray(BLOCK_SIZE), noise(3 * BLOCK_SIZE, 2)]);
      const vda = { content: grown, mode: "whole" } as const;
      const middle = await backUp(harness, "b2", { vda, vdb: { content: first, mode: "whole" } }, full);
      const third = Buffer.from(grown);
      third.fill(3, 0, BLOCK_SIZE);
      const last = await backUp(harness, "b3", { vda: { content: third, runs: [dataRun(0)] } }, middle);
      expect(middle.manifest.disks).toMatchObject([{ mode: "whole" }, { mode: "whole" }]);
      expect((await read(harness, middle, "vda")).equals(grown)).toBe(true);
      expect((await read(harness, middle, "vdb")).equals(first)).toBe(true);
      expect((await read(harness, last, "vda")).equals(third)).toBe(true);
    });
  });
}

async function backUp(
  { repository }: RepositoryHarness,
  id: string,
  disks: Readonly<Record<string, DiskContent>>,
  parent?: IntactEntry,
): Promise<IntactEntry> {
  const lock = await repository.lock(DOMAIN);
  try {
    const request = {
      id,
      domain: DOMAIN,
      disks: Object.entries(disks).map(([target, { content, mode }]) =>
        draftDisk(target, content.length, mode ?? (parent === undefined ? "whole" : "changes")),
      ),
      ...(parent === undefined ? {} : { parent }),
    };
    const draft = await repository.begin(request, new MemoryUndoLog());
    for (const [target, disk] of Object.entries(disks)) await pull(draft, target, disk);
    return await draft.publish(summary(parent === undefined ? "full" : "incremental", Number(id.slice(1))));
  } finally {
    await lock.release();
  }
}

/** As a restore reads it, compared with the digests on the way. */
async function read(
  { repository, readers }: RepositoryHarness,
  entry: IntactEntry,
  target: string,
): Promise<Buffer> {
  await using backup = await repository.open(entry, { targets: [target] });
  const [address] = backup.addresses;
  if (address === undefined) throw new Error(`Expected disk ${target} to be served`);
  await using reader = await readers.open(address);
  const content = Buffer.from(await reader.read(0, reader.sizeBytes));
  await using expected = await backup.expectations(target);
  expect(await expected.firstMismatch(0, content)).toBeUndefined();
  return content;
}
