import { mkdir, open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import { loadConfig, startAgent } from "../../src/agent.js";
import type { Backup, CopyReport, JobRun, ListBackupsResponse } from "../../src/api/messages.js";
import type { IntactEntry } from "../../src/model/backup.js";
import type { CopyWish } from "../../src/model/copy-plan.js";
import { deleteBackup } from "../../src/services/backup-catalog.js";
import { copyBackups } from "../../src/services/backup-copy.js";
import { restoreBackup, verifyBackup } from "../../src/services/backup-read.js";
import { runBackup } from "../../src/services/backup-run.js";
import type { ServiceContext } from "../../src/services/context.js";
import { startFaulty } from "../faults/support/steps.js";
import { compareImages } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import type { JsonObject } from "../support/monitor.js";
import { type Site, startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const BLOCK = 65_536;
const DISKS = [
  { target: "vda", format: "qcow2" as const, sizeBytes: 8 * MIB, filledBytes: 4 * MIB },
  { target: "vdb", format: "qcow2" as const, sizeBytes: MIB + 512, filledBytes: MIB },
];

/** A site with a plain repository `default` and a compressed one, `second`. */
async function start(more: JsonObject = {}, second: JsonObject = {}): Promise<Site> {
  const at = await startSite({ disks: DISKS });
  const config = parse(await readFile(at.configPath, "utf8")) as object;
  const repositories = [
    { name: "default", path: at.directory.file("backups") },
    { name: "second", path: at.directory.file("second"), compression: "zstd", ...second },
  ];
  await mkdir(at.directory.file("second"));
  await writeFile(at.directory.file("machine.conf"), "4 CPUs");
  const [domain] = (config as { domains: object[] }).domains;
  const domains = [{ ...domain, machineFiles: [{ name: "conf", path: at.directory.file("machine.conf") }] }];
  await writeFile(at.configPath, stringify({ ...config, ...more, domains, repositories }));
  return at;
}

async function agent(at: Site): Promise<ServiceContext> {
  const ignore = (): void => undefined;
  return startAgent(await loadConfig(at.configPath), { debug: ignore, info: ignore, warn: ignore });
}

async function copy(
  context: ServiceContext,
  wish: CopyWish = { kind: "newer" },
  places: { readonly from?: string; readonly to: string } = { to: "second" },
): Promise<readonly IntactEntry[]> {
  return (await copyBackups(context, { domain: "vm", wish, ...places })).copies;
}
const idsOf = (entries: readonly IntactEntry[]): readonly string[] => entries.map(({ id }) => id);

async function listed(at: Site, repository: string): Promise<readonly Backup[]> {
  return (await at.json<ListBackupsResponse>("backup", "list", "vm", "--repository", repository)).backups;
}

/** The disks as they are now are what a backup of this moment restores. The guest must not run. */
async function expectRestored(at: Site, id: string, repository: string): Promise<void> {
  const context = await agent(at);
  const directory = at.directory.file(`out-${repository}-${id}`);
  for (const { target, file } of await restoreBackup(context, { id, repository, directory })) {
    const disk = at.directory.file(`${target}.qcow2`);
    expect(await compareImages(disk, "qcow2", file, "qcow2")).toMatchObject({ identical: true });
  }
  expect(await readFile(`${directory}/machine/conf`, "utf8")).toBe("4 CPUs");
}

async function filesOf(at: Site, repository: string): Promise<readonly string[]> {
  const names = await readdir(at.directory.file(`${repository}/vm`)).catch(() => []);
  return names.filter((name) => name !== ".lock").toSorted();
}

describe("backup copy", () => {
  it("makes backups of their own that are restored without the originals, and copies nothing twice", async () => {
    const at = await start();
    const context = await agent(at);
    const full = await runBackup(context, { domain: "vm" });
    await at.vm.guestWrite("vda", MIB, 3 * BLOCK, 0x21);
    await at.vm.guestWriteZeroes("vda", 3 * MIB, 2 * BLOCK);
    const middle = await runBackup(context, { domain: "vm" });
    await at.vm.guestWrite("vda", MIB + BLOCK, BLOCK, 0x22);
    await at.vm.guestWrite("vdb", MIB, 512, 0x23);
    const last = await runBackup(context, { domain: "vm" });

    const copies = await copy(context);
    // With the digests of their originals, byte for byte.
    const expected = [full, middle, last].map((entry) => ({
      ...{ ...entry, repository: "second", copiedFrom: "default" },
    }));
    expect(copies).toEqual(expected);
    expect(await copy(context)).toEqual([]);
    await expect(deleteBackup(context, last.id)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });

    // A merge of originals does not matter for what is copied after it; nor does one of copies.
    await deleteBackup(context, last.id, { repository: "default" });
    await deleteBackup(context, full.id, { repository: "second" });
    await at.vm.guestWrite("vda", 2 * MIB, BLOCK, 0x24);
    const next = await runBackup(context, { domain: "vm" });
    expect(next.manifest).toMatchObject({ level: "incremental", parent: middle.id });
    await deleteBackup(context, middle.id, { repository: "default" });
    // No backup that it is based on is in both: what differs from the newest copy is found by comparing.
    const [compared] = await copy(context);
    expect(compared).toMatchObject({
      id: next.id,
      manifest: {
        level: "incremental",
        parent: last.id,
        disks: [{ mode: "compare", storedBytes: BLOCK }, {}],
      },
    });

    // In the second repository the next backup goes on from the copy, by the changes alone.
    await at.vm.guestWrite("vda", 5 * MIB, BLOCK, 0x25);
    const own = await runBackup(context, { domain: "vm", repository: "second" });
    const changes = [{ mode: "changes" }, { mode: "changes" }];
    expect(own.manifest).toMatchObject({ parent: next.id, disks: changes });
    await at.vm.quit();
    await rename(at.directory.file("backups"), at.directory.file("gone"));
    await expectRestored(at, own.id, "second");
    for (const { id } of [middle, last, next]) await verifyBackup(context, id, { repository: "second" });
  });

  it("encrypts what goes to an encrypted repository, and decrypts what comes back", async () => {
    const at = await start({}, { compression: "none", encryption: { keyFile: "key" } });
    await writeFile(at.directory.file("key"), "6Vt0oG2N5yqJc1wXhUeB8rLzKdPfM3sA", { mode: 0o600 });
    const context = await agent(at);
    const full = await runBackup(context, { domain: "vm" });
    await at.vm.guestWrite("vda", MIB, 3 * BLOCK, 0x21);
    const next = await runBackup(context, { domain: "vm" });
    const copies = await copy(context);
    const keyId = expect.stringMatching(/^\w+/) as string;
    for (const { manifest } of copies) {
      expect(manifest).toMatchObject({ disks: [{ keyId }, { keyId }], machineFiles: [{ keyId }] });
    }
    const stored = at.directory.file(`second/vm/${next.id}`);
    expect((await readFile(`${stored}/machine/conf`)).includes("4 CPUs")).toBe(false);
    expect((await readFile(`${stored}/vda.qcow2`)).includes(Buffer.alloc(512, 0x21))).toBe(false);
    await deleteBackup(context, next.id, { repository: "default" });
    await deleteBackup(context, full.id, { repository: "default" });
    const back = await copy(context, { kind: "newer" }, { from: "second", to: "default" });
    expect(back.map(({ manifest }) => manifest.disks)).toEqual(
      [full, next].map(({ manifest }) => manifest.disks),
    );
    expect(back[1]?.manifest.machineFiles).toEqual(next.manifest.machineFiles);
    await at.vm.quit();
    for (const repository of ["default", "second"]) await expectRestored(at, next.id, repository);
  });

  it("bases the newest alone on the nearest backup that is there, or makes a full of it", async () => {
    const at = await start();
    const context = await agent(at);
    const first = await runBackup(context, { domain: "vm" });
    await at.vm.guestWrite("vda", MIB, 3 * BLOCK, 0x21);
    const second = await runBackup(context, { domain: "vm" });
    expect(await copy(context, { kind: "latest" })).toMatchObject([
      { id: second.id, manifest: { level: "full" } },
    ]);
    await at.vm.guestWrite("vda", 2 * MIB, BLOCK, 0x22);
    await at.vm.guestWriteZeroes("vda", 0, MIB);
    await runBackup(context, { domain: "vm" });
    await at.vm.guestWrite("vda", 2 * MIB, BLOCK, 0x23);
    await at.vm.guestWrite("vdb", 0, BLOCK, 0x24);
    const fourth = await runBackup(context, { domain: "vm" });
    const [copied] = await copy(context, { kind: "latest" });
    expect(copied).toMatchObject({ id: fourth.id, manifest: { level: "incremental", parent: second.id } });
    const sizes = copied?.manifest.disks.map(({ storedBytes, zeroBytes }) => [storedBytes, zeroBytes]);
    expect(sizes).toEqual([
      [BLOCK, MIB],
      [BLOCK, 0],
    ]);
    // What the second repository lacks of older ones comes only if it is asked for.
    expect(await copy(context)).toEqual([]);
    expect(idsOf(await copy(context, { kind: "ids", ids: [first.id] }))).toEqual([first.id]);
    await at.vm.quit();
    await expectRestored(at, fourth.id, "second");

    // And back, from a compressed repository to a plain one.
    await deleteBackup(context, fourth.id, { repository: "default" });
    const wish = { kind: "ids", ids: [fourth.id] } as const;
    const [back] = await copy(context, wish, { from: "second", to: "default" });
    expect(back).toMatchObject({ copiedFrom: "second", manifest: { parent: second.id } });
    await expectRestored(at, fourth.id, "default");
  });

  it("does not copy what is damaged, says so, and does not base a backup on it", async () => {
    const at = await start();
    const context = await agent(at);
    const full = await runBackup(context, { domain: "vm" });
    const image = await open(at.directory.file(`backups/vm/${full.id}/vda.qcow2`), "r+");
    const { size } = await image.stat();
    // The last cluster of the image is content.
    await image.write(Buffer.alloc(512, 0x77), 0, 512, size - BLOCK);
    await image.close();
    const result = await at.run("backup", "copy", "vm", "--to", "second");
    expect(result.stderr).toMatch(/in repository default is damaged, and not copied.*\(DAMAGED\)/);
    expect(result.exitCode).toBe(6);
    expect(await filesOf(at, "second")).toEqual([]);
    const next = await runBackup(context, { domain: "vm" });
    const reason = expect.stringContaining("found damaged") as string;
    expect(next.manifest).toMatchObject({ level: "full", reason });
    await expect(copy(context)).rejects.toMatchObject({ code: "DAMAGED" });
    expect(await filesOf(at, "second")).toEqual([next.id]);
    expect(await copy(context)).toEqual([]);
  });

  it("leaves nothing of a copy whose process is killed, once another command has run", async () => {
    const at = await start();
    const context = await agent(at);
    const full = await runBackup(context, { domain: "vm" });
    const args = ["--embedded", "backup", "copy", "vm", "--to", "second"];
    const fault = { match: /^rename \S+\/second\//, at: 1, when: "before", action: "kill" } as const;
    const faulty = await startFaulty(at, args, fault);
    untilTestEnds(faulty.process);
    expect((await faulty.process.result()).signal).toBe("SIGKILL");
    expect(await filesOf(at, "second")).toEqual([`.partial-${full.id}`]);
    expect(await listed(at, "second")).toEqual([]);
    expect(await filesOf(at, "second")).toEqual([]);
    expect((await at.files()).filter((name) => name.startsWith("state/operations"))).toEqual([]);
    const report = await at.json<CopyReport>("backup", "copy", "vm", "--to", "second");
    expect(report).toMatchObject({
      ...{ domain: "vm", repository: "default", to: "second" },
      backups: [{ id: full.id, repository: "second", copiedFrom: "default", level: "FULL" }],
    });
    await at.vm.quit();
    await expectRestored(at, full.id, "second");
  });
});

describe("a job with copyTo", () => {
  const JOB = { name: "nightly", schedule: "0 0 1 1 *", domains: "all", copyTo: "second", catchUp: false };

  it("copies each backup, lets go in the second repository what that does not keep, and tells of trouble", async () => {
    const at = await start({ jobs: [JOB] }, { retention: { last: 1 } });
    const runs: JobRun[] = [];
    for (let night = 1; night <= 2; night++) {
      await at.vm.guestWrite("vda", night * MIB, BLOCK, night);
      runs.push(await at.json<JobRun>("job", "run", "nightly"));
    }
    const ids = runs.map(({ domains }) => domains[0]?.backup?.id ?? "");
    expect(runs.map(({ state }) => state)).toEqual(["COMPLETE", "COMPLETE"]);
    expect(runs.map(({ domains }) => domains[0]?.copies)).toEqual(ids.map((id) => [id]));
    expect((await listed(at, "default")).map(({ id }) => id)).toEqual(ids);
    expect(await listed(at, "second")).toMatchObject([{ id: ids[1], level: "FULL" }]);

    // What backups or copies are to be based on is gone: they are taken without, and somebody is told.
    await rm(at.directory.file(`second/vm/${ids[1] ?? ""}/vda.qcow2`));
    const copied = await at.json<JobRun>("job", "run", "nightly");
    const third = copied.domains[0]?.backup?.id ?? "";
    const flaw = (id = "", place = ""): string =>
      `backup ${id} was found damaged when it was verified: The image ${at.directory.file(place)}/vm/${id}/vda.qcow2 is missing`;
    expect(copied).toMatchObject({
      state: "COMPLETE_WITH_NOTES",
      domains: [
        {
          copies: [third],
          notes: [
            `the copy of backup ${third} in repository second is stored as a full: ${flaw(ids[1], "second")}`,
          ],
        },
      ],
    });
    expect(await listed(at, "second")).toMatchObject([{ id: third, level: "FULL" }]);
    await rm(at.directory.file(`backups/vm/${third}/vda.qcow2`));
    const anew = await at.json<JobRun>("job", "run", "nightly");
    expect(anew).toMatchObject({
      state: "COMPLETE_WITH_NOTES",
      domains: [
        { backup: { level: "INCREMENTAL", parent: ids[1] }, notes: [expect.stringContaining(third)] },
      ],
    });

    await rename(at.directory.file("second"), at.directory.file("unmounted"));
    const failed = await at.json<JobRun>("job", "run", "nightly");
    expect(failed).toMatchObject({
      state: "COMPLETE_WITH_NOTES",
      domains: [{ notes: [expect.stringMatching(/^copy failed: .*\(PATH_NOT_FOUND\)/) as string] }],
    });
    await rename(at.directory.file("unmounted"), at.directory.file("second"));
    const made = await at.json<JobRun>("job", "run", "nightly");
    expect(made.domains[0]?.copies).toHaveLength(2);
    await at.vm.quit();
    await expectRestored(at, made.domains[0]?.backup?.id ?? "", "second");
  });
});
