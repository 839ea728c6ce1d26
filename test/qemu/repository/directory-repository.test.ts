import { cp, lstat, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { IntactEntry } from "../../../src/model/backup.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import { imageInfo, qemuImg } from "../../support/image-tool.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import {
  dataRun,
  DOMAIN,
  draftDisk,
  noise,
  openRepository,
  RepositoryFixture,
  zeroRun,
} from "./backup-fixture.js";

/** Not a multiple of the block size. */
const SIZE = 40 * BLOCK_SIZE + 3 * 512;

async function plainConvert(image: string): Promise<Buffer> {
  const directory = await temporaryDirectory();
  await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, directory.file("raw"));
  return await readFile(directory.file("raw"));
}

describe("a full backup", () => {
  it("reads back byte for byte, also with qemu-img alone", async () => {
    const fixture = await RepositoryFixture.create();
    const vda = noise(SIZE, 1);
    vda.fill(0, 8 * BLOCK_SIZE, 20 * BLOCK_SIZE);
    const vdb = noise(2 * BLOCK_SIZE, 2);
    const entry = await fixture.backUp("b1", { vda: { content: vda }, vdb: { content: vdb } });
    expect((await fixture.read(entry, "vda")).equals(vda)).toBe(true);
    expect((await fixture.read(entry, "vdb")).equals(vdb)).toBe(true);
    expect((await plainConvert(fixture.file("b1", "vda.qcow2"))).equals(vda)).toBe(true);
    expect(await fixture.verify(entry, "vda")).toBeUndefined();
  });

  it("does not store blocks of zeroes, and says how much of what it has", async () => {
    const fixture = await RepositoryFixture.create();
    const content = Buffer.alloc(SIZE);
    noise(BLOCK_SIZE, 3).copy(content, 5 * BLOCK_SIZE);
    const entry = await fixture.backUp("b1", {
      vda: { content, runs: [dataRun(0, 10), { ...zeroRun(10), length: SIZE - 10 * BLOCK_SIZE }] },
    });
    expect(entry.manifest.disks[0]).toMatchObject({
      storedBytes: BLOCK_SIZE,
      zeroBytes: SIZE - BLOCK_SIZE,
      readBytes: SIZE,
      image: "vda.qcow2",
      digests: "vda.digests",
    });
    expect((await stat(fixture.file("b1", "vda.qcow2"))).size).toBeLessThan(10 * BLOCK_SIZE);
    expect((await fixture.read(entry, "vda")).equals(content)).toBe(true);
  });

  it("is listed as it was published, with private files only", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 4) } });
    expect(await fixture.repository.list()).toEqual([entry]);
    expect(await fixture.repository.list(DOMAIN)).toEqual([entry]);
    expect(await fixture.repository.list("other")).toEqual([]);
    expect(await fixture.repository.has(DOMAIN, "b1")).toBe(true);
    expect((await readdir(fixture.file("b1", "."))).sort()).toEqual([
      "manifest.json",
      "vda.digests",
      "vda.qcow2",
    ]);
    for (const name of await readdir(fixture.file("b1", "."))) {
      expect((await lstat(fixture.file("b1", name))).mode & 0o777).toBe(0o600);
    }
    for (const directory of [fixture.file("b1", "."), join(fixture.path, DOMAIN)]) {
      expect((await lstat(directory)).mode & 0o777).toBe(0o700);
    }
    expect(fixture.undo.entries).toEqual([
      { kind: "directory", path: join(fixture.path, DOMAIN, ".partial-b1") },
    ]);
    expect(await readdir(fixture.runtimeRoot)).toEqual([]);
  });

  it("of a sparse disk of 64 GiB with 1 MiB of data costs what the data costs", async () => {
    const fixture = await RepositoryFixture.create();
    const lock = await fixture.repository.lock(DOMAIN);
    const sizeBytes = 64 * 2 ** 30;
    const offset = 33 * 2 ** 30;
    const disks = [draftDisk("vda", sizeBytes)];
    const draft = await fixture.repository.begin({ id: "b1", domain: DOMAIN, disks }, fixture.undo);
    const sink = draft.disk("vda");
    const data = noise(2 ** 20, 5);
    sink.expect({ offset: 0, length: offset, kind: "zero" });
    sink.expect({ offset, length: data.length, kind: "data" });
    sink.expect({ offset: offset + data.length, length: sizeBytes - offset - data.length, kind: "zero" });
    await sink.writeZeroes(0, offset);
    await sink.write(offset, data);
    await sink.writeZeroes(offset + data.length, sizeBytes - offset - data.length);
    await sink.finish({ readBytes: data.length, durationMs: 1 });
    const { level, ...rest } = (await import("./backup-fixture.js")).summary("full", 1);
    const entry = await draft.publish({ level, ...rest });
    await lock.release();
    expect((await stat(fixture.file("b1", "vda.digests"))).size).toBeLessThan(1024);
    await using backup = await fixture.repository.open(entry);
    await using expected = await backup.expectations("vda");
    expect(await expected.firstMismatch(offset, data)).toBeUndefined();
    expect(await expected.firstNonZero(0, offset)).toBeUndefined();
    expect(await expected.firstNonZero(0, sizeBytes)).toBe(offset);
    expect(await expected.firstMismatch(0, data)).toBe(0);
  });
});

