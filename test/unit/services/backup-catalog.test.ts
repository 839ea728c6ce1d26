import { describe, expect, it } from "vitest";
import {
  deleteBackup,
  findBackup,
  findBackupAt,
  findReadable,
  listBackups,
  protectBackup,
} from "../../../src/services/backup-catalog.js";
import { runBackup } from "../../../src/services/backup-run.js";
import type { BackupEntry } from "../../../src/model/backup.js";
import type { BackupRepository } from "../../../src/ports/repository.js";
import { removeCheckpoint } from "../../../src/services/checkpoint-delete.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

/** A domain with a full and two incrementals. */
async function chain(): Promise<{ context: ServiceContext; world: FakeWorld; ids: readonly string[] }> {
  const { path } = await temporaryDirectory();
  const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 3 * 65536 }] });
  const { context } = world.process();
  const ids: string[] = [];
  for (let block = 0; block < 3; block++) {
    world.domain.write("vda", block * 65536, 512, 1);
    ids.push((await runBackup(context, { domain: "vm" })).id);
  }
  return { context, world, ids };
}

/** The same, but manifests of these backups cannot be read. */
function withDamage(context: ServiceContext, ids: readonly string[]): ServiceContext {
  const [repository] = context.repositories.values();
  const list = async (domain?: string): Promise<readonly BackupEntry[]> =>
    ((await repository?.list(domain)) ?? []).map((entry) => {
      if (!ids.includes(entry.id)) return entry;
      return { repository: entry.repository, domain: "vm", id: entry.id, damage: "it has no manifest" };
    });
  const listing = { name: "default", list } as unknown as BackupRepository;
  return { ...context, repositories: new Map([["default", listing]]) };
}

describe("runBackup", () => {
  it("takes a full, then incrementals that read what changed alone", async () => {
    const { context, ids } = await chain();
    const found = await Promise.all(ids.map((id) => findReadable(context, id)));
    expect(found.map(({ entry }) => entry.manifest.level)).toEqual(["full", "incremental", "incremental"]);
    expect(found.map(({ entry }) => entry.manifest.parent)).toEqual([undefined, ids[0], ids[1]]);
    expect(found.map(({ entry }) => entry.manifest.disks[0]?.readBytes)).toEqual([65536, 65536, 65536]);
  });

  it("refuses an incremental that is asked for and not possible, before anything is changed", async () => {
    const { path } = await temporaryDirectory();
    const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 65536 }] });
    const before = await world.traces();
    const run = runBackup(world.process().context, { domain: "vm", level: "incremental" });
    await expect(run).rejects.toMatchObject({ code: "CHECKPOINT_INVALID" });
    expect(await world.traces()).toEqual(before);
    expect(world.domain.disk("vda").bitmaps.size).toBe(0);
  });

  it("compares after a crash of QEMU, without the bitmaps that it has spoilt, and says why everywhere", async () => {
    const { context, world, ids } = await chain();
    world.domain.restart();
    world.domain.crash();
    world.domain.start();
    world.domain.write("vda", 0, 65536, 0);
    const last = ids[2] ?? "";
    const lost = `checkpoint ${last} is inconsistent: QEMU ended without saving it`;
    const next = await runBackup(context, { domain: "vm", level: "incremental" });
    expect(next.manifest).toMatchObject({
      level: "incremental",
      parent: last,
      reason: `based on backup ${last}; disk vda is read whole and compared with it: ${lost}`,
      disks: [{ target: "vda", mode: "compare", reason: lost, storedBytes: 0, zeroBytes: 65536 }],
    });
    expect(world.log).toContain(lost);
    expect(world.repository.content(next.id, "vda").equals(world.domain.disk("vda").content)).toBe(true);
    expect(world.domain.disk("vda").state(true).checkpoints).toMatchObject([
      { name: next.id, inconsistent: false, recording: true },
    ]);
  });

  it("stores a disk whole that the last backup did not have, in an incremental", async () => {
    const { path } = await temporaryDirectory();
    const disks = ["vda", "vdb"].map((target) => ({ target, sizeBytes: 4 * 65536 }));
    const world = new FakeWorld(path, { disks });
    const { context } = world.process();
    world.domain.write("vdb", 65536, 512, 7);
    const first = await runBackup(context, { domain: "vm", disks: ["vda"] });
    const next = await runBackup(context, { domain: "vm" });
    expect(next.manifest).toMatchObject({
      level: "incremental",
      parent: first.id,
      disks: [
        { target: "vda", mode: "changes", readBytes: 0 },
        { target: "vdb", mode: "whole", storedBytes: 65536, zeroBytes: 0 },
      ],
    });
    await deleteBackup(context, first.id);
    const { entry } = await findReadable(context, next.id);
    expect(entry.manifest).toMatchObject({ level: "full", disks: [{ mode: "whole" }, { mode: "whole" }] });
    expect(world.repository.content(next.id, "vdb").equals(world.domain.disk("vdb").content)).toBe(true);
  });
});

