import { rename, rm } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import type { DiskMode, IntactEntry } from "../../src/model/backup.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import { deleteBackup } from "../../src/services/backup-catalog.js";
import { restoreBackup, verifyBackup } from "../../src/services/backup-read.js";
import { runBackup } from "../../src/services/backup-run.js";
import type { ServiceContext } from "../../src/services/context.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { compareImages, createImage, fillImage, qemuImg } from "../support/image-tool.js";
import { startSite, type Site, type SiteDisk } from "../support/site.js";

const MIB = 1024 * 1024;

async function agent(at: Site): Promise<ServiceContext> {
  const ignore = (): void => undefined;
  return startAgent(await loadConfig(at.configPath), { debug: ignore, info: ignore, warn: ignore });
}

async function backUp(at: Site, request: { disks?: readonly string[] } = {}): Promise<IntactEntry> {
  return runBackup(await agent(at), { domain: "vm", ...request });
}

async function backUpIncrementally(
  at: Site,
  parent: IntactEntry,
  modes: Readonly<Record<string, DiskMode>>,
): Promise<IntactEntry> {
  const entry = await runBackup(await agent(at), { domain: "vm", level: "incremental" });
  expect(entry.manifest).toMatchObject({ level: "incremental", parent: parent.id });
  expect(Object.fromEntries(entry.manifest.disks.map(({ target, mode }) => [target, mode]))).toEqual(modes);
  return entry;
}

/** The backup verifies and restores to what the disks hold; the guest has written nothing since. */
async function expectSound(at: Site, { id, manifest }: IntactEntry, paths = diskPaths(at)): Promise<void> {
  const context = await agent(at);
  await verifyBackup(context, id);
  const directory = at.directory.file(`restored-${id}`);
  const restored = await restoreBackup(context, { id, directory, format: "raw" });
  const wasRunning = at.vm.running;
  if (wasRunning) await at.vm.quit();
  expect(restored).toHaveLength(manifest.disks.length);
  for (const { target, file } of restored) {
    const { path, format } = paths.get(target) ?? { path: "", format: "raw" };
    expect(await compareImages(path, format, file, "raw"), target).toMatchObject({ identical: true });
  }
  if (wasRunning) await at.vm.restart();
  // It may be restored again, after changes around it.
  await rm(directory, { recursive: true });
}

function diskPaths(at: Site): ReadonlyMap<string, Site["vm"]["disks"][number]> {
  return new Map(at.vm.disks.map((disk) => [disk.target, disk]));
}

function stored({ manifest }: IntactEntry, target: string): { data: number; zero: number; read: number } {
  const disk = manifest.disks.find((listed) => listed.target === target);
  return { data: disk?.storedBytes ?? -1, zero: disk?.zeroBytes ?? -1, read: disk?.readBytes ?? -1 };
}

const CUT_DISK: SiteDisk = {
  target: "vda",
  format: "qcow2",
  sizeBytes: 8 * MIB + 3 * 512,
  filledBytes: 4 * MIB,
};