describe("an incremental backup", () => {
  it("reads back with what changed, with zeroes over old data, at every link of the chain", async () => {
    const fixture = await RepositoryFixture.create();
    const first = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content: first } });

    const second = Buffer.from(first);
    noise(2 * BLOCK_SIZE, 7).copy(second, 4 * BLOCK_SIZE);
    second.fill(0, 10 * BLOCK_SIZE, 14 * BLOCK_SIZE);
    second.fill(0, 40 * BLOCK_SIZE);
    const tail = { offset: 40 * BLOCK_SIZE, length: 3 * 512, kind: "zero" } as const;
    const runs = [dataRun(4, 2), zeroRun(10, 2), dataRun(12, 2), tail];
    const middle = await fixture.backUp("b2", { vda: { content: second, runs } }, full);

    const third = Buffer.from(second);
    noise(BLOCK_SIZE, 8).copy(third, 11 * BLOCK_SIZE);
    const last = await fixture.backUp("b3", { vda: { content: third, runs: [dataRun(11)] } }, middle);

    for (const [entry, content] of [
      [full, first],
      [middle, second],
      [last, third],
    ] as const) {
      expect((await fixture.read(entry, "vda")).equals(content), entry.id).toBe(true);
      expect(await fixture.verify(entry, "vda"), entry.id).toBeUndefined();
    }
    expect(middle.manifest).toMatchObject({ level: "incremental", parent: "b1" });
    expect(middle.manifest.disks[0]).toMatchObject({
      storedBytes: 2 * BLOCK_SIZE,
      zeroBytes: 4 * BLOCK_SIZE + 3 * 512,
    });

    const elsewhere = await temporaryDirectory();
    await cp(join(fixture.path, DOMAIN), elsewhere.file("moved"), { recursive: true });
    const moved = elsewhere.file("moved/b3/vda.qcow2");
    expect((await plainConvert(moved)).equals(third)).toBe(true);
    expect(await imageInfo(moved, "qcow2")).toMatchObject({
      backing: "../b2/vda.qcow2",
      backingFormat: "qcow2",
    });
  });

  it("is refused when the parent's image is gone or names another backing file", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    await qemuImg(
      "rebase",
      "-u",
      "-f",
      "qcow2",
      "-F",
      "raw",
      "-b",
      "/etc/passwd",
      fixture.file("b1", "vda.qcow2"),
    );
    await expect(fixture.backUp("b2", { vda: { content } }, full)).rejects.toMatchObject({ code: "DAMAGED" });
    await expect(fixture.repository.open(full)).rejects.toThrow(
      /names the backing file \/etc\/passwd, expected none/,
    );
    const { rm } = await import("node:fs/promises");
    await rm(fixture.file("b1", "vda.qcow2"));
    await expect(fixture.backUp("b2", { vda: { content } }, full)).rejects.toThrow(/is missing/);
    expect(await fixture.repository.list()).toEqual([full]);
  });

  it("of a disk that the parent has in another size is a defect of the caller", async () => {
    const fixture = await RepositoryFixture.create();
    const full = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    await expect(
      fixture.backUp("b2", { vda: { content: noise(SIZE + 512, 1) } }, full),
    ).rejects.toMatchObject({ code: "INTERNAL" });
    expect(await readdir(join(fixture.path, DOMAIN))).toEqual([".lock", "b1"]);
  });
});

