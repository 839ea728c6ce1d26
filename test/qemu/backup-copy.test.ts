import { open, readdir, readFile, rename, writeFile } from "node:fs/promises";
import { mkdir } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import type { Backup, CopyReport, JobRun, ListBackupsResponse } from "../../src/api/messages.js";
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

const backUp = (at: Site, ...args: string[]): Promise<Backup> =>
  at.json<Backup>("backup", "run", "vm", ...args);
const copy = (at: Site, ...args: string[]): Promise<CopyReport> =>
  at.json<CopyReport>("backup", "copy", "vm", "--to", "second", ...args);
const idsOf = ({ backups }: Pick<CopyReport, "backups">): readonly string[] => backups.map(({ id }) => id);

async function listed(at: Site, repository: string): Promise<readonly Backup[]> {
  return (await at.json<ListBackupsResponse>("backup", "list", "vm", "--repository", repository)).backups;
}

/** The disks as they are now, to be compared with a backup of this moment. The guest must not run. */
async function expectRestored(at: Site, id: string, repository: string): Promise<void> {
  await at.json("backup", "verify", id, "--repository", repository);
  const to = at.directory.file(`out-${repository}-${id}`);
  await at.json("backup", "restore", id, "--repository", repository, "--to", to);
  for (const { target } of DISKS) {
    const disk = at.directory.file(`${target}.qcow2`);
    expect(await compareImages(disk, "qcow2", `${to}/${target}.qcow2`, "qcow2")).toMatchObject({
      identical: true,
    });
  }
  expect(await readFile(`${to}/machine/conf`, "utf8")).toBe("4 CPUs");
}

interface StoredDisk {
  readonly target: string;
  readonly digestsSha256: string;
}

async function manifest(at: Site, repository: string, id: string): Promise<JsonObject> {
  return JSON.parse(
    await readFile(at.directory.file(`${repository}/vm/${id}/manifest.json`), "utf8"),
  ) as JsonObject;
}

async function filesOf(at: Site, repository: string): Promise<readonly string[]> {
  const names = await readdir(at.directory.file(`${repository}/vm`)).catch(() => []);
  return names.filter((name) => name !== ".lock").toSorted();
}