describe("A backup after its checkpoints were lost", () => {
  it("with QEMU killed, stores what differs alone, data that became zero too, and changes are known again", async () => {
    const at = await startSite({ disks: [CUT_DISK] });
    await at.vm.qmp("block-dirty-bitmap-add", { node: "vda-format", name: "theirs", persistent: true });
    const full = await backUp(at);
    // A clean stop in between: what the killed process had loaded is then inconsistent, and not absent.
    await at.vm.restart();
    await at.vm.guestWrite("vda", MIB, 5000, 1);
    await at.vm.guestFlush("vda");
    await at.vm.kill();
    await at.vm.restart();
    // Nothing records now.
    await at.vm.guestWrite("vda", 6 * MIB, BLOCK_SIZE, 2);
    await at.vm.guestWrite("vda", 8 * MIB + 512, 1024, 3);
    await at.vm.guestWriteZeroes("vda", 2 * MIB, BLOCK_SIZE);
    await at.vm.guestDiscard("vda", 3 * MIB, 2 * BLOCK_SIZE);
    await at.vm.guestWriteZeroes("vda", 7 * MIB, BLOCK_SIZE);

    const compared = await backUpIncrementally(at, full, { vda: "compare" });
    expect(compared.manifest.reason).toMatch(
      new RegExp(`^based on backup ${full.id}; disk vda is read whole and compared with it: .* inconsistent`),
    );
    const { data, zero, read } = stored(compared, "vda");
    expect({ data, zero }).toEqual({ data: 2 * BLOCK_SIZE + 3 * 512, zero: 3 * BLOCK_SIZE });
    expect(read).toBeGreaterThanOrEqual(4 * MIB - 3 * BLOCK_SIZE);
    const { bitmaps } = await at.vm.blockState();
    expect(bitmaps.filter(({ inconsistent }) => inconsistent).map(({ name }) => name)).toEqual(["theirs"]);
    expect(bitmaps.map(({ name }) => name.split(":").at(-1)).toSorted()).toEqual(
      [compared.id, "theirs"].toSorted(),
    );
    await expectSound(at, compared);

    await at.vm.guestWrite("vda", 5 * MIB, 5000, 4);
    const changed = await backUpIncrementally(at, compared, { vda: "changes" });
    expect(stored(changed, "vda")).toEqual({ data: BLOCK_SIZE, zero: 0, read: BLOCK_SIZE });
    await expectSound(at, changed);
    await deleteBackup(await agent(at), full.id);
    await expectSound(at, changed);
  });

  it("with QEMU killed in the run that made them, compares while the domain is off", async () => {
    const at = await startSite({ disks: [CUT_DISK] });
    const full = await backUp(at);
    await at.vm.guestWrite("vda", 5 * MIB, 5000, 1);
    await at.vm.guestFlush("vda");
    await at.vm.kill();
    const compared = await backUpIncrementally(at, full, { vda: "compare" });
    expect(stored(compared, "vda")).toMatchObject({ data: BLOCK_SIZE, zero: 0 });
    expect(compared.manifest).toMatchObject({ consistency: "clean" });
    await expectSound(at, compared);
    await at.vm.restart();
    await at.vm.guestWrite("vda", 6 * MIB, 5000, 2);
    await expectSound(at, await backUpIncrementally(at, compared, { vda: "changes" }));
  });

  it("of a raw disk with a VM stop, compares that disk alone", async () => {
    const at = await startSite({
      disks: [CUT_DISK, { target: "vdb", format: "raw", sizeBytes: 4 * MIB, filledBytes: MIB }],
    });
    const full = await backUp(at);
    await at.vm.guestWrite("vdb", 2 * MIB, 5000, 1);
    await at.vm.restart();
    await at.vm.guestWriteZeroes("vdb", 0, 2 * BLOCK_SIZE);
    const next = await backUpIncrementally(at, full, { vda: "changes", vdb: "compare" });
    expect(stored(next, "vda")).toEqual({ data: 0, zero: 0, read: 0 });
    expect(stored(next, "vdb")).toMatchObject({ data: BLOCK_SIZE, zero: 2 * BLOCK_SIZE });
    await expectSound(at, next);
  });

  it("by hand, on a running domain or an inactive one, compares the disk that lost them", async () => {
    const at = await startSite();
    const full = await backUp(at);
    const [bitmap] = (await at.vm.blockState()).bitmaps;
    await at.vm.qmp("block-dirty-bitmap-remove", { node: "vdb-format", name: bitmap?.name ?? "" });
    await at.vm.guestWrite("vda", 5 * MIB, 5000, 1);
    await at.vm.guestWrite("vdb", 6 * MIB, 5000, 2);
    const second = await backUpIncrementally(at, full, { vda: "changes", vdb: "compare" });
    expect(stored(second, "vdb")).toMatchObject({ data: BLOCK_SIZE, zero: 0 });
    await expectSound(at, second);

    const recording = (await at.vm.blockState()).bitmaps.find(
      ({ node, recording: records }) => node === "vda-format" && records,
    );
    await at.vm.guestWrite("vda", 2 * MIB, 5000, 3);
    await at.vm.quit();
    await qemuImg("bitmap", "--remove", "-f", "qcow2", at.vm.disk("vda").path, recording?.name ?? "");
    await at.vm.restart();
    await at.vm.guestWriteZeroes("vda", 0, BLOCK_SIZE);
    const third = await backUpIncrementally(at, second, { vda: "compare", vdb: "changes" });
    expect(stored(third, "vda")).toMatchObject({ data: BLOCK_SIZE, zero: BLOCK_SIZE });
    await expectSound(at, third);
  });
});