describe("a disk that is compared with the parent", () => {
  it("stores the blocks that differ alone, zeroes over old data and the cut last block too", async () => {
    const fixture = await RepositoryFixture.create();
    const first = noise(SIZE, 1);
    first.fill(0, 20 * BLOCK_SIZE, 30 * BLOCK_SIZE);
    const full = await fixture.backUp("b1", { vda: { content: first } });

    const second = Buffer.from(first);
    noise(2 * BLOCK_SIZE, 7).copy(second, 4 * BLOCK_SIZE);
    noise(BLOCK_SIZE, 8).copy(second, 25 * BLOCK_SIZE);
    second.fill(0, 10 * BLOCK_SIZE, 12 * BLOCK_SIZE);
    second.fill(0, 14 * BLOCK_SIZE, 16 * BLOCK_SIZE);
    second.fill(7, 40 * BLOCK_SIZE + 100);
    // Zeroes come as such and as data, also where the parent is zero.
    const tail = { offset: 30 * BLOCK_SIZE, length: SIZE - 30 * BLOCK_SIZE, kind: "data" } as const;
    const runs = [dataRun(0, 14), zeroRun(14, 2), dataRun(16, 7), zeroRun(23, 2), dataRun(25, 5), tail];
    const compared = { content: second, runs, mode: "compare" } as const;
    const middle = await fixture.backUp("b2", { vda: compared }, full);
    expect(middle.manifest.disks[0]).toMatchObject({
      mode: "compare",
      reason: "a test",
      storedBytes: 3 * BLOCK_SIZE + 3 * 512,
      zeroBytes: 4 * BLOCK_SIZE,
    });

    // On what was compared goes what changed, and what is compared again: with the whole chain.
    const third = Buffer.from(second);
    noise(BLOCK_SIZE, 9).copy(third, 11 * BLOCK_SIZE);
    const changed = { content: third, runs: [dataRun(11)] };
    const last = await fixture.backUp("b3", { vda: changed }, middle);
    const same = await fixture.backUp("b4", { vda: { content: third, mode: "compare" } }, last);
    expect(same.manifest.disks[0]).toMatchObject({ storedBytes: 0, zeroBytes: 0, readBytes: SIZE });
    for (const [entry, content] of [
      [middle, second],
      [last, third],
      [same, third],
    ] as const) {
      expect((await fixture.read(entry, "vda")).equals(content), entry.id).toBe(true);
      expect(await fixture.verify(entry, "vda"), entry.id).toBeUndefined();
      expect((await plainConvert(fixture.file(entry.id, "vda.qcow2"))).equals(content)).toBe(true);
    }
  });

  it("makes the same files as an incremental that was told the changes", async () => {
    const fixture = await RepositoryFixture.create();
    const first = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content: first } });
    const second = Buffer.from(first);
    noise(3 * BLOCK_SIZE, 5).copy(second, 17 * BLOCK_SIZE);
    const told = await fixture.backUp("b2", { vda: { content: second, runs: [dataRun(17, 3)] } }, full);
    const compared = await fixture.backUp("b3", { vda: { content: second, mode: "compare" } }, full);
    expect(compared.manifest.disks[0]?.digestsSha256).toBe(told.manifest.disks[0]?.digestsSha256);
  });

  it("is refused when the digests to compare with are damaged, and leaves nothing", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    await writeFile(fixture.file("b1", "vda.digests"), "nonsense");
    await expect(fixture.backUp("b2", { vda: { content, mode: "compare" } }, full)).rejects.toMatchObject({
      code: "DAMAGED",
    });
    expect(await readdir(join(fixture.path, DOMAIN))).toEqual([".lock", "b1"]);
    expect(await readdir(fixture.runtimeRoot)).toEqual([]);
  });

  it("cannot be finished before all that was announced has come", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    const lock = await fixture.repository.lock(DOMAIN);
    const draft = await fixture.begin("b2", new Map([["vda", { content, mode: "compare" }]]), full);
    const sink = draft.disk("vda");
    sink.expect(dataRun(0, 4));
    await sink.write(2 * BLOCK_SIZE, content.subarray(2 * BLOCK_SIZE, 4 * BLOCK_SIZE));
    await expect(sink.write(3 * BLOCK_SIZE, content.subarray(0, 2 * BLOCK_SIZE))).rejects.toThrow(
      /announced/,
    );
    await expect(sink.finish({ readBytes: 0, durationMs: 0 })).rejects.toMatchObject({ code: "INTERNAL" });
    await draft.discard();
    await lock.release();
  });
});