describe("fleece backup copy", () => {
  it("makes backups of their own that are restored without the originals, and copies nothing twice", async () => {
    const at = await start();
    const full = await backUp(at);
    await at.vm.guestWrite("vda", MIB, 3 * BLOCK, 0x21);
    await at.vm.guestWriteZeroes("vda", 3 * MIB, 2 * BLOCK);
    const middle = await backUp(at);
    await at.vm.guestWrite("vda", MIB + BLOCK, BLOCK, 0x22);
    await at.vm.guestWrite("vdb", MIB, 512, 0x23);
    const last = await backUp(at);

    const report = await copy(at);
    expect(idsOf(report)).toEqual([full.id, middle.id, last.id]);
    expect(report.backups).toMatchObject([
      { level: "FULL", repository: "second", copiedFrom: "default", time: full.time },
      { level: "INCREMENTAL", parent: full.id },
      { level: "INCREMENTAL", parent: middle.id, checkpoint: last.checkpoint, disks: last.disks },
    ]);
    for (const { id } of [full, middle, last]) {
      const [original, copied] = [await manifest(at, "backups", id), await manifest(at, "second", id)];
      const digests = (disks: unknown) => (disks as StoredDisk[]).map(({ digestsSha256 }) => digestsSha256);
      expect(digests(copied["disks"])).toEqual(digests(original["disks"]));
      expect(copied["machineFiles"]).toEqual(original["machineFiles"]);
    }
    expect(idsOf(await copy(at))).toEqual([]);
    expect(await at.run("backup", "delete", last.id)).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining("several have backup") as string,
    });

    // A merge of originals does not matter for what is copied after it; nor does one of copies.
    await at.json("backup", "delete", last.id, "--repository", "default");
    await at.json("backup", "delete", full.id, "--repository", "second");
    await at.vm.guestWrite("vda", 2 * MIB, BLOCK, 0x24);
    const next = await backUp(at);
    expect(next).toMatchObject({ level: "INCREMENTAL", parent: middle.id });
    await at.json("backup", "delete", middle.id, "--repository", "default");
    expect(idsOf(await copy(at))).toEqual([next.id]);

    // In the second repository the next backup goes on from the copy, by the changes alone.
    await at.vm.guestWrite("vda", 5 * MIB, BLOCK, 0x25);
    const own = await backUp(at, "--repository", "second");
    expect(own).toMatchObject({ parent: next.id, disks: [{ mode: "CHANGES" }, { mode: "CHANGES" }] });
    await at.vm.quit();
    await expectRestored(at, own.id, "second");
    await rename(at.directory.file("backups"), at.directory.file("gone"));
    for (const { id } of [middle, last, next]) {
      await at.json("backup", "verify", id, "--repository", "second");
    }
  });

  it("bases the newest alone on the nearest backup that is there, or makes a full of it", async () => {
    const at = await start();
    const first = await backUp(at);
    await at.vm.guestWrite("vda", MIB, 3 * BLOCK, 0x21);
    const second = await backUp(at);
    expect((await copy(at, "--latest")).backups).toMatchObject([{ id: second.id, level: "FULL" }]);
    await at.vm.guestWrite("vda", 2 * MIB, BLOCK, 0x22);
    await at.vm.guestWriteZeroes("vda", 0, MIB);
    const third = await backUp(at);
    await at.vm.guestWrite("vda", 2 * MIB, BLOCK, 0x23);
    await at.vm.guestWrite("vdb", 0, BLOCK, 0x24);
    const fourth = await backUp(at);
    const { backups } = await copy(at, "--latest");
    expect(backups).toMatchObject([{ id: fourth.id, level: "INCREMENTAL", parent: second.id }]);
    // What the second repository lacks of older ones comes only if it is asked for.
    expect(idsOf(await copy(at))).toEqual([]);
    expect(idsOf(await copy(at, "--id", first.id))).toEqual([first.id]);
    await at.vm.quit();
    await expectRestored(at, fourth.id, "second");
    expect(third.id).not.toBe(fourth.id);

    // And back, from a compressed repository to a plain one.
    await at.json("backup", "delete", fourth.id, "--repository", "default");
    await at.json("backup", "copy", "vm", "--repository", "second", "--to", "default", "--id", fourth.id);
    expect(await at.json("backup", "show", fourth.id)).toMatchObject({
      parent: second.id,
      copiedFrom: "second",
    });
    await expectRestored(at, fourth.id, "default");
  });

  it("does not copy what is damaged, says so, and does not base a backup on it", async () => {
    const at = await start();
    const full = await backUp(at);
    const image = await open(at.directory.file(`backups/vm/${full.id}/vda.qcow2`), "r+");
    const { size } = await image.stat();
    // The last cluster of the image is content.
    await image.write(Buffer.alloc(512, 0x77), 0, 512, size - BLOCK);
    await image.close();
    const result = await at.run("backup", "copy", "vm", "--to", "second");
    expect(result.stderr).toMatch(/in repository default is damaged, and not copied.*\(DAMAGED\)/);
    expect(result.exitCode).toBe(6);
    expect(await filesOf(at, "second")).toEqual([]);
    const next = await backUp(at);
    expect(next).toMatchObject({ level: "FULL", reason: expect.stringContaining("found damaged") as string });
    expect(await at.run("backup", "copy", "vm", "--to", "second")).toMatchObject({ exitCode: 6 });
    expect(await filesOf(at, "second")).toEqual([next.id]);
    expect(idsOf(await copy(at))).toEqual([]);
  });

  it("leaves nothing of a copy whose process is killed, once another command has run", async () => {
    const at = await start();
    const full = await backUp(at);
    const args = ["--embedded", "backup", "copy", "vm", "--to", "second"];
    const fault = { match: /^rename \S+\/second\//, at: 1, when: "before", action: "kill" } as const;
    const faulty = await startFaulty(at, args, fault);
    untilTestEnds(faulty.process);
    expect((await faulty.process.result()).signal).toBe("SIGKILL");
    expect(await filesOf(at, "second")).toEqual([`.partial-${full.id}`]);
    expect(await listed(at, "second")).toEqual([]);
    expect(await filesOf(at, "second")).toEqual([]);
    expect((await at.files()).filter((name) => name.startsWith("state/operations"))).toEqual([]);
    expect(idsOf(await copy(at))).toEqual([full.id]);
    await at.vm.quit();
    await expectRestored(at, full.id, "second");
  });
});

describe("a job with copyTo", () => {
  const JOB = { name: "nightly", schedule: "0 0 1 1 *", domains: "all", copyTo: "second", catchUp: false };

  it("copies each backup, lets go in the second repository what that does not keep, and tells of trouble", async () => {
    const at = await start({ jobs: [JOB] }, { retention: { last: 2 } });
    const runs: JobRun[] = [];
    for (let night = 1; night <= 3; night++) {
      await at.vm.guestWrite("vda", night * MIB, BLOCK, night);
      runs.push(await at.json<JobRun>("job", "run", "nightly"));
    }
    const ids = runs.map(({ domains }) => domains[0]?.backup?.id ?? "");
    expect(runs.map(({ state }) => state)).toEqual(["COMPLETE", "COMPLETE", "COMPLETE"]);
    expect(runs.map(({ domains }) => domains[0]?.copies)).toEqual(ids.map((id) => [id]));
    expect((await listed(at, "default")).map(({ id }) => id)).toEqual(ids);
    const copies = await listed(at, "second");
    expect(copies).toMatchObject([
      { id: ids[1], level: "FULL" },
      { id: ids[2], level: "INCREMENTAL" },
    ]);

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