describe("A backup of a disk that is not the one of the last backup", () => {
  it("stores a disk that grew whole, and goes on from there", async () => {
    const at = await startSite();
    const full = await backUp(at);
    await at.vm.guestWrite("vda", 5 * MIB, 5000, 1);
    await at.vm.qmp("block_resize", { "node-name": "vdb-format", size: 9 * MIB + 512 });
    await at.vm.guestWrite("vdb", 9 * MIB, 512, 2);
    const grown = await backUpIncrementally(at, full, { vda: "changes", vdb: "whole" });
    expect(grown.manifest.reason).toContain("disk vdb is stored whole: it has 9437696 bytes and had 8388608");
    expect(stored(grown, "vdb")).toMatchObject({ data: 4 * MIB + 512 });
    await expectSound(at, grown);
    await at.vm.guestWrite("vdb", 8 * MIB, 5000, 3);
    const next = await backUpIncrementally(at, grown, { vda: "changes", vdb: "changes" });
    expect(stored(next, "vdb")).toMatchObject({ data: BLOCK_SIZE });
    await expectSound(at, next);
  });

  it("stores a disk that is new whole, beside the changes of the others", async () => {
    const at = await startSite();
    const full = await backUp(at, { disks: ["vda"] });
    await at.vm.guestWrite("vda", 5 * MIB, 5000, 1);
    const next = await backUpIncrementally(at, full, { vda: "changes", vdb: "whole" });
    expect(stored(next, "vda")).toMatchObject({ data: BLOCK_SIZE });
    expect(stored(next, "vdb")).toMatchObject({ data: 4 * MIB });
    await expectSound(at, next);
    await expectSound(at, await backUpIncrementally(at, next, { vda: "changes", vdb: "changes" }));
  });

  it("compares a disk whose image was replaced", async () => {
    const at = await startSite();
    const full = await backUp(at);
    await at.vm.quit();
    const { path } = at.vm.disk("vdb");
    await rename(path, at.directory.file("old.qcow2"));
    await createImage(path, 8 * MIB);
    await fillImage(path, "qcow2", { offset: 0, length: MIB, pattern: 0x5a });
    await fillImage(path, "qcow2", { offset: 6 * MIB, length: MIB, pattern: 7 });
    await at.vm.restart();
    const next = await backUpIncrementally(at, full, { vda: "changes", vdb: "compare" });
    expect(stored(next, "vdb")).toMatchObject({ data: MIB, zero: 3 * MIB });
    await expectSound(at, next);
  });

  it("compares disks that have changed places, though each has a sound bitmap of that name", async () => {
    const at = await startSite();
    await at.vm.guestWrite("vda", MIB, 5000, 1);
    await at.vm.guestWrite("vdb", 2 * MIB, 5000, 2);
    const full = await backUp(at);
    const [vda, vdb] = [at.vm.disk("vda"), at.vm.disk("vdb")];
    const disks = [
      { ...vda, path: vdb.path },
      { ...vdb, path: vda.path },
    ];
    await writeConfig(at.directory.path, {
      domains: [domainConfig("vm", { qmpPath: at.vm.qmpPath, disks })],
      more: { runtimeDir: at.directory.file("run") },
    });
    const next = await backUpIncrementally(at, full, { vda: "compare", vdb: "compare" });
    expect(next.manifest.reason).toContain(`its image is ${vdb.path} and was ${vda.path}`);
    await expectSound(at, next, new Map(disks.map((disk) => [disk.target, disk])));
  });
});