describe("a disk that is stored whole in an incremental", () => {
  it("needs nothing older, and others go on from it", async () => {
    const fixture = await RepositoryFixture.create();
    const vda = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content: vda }, vdb: { content: vda } });
    // Grown, and new in the middle of a chain.
    const grown = noise(SIZE + BLOCK_SIZE, 2);
    const second = {
      vda: { content: vda, runs: [] },
      vdb: { content: grown, mode: "whole" },
      vdc: { content: vda, mode: "whole" },
    } as const;
    const middle = await fixture.backUp("b2", second, full);
    const third = Buffer.from(grown);
    noise(BLOCK_SIZE, 3).copy(third, 3 * BLOCK_SIZE);
    const last = await fixture.backUp(
      "b3",
      { vda: { content: vda, mode: "compare" }, vdb: { content: third, runs: [dataRun(3)] } },
      middle,
    );
    for (const [entry, target, content] of [
      [middle, "vda", vda],
      [middle, "vdb", grown],
      [middle, "vdc", vda],
      [last, "vda", vda],
      [last, "vdb", third],
    ] as const) {
      expect((await fixture.read(entry, target)).equals(content), `${entry.id} ${target}`).toBe(true);
      expect(await fixture.verify(entry, target)).toBeUndefined();
    }
    expect((await imageInfo(fixture.file("b2", "vdb.qcow2"), "qcow2")).backing).toBeUndefined();
    expect(await imageInfo(fixture.file("b3", "vdb.qcow2"), "qcow2")).toMatchObject({
      backing: "../b2/vdb.qcow2",
    });
  });
});

describe("a backup whose manifest is of schema 1", () => {
  it("is listed, read, and gone on from", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const full = await fixture.backUp("b1", { vda: { content } });
    const middle = await fixture.backUp("b2", { vda: { content, runs: [] } }, full);
    for (const { id, manifest } of [full, middle]) {
      const disks = manifest.disks.map(({ sourceFile: _1, mode: _2, reason: _3, ...disk }) => disk);
      const { scratchPeakBytes: _4, ...others } = manifest;
      const old = { ...others, schemaVersion: 1, disks };
      await writeFile(fixture.file(id, "manifest.json"), JSON.stringify(old));
    }
    const [first, second] = (await fixture.repository.list()) as IntactEntry[];
    if (first === undefined || second === undefined) throw new Error("Expected two backups");
    expect(first.manifest.disks[0]).toMatchObject({ mode: "whole", reason: "asked for" });
    expect(second.manifest.disks[0]).toMatchObject({ mode: "changes" });
    expect((await fixture.read(second, "vda")).equals(content)).toBe(true);
    const next = await fixture.backUp("b3", { vda: { content, mode: "compare" } }, second);
    expect(next.manifest).toMatchObject({ schemaVersion: 2, disks: [{ storedBytes: 0 }] });
    expect(await fixture.verify(next, "vda")).toBeUndefined();
  });
});