describe("findBackupAt", () => {
  it("finds the newest at or before the moment, and says what there is if there is none", async () => {
    const { context, ids } = await chain();
    const backups = await Promise.all(ids.map((id) => findReadable(context, id)));
    const times = backups.map(({ entry }) => Date.parse(entry.manifest.time));
    const find = async (atMs?: number) =>
      (await findBackupAt(context, { domain: "vm", atMs, repository: undefined })).id;
    expect(await find()).toBe(ids[2]);
    expect(await find(Date.UTC(2100, 0))).toBe(ids[2]);
    expect(await find(times[1])).toBe(ids[1]);
    expect(await find(Number(times[1]) - 1)).toBe(ids[0]);
    await expect(find(Number(times[0]) - 1)).rejects.toMatchObject({
      code: "BACKUP_NOT_FOUND",
      message: expect.stringMatching(
        new RegExp(`no intact backup of vm at or before .*Z: the oldest is ${String(ids[0])} of .*Z in`),
      ) as string,
    });
    const none = findBackupAt(context, { domain: "other", atMs: undefined, repository: undefined });
    await expect(none).rejects.toThrow("There is no intact backup of other: there are backups of vm");
  });

  it("passes over what is damaged or based on that, and logs it", async () => {
    const { context, world, ids } = await chain();
    const filter = { domain: "vm", atMs: undefined, repository: "default" };
    expect((await findBackupAt(withDamage(context, ids.slice(1, 2)), filter)).id).toBe(ids[0]);
    expect(world.log.at(-1)).toBe(`Passed over damaged backups: ${ids.slice(1).join(", ")}`);
    await expect(findBackupAt(withDamage(context, ids), filter)).rejects.toThrow(
      `no intact backup of vm: damaged are ${ids.join(", ")}`,
    );
  });
});

describe("deleteBackup", () => {
  it("merges a backup that another is based on into that one, and its checkpoint into the one before", async () => {
    const { context, world, ids } = await chain();
    const { entry, mergedInto } = await deleteBackup(context, ids[1] ?? "");
    expect({ id: entry.id, mergedInto }).toEqual({ id: ids[1], mergedInto: ids[2] });
    expect((await listBackups(context)).map(({ id }) => id)).toEqual([ids[0], ids[2]]);
    const { entry: last } = await findReadable(context, ids[2] ?? "");
    expect(last.manifest).toMatchObject({ level: "incremental", parent: ids[0] });
    expect(world.repository.content(last.id, "vda").equals(world.domain.disk("vda").content)).toBe(true);
    const names = world.domain
      .disk("vda")
      .state(true)
      .checkpoints.map(({ name }) => name);
    expect(names).toEqual([ids[0], ids[2]]);
  });

  it("refuses a backup that several are based on, and says which", async () => {
    const { context, ids } = await chain();
    await deleteBackup(context, ids[2] ?? "");
    await deleteBackup(context, ids[1] ?? "");
    const children: string[] = [];
    for (let turn = 0; turn < 2; turn++) {
      children.push((await runBackup(context, { domain: "vm", disks: ["vda"] })).id);
      await removeCheckpoint(context, "vm", children[turn] ?? "");
    }
    await expect(deleteBackup(context, ids[0] ?? "")).rejects.toMatchObject({
      code: "BACKUP_HAS_CHILDREN",
      facts: { backup: ids[0], children },
    });
    expect(await listBackups(context)).toHaveLength(3);
  });

  it("refuses a protected backup until that is ended", async () => {
    const { context, ids } = await chain();
    const id = ids[2] ?? "";
    expect(await protectBackup(context, id, true)).toMatchObject({ id, protected: true });
    await expect(deleteBackup(context, id)).rejects.toMatchObject({ code: "BACKUP_PROTECTED" });
    await protectBackup(context, id, false);
    await deleteBackup(context, id);
  });

  it("removes the newest, and then the next backup is based on what is left or full", async () => {
    const { context, world, ids } = await chain();
    await deleteBackup(context, ids[2] ?? "");
    expect((await listBackups(context, { domain: "vm" })).map(({ id }) => id)).toEqual(ids.slice(0, 2));
    const next = await runBackup(context, { domain: "vm" });
    expect(next.manifest).toMatchObject({ level: "incremental", parent: ids[1] });
    expect(world.repository.content(next.id, "vda").equals(world.domain.disk("vda").content)).toBe(true);
    await expect(findBackup(context, ids[2] ?? "")).rejects.toMatchObject({ code: "BACKUP_NOT_FOUND" });
  });

  it("refuses while a backup of the domain is being written", async () => {
    const { context, world, ids } = await chain();
    const lock = await world.repository.lock("vm");
    await expect(deleteBackup(context, ids[2] ?? "")).rejects.toMatchObject({ code: "REPOSITORY_BUSY" });
    await lock.release();
    await deleteBackup(context, ids[2] ?? "");
  });

  it("releases its lock after a refusal", async () => {
    const { context, ids } = await chain();
    await protectBackup(context, ids[2] ?? "", true);
    await expect(deleteBackup(context, ids[2] ?? "")).rejects.toMatchObject({ code: "BACKUP_PROTECTED" });
    await deleteBackup(context, ids[1] ?? "");
  });

  it.each([
    ["20260101T000000Z-aaaaaa", "BACKUP_NOT_FOUND"],
    ["../x", "INVALID_NAME"],
  ])("fails for %s with %s", async (id, code) => {
    const { context } = await chain();
    await expect(deleteBackup(context, id)).rejects.toMatchObject({ code });
  });
});