describe("DirectoryRepository.open", () => {
  it("serves chosen disks on a given socket until it is closed", async () => {
    const fixture = await RepositoryFixture.create();
    const content = noise(SIZE, 1);
    const entry = await fixture.backUp("b1", { vda: { content }, vdb: { content } });
    const { path } = await temporaryDirectory();
    const socketPath = join(path, "reader,s.sock");
    expect((await fixture.read(entry, "vdb", { targets: ["vdb"], socketPath })).equals(content)).toBe(true);
    expect(await readdir(path)).toEqual([]);
    await using backup = await fixture.repository.open(entry, { targets: ["vdb"] });
    expect(backup.addresses.map(({ target }) => target)).toEqual(["vdb"]);
    await expect(fixture.repository.open(entry, { targets: ["vdc"] })).rejects.toMatchObject({
      code: "DISK_NOT_FOUND",
    });
  });
});

describe("DirectoryRepository.list", () => {
  it("ignores foreign files and links, and lists unusable backups with the reason", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    const domain = join(fixture.path, DOMAIN);
    await writeFile(join(fixture.path, "README"), "");
    await writeFile(join(domain, "notes.txt"), "");
    await mkdir(join(domain, ".partial-b9"));
    await mkdir(join(domain, "not a name"));
    await symlink(join(domain, "b1"), join(domain, "b1-link"));
    await symlink(domain, join(fixture.path, "web02"));
    const text = await readFile(fixture.file("b1", "manifest.json"), "utf8");
    const broken: Record<string, string | undefined> = {
      empty: undefined,
      torn: text.slice(0, 100),
      newer: text.replace('"schemaVersion": 2', '"schemaVersion": 99'),
      renamed: text,
      escape: text.replace('"vda.qcow2"', '"../../x.qcow2"'),
      extra: text.replace('"reason"', '"surprise": 1, "reason"'),
    };
    for (const [id, content] of Object.entries(broken)) {
      await mkdir(join(domain, id));
      if (content !== undefined)
        await writeFile(
          join(domain, id, "manifest.json"),
          content.replace('"id": "b1"', id === "renamed" ? '"id": "b1"' : `"id": "${id}"`),
        );
    }
    const reasons = Object.fromEntries(
      (await fixture.repository.list()).map(({ id, damage }) => [id, damage]),
    );
    expect(reasons).toEqual({
      b1: undefined,
      empty: "it has no manifest",
      torn: "its manifest is not JSON",
      newer: expect.stringContaining("made by a newer version") as unknown,
      renamed: "its manifest is of backup b1 of domain web01",
      escape: expect.stringContaining("named after the target") as unknown,
      extra: expect.stringContaining("surprise") as unknown,
    });
    expect((await fixture.repository.list()).at(-1)).toEqual(entry);
  });

  it("fails when the repository's directory is missing, and creates nothing", async () => {
    const { path } = await temporaryDirectory();
    const repository = openRepository(join(path, "mount"), join(path, "run"));
    for (const action of [
      () => repository.list(),
      () => repository.lock(DOMAIN),
      () => repository.checkWritable(),
    ]) {
      await expect(action()).rejects.toMatchObject({ code: "PATH_NOT_FOUND" });
    }
    expect(await readdir(path)).toEqual([]);
  });
});

describe("DirectoryRepository.remove", () => {
  it("removes a backup, whatever its state, and may be repeated", async () => {
    const fixture = await RepositoryFixture.create();
    const entry = await fixture.backUp("b1", { vda: { content: noise(SIZE, 1) } });
    await mkdir(join(fixture.path, DOMAIN, "b2"));
    for (const doomed of await fixture.repository.list()) await fixture.repository.remove(doomed);
    await fixture.repository.remove(entry);
    expect(await readdir(join(fixture.path, DOMAIN))).toEqual([".lock"]);
  });
});
