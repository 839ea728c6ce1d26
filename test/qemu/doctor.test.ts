import net from "node:net";
import { lstat, readdir, readFile, rename, writeFile } from "node:fs/promises";
import { once } from "node:events";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { tryKernelLock } from "../../src/drivers/kernel-lock.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { runFleece } from "../support/fleece.js";
import { mountTmpfs } from "../support/mount.js";
import { startSite, type Site } from "../support/site.js";
import { untilTestEnds } from "../support/lifetime.js";

const MIB = 1024 * 1024;
const VDA = { target: "vda", format: "qcow2", sizeBytes: 8 * MIB, filledBytes: 4 * MIB } as const;

interface Finding {
  readonly code: string;
  readonly severity: string;
  readonly disk?: string;
  readonly found: string;
  readonly advice: string;
  readonly errorCode?: string;
}

interface Report {
  readonly ready: boolean;
  readonly nextLevel?: string;
  readonly nextReason?: string;
  readonly findings: readonly Finding[];
}

interface Look {
  readonly report: Report;
  readonly exitCode: number | null;
  readonly stderr: string;
}

/** QEMU's nodes and bitmaps, and every file around, with the times at which its content and its inode changed. */
async function everything(at: Site): Promise<unknown> {
  const files: string[] = [];
  for (const name of await readdir(at.directory.path, { recursive: true })) {
    const { size, mtimeMs, ctimeMs } = await lstat(path.join(at.directory.path, name));
    files.push(`${name} ${size} ${mtimeMs} ${ctimeMs}`);
  }
  return { vm: at.vm.running ? await at.vm.blockState() : "ended", files: files.toSorted() };
}

/** Runs the doctor, which must change nothing, and whose exit code must be that of its verdict. */
async function look(at: Site, ...options: string[]): Promise<Look> {
  const before = await everything(at);
  const result = await at.run("doctor", "vm", "--json", ...options);
  expect(await everything(at)).toEqual(before);
  const report = result.json() as Report;
  expect(result.exitCode, result.stderr).toBe(report.ready ? 0 : 1);
  expect(result.stderr.includes("NOT_READY")).toBe(!report.ready);
  expect(report.ready).toBe(report.findings.every(({ severity }) => severity !== "BLOCKER"));
  return { report, exitCode: result.exitCode, stderr: result.stderr };
}

/** The next backup does what the doctor said: it runs, on that level, or it is refused with the code of a blocker. */
async function backupAgrees(at: Site, { report }: Look): Promise<void> {
  const result = await at.run("backup", "run", "vm", "--json");
  if (report.ready) {
    expect(result.exitCode, result.stderr).toBe(0);
    expect(result.json()).toMatchObject({ level: report.nextLevel, reason: report.nextReason });
    return;
  }
  expect(result.exitCode).not.toBe(0);
  const { error } = JSON.parse(result.stderr) as { error: { code: string; message: string } };
  const blockers = report.findings.filter(({ severity }) => severity === "BLOCKER");
  expect(blockers.map(({ errorCode }) => errorCode)).toContain(error.code);
}

const codes = ({ report }: Look, ...severities: string[]): string[] =>
  report.findings.filter(({ severity }) => severities.includes(severity)).map(({ code }) => code);

const found = ({ report }: Look, code: string): Finding => {
  const finding = report.findings.find((each) => each.code === code);
  if (finding === undefined) throw new Error(`Expected ${code}, got ${JSON.stringify(report.findings)}`);
  return finding;
};

describe("fleece doctor, of a domain that is well", () => {
  it("tells full, then incremental, running and inactive, and warns of nothing", async () => {
    const at = await startSite();
    const first = await look(at);
    expect(codes(first, "BLOCKER", "WARNING")).toEqual([]);
    expect(codes(first, "NOTE")).toContain("FIRST_BACKUP");
    await backupAgrees(at, first);
    const second = await look(at);
    expect(codes(second, "BLOCKER", "WARNING")).toEqual([]);
    expect(codes(second, "OK")).toEqual(
      expect.arrayContaining(["DOMAIN_READY", "STATE_READY", "SCRATCH_READY", "REPOSITORY_READY"]),
    );
    expect(found(second, "NEXT_INCREMENTAL").found).toMatch(/incremental, based on backup/);
    expect(second.report.findings.filter(({ code }) => code === "DISK_READY")).toHaveLength(2);
    await backupAgrees(at, second);
    await at.vm.quit();
    const inactive = await look(at);
    expect(codes(inactive, "NOTE")).toEqual(["DOMAIN_INACTIVE"]);
    expect(codes(inactive, "OK")).toContain("NEXT_INCREMENTAL");
    await backupAgrees(at, inactive);
  });

  it("is short enough for a terminal of 80 columns", async () => {
    const at = await startSite();
    const { stdout, stderr, exitCode } = await at.run("doctor", "vm");
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    expect(stdout).toMatch(/^The next backup of domain vm to repository default will run, full: the\n/);
    expect(stdout).toMatch(/^Notes\n(.|\n)*^ {2}FIRST_BACKUP$(.|\n)*^As it should be$/m);
    expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
  });

  it("notes a raw disk, and that the guest is paused", async () => {
    const at = await startSite({ disks: [{ ...VDA, format: "raw" }] });
    await at.vm.qmp("stop");
    const seen = await look(at);
    expect(codes(seen, "NOTE")).toEqual(expect.arrayContaining(["DOMAIN_PAUSED", "CHECKPOINT_TRANSIENT"]));
    await backupAgrees(at, seen);
  });
});

describe("fleece doctor, of a broken chain", () => {
  it("explains checkpoints that QEMU did not save when it was killed, and what becomes of them", async () => {
    const at = await startSite();
    const { id } = await at.json<{ id: string }>("backup", "run", "vm");
    await at.vm.restart();
    await at.vm.kill();
    await at.vm.restart();
    const seen = await look(at);
    expect(codes(seen, "WARNING").toSorted()).toEqual([
      "CHECKPOINT_INCONSISTENT",
      "CHECKPOINT_INCONSISTENT",
      "DISK_COMPARED",
      "DISK_COMPARED",
    ]);
    expect(found(seen, "CHECKPOINT_INCONSISTENT")).toMatchObject({ disk: "vda" });
    expect(found(seen, "CHECKPOINT_INCONSISTENT").advice).toContain(`removes checkpoint ${id}`);
    expect(found(seen, "DISK_COMPARED").found).toMatch(/inconsistent: QEMU ended without saving it/);
    await backupAgrees(at, seen);
    const { checkpoints } = await at.json<{ checkpoints: { name: string }[] }>("checkpoint", "list", "vm");
    expect(checkpoints.map(({ name }) => name)).not.toContain(id);
  });

  it("explains a checkpoint that has stopped recording", async () => {
    const at = await startSite({ disks: [VDA] });
    await at.json("backup", "run", "vm");
    const [bitmap] = (await at.vm.blockState()).bitmaps;
    await at.vm.qmp("block-dirty-bitmap-disable", { node: "vda-format", name: bitmap?.name ?? "" });
    const seen = await look(at);
    expect(codes(seen, "WARNING")).toEqual(expect.arrayContaining(["CHECKPOINT_GAP", "DISK_COMPARED"]));
    await backupAgrees(at, seen);
  });

  it("tells a disk that was resized since the last backup", async () => {
    const at = await startSite();
    await at.json("backup", "run", "vm");
    await at.vm.qmp("block_resize", { "node-name": "vda-format", size: 9 * MIB });
    const seen = await look(at);
    expect(codes(seen, "WARNING")).toContain("DISK_RESIZED");
    expect(found(seen, "NEXT_INCREMENTAL").advice).toContain("all of vda");
    expect(found(seen, "DISK_RESIZED").found).toMatch(/has 9 MiB \(9437184 bytes\) and had 8 MiB/);
    await backupAgrees(at, seen);
  });

  it("tells a disk that the last backup does not hold, and one that is gone", async () => {
    const at = await startSite();
    await at.json("backup", "run", "vm", "--disk", "vda");
    const added = await look(at);
    expect(found(added, "DISK_NEW")).toMatchObject({ disk: "vdb", severity: "WARNING" });
    expect(found(added, "NEXT_INCREMENTAL").advice).toContain("all of vdb");
    await backupAgrees(at, added);
    const { qmp, disks = [] } = domainConfig("vm", at.vm);
    await writeConfig(at.directory.path, {
      domains: [{ name: "vm", qmp: qmp ?? "", disks: disks.slice(1) }],
      more: { runtimeDir: at.directory.file("run") },
    });
    const removed = await look(at);
    expect(found(removed, "DISK_GONE")).toMatchObject({ disk: "vda", severity: "NOTE" });
    await backupAgrees(at, removed);
  });

  it("tells a damaged backup that others are based on", async () => {
    const at = await startSite({ disks: [VDA] });
    const { id } = await at.json<{ id: string }>("backup", "run", "vm");
    await at.json("backup", "run", "vm");
    await writeFile(at.directory.file(`backups/vm/${id}/manifest.json`), "{");
    const seen = await look(at);
    expect(codes(seen, "WARNING")).toEqual(expect.arrayContaining(["BACKUP_DAMAGED", "NEXT_FULL"]));
    expect(found(seen, "NEXT_FULL").found).toContain("the chain is broken");
    await backupAgrees(at, seen);
  });
});

describe("fleece doctor, of a domain on which others work", () => {
  it("tells a filter of another tool, with the error that a backup would fail with", async () => {
    const at = await startSite();
    await at.vm.qmp("blockdev-add", { driver: "copy-on-read", "node-name": "theirs", file: "vda-format" });
    await at.vm.qmp("qom-set", { path: "/machine/peripheral/vda", property: "drive", value: "theirs" });
    const seen = await look(at);
    expect(codes(seen, "BLOCKER")).toEqual(["FOREIGN_FILTER"]);
    expect(found(seen, "FOREIGN_FILTER")).toMatchObject({ disk: "vda", errorCode: "FOREIGN_FILTER" });
    await backupAgrees(at, seen);
  });

  it("tells a block job, an NBD server and a bitmap of another tool", async () => {
    const at = await startSite({ disks: [VDA] });
    await at.vm.qmp("block-dirty-bitmap-add", { node: "vda-format", name: "theirs" });
    await at.vm.qmp("nbd-server-start", {
      addr: { type: "unix", data: { path: at.directory.file("their.sock") } },
    });
    await at.vm.qmp("block-export-add", { type: "nbd", id: "export0", "node-name": "vda-format" });
    const served = await look(at);
    expect(codes(served, "WARNING", "BLOCKER")).toEqual(["NBD_SERVER_BUSY"]);
    expect(found(served, "FOREIGN_BITMAP").found).toContain("theirs");
    await at.vm.qmp("nbd-server-stop");
    await at.vm.qmp("blockdev-add", { driver: "null-co", "node-name": "sink", size: VDA.sizeBytes });
    await at.vm.qmp("blockdev-backup", {
      ...{ "job-id": "job0", device: "vda-format", target: "sink", sync: "full", speed: 1 },
    });
    const seen = await look(at);
    expect(codes(seen, "BLOCKER")).toEqual(["FOREIGN_FILTER"]);
    expect(found(seen, "FOREIGN_FILTER").found).toMatch(/a backup job \(job0\) works on the domain/);
    await backupAgrees(at, seen);
  });

  it("tells nodes of a fleece with another state directory", async () => {
    const at = await startSite();
    await at.json("block-snapshot", "create", "vm", "--name", "night", "--disk", "vda");
    await rename(at.directory.file("state"), at.directory.file("lost"));
    const seen = await look(at);
    expect(codes(seen, "BLOCKER", "WARNING")).toEqual(["FOREIGN_FILTER", "FOREIGN_AGENT"]);
    expect(found(seen, "FOREIGN_AGENT").found).toMatch(/fleece-\S+-0-filter/);
    await backupAgrees(at, seen);
  });

  it("tells who holds the domain, and looks no further", async () => {
    const at = await startSite();
    await at.json("checkpoint", "list", "vm");
    await at.json("backup", "run", "vm");
    const attempt = await tryKernelLock(at.directory.file("state/domains/vm.lock"), "the test's business");
    const seen = await look(at);
    expect(codes(seen, "BLOCKER")).toEqual(["DOMAIN_BUSY"]);
    expect(found(seen, "DOMAIN_BUSY").found).toMatch(/the test's business \(process \d+/);
    expect(seen.report.nextLevel).toBeUndefined();
    await backupAgrees(at, seen);
    if (attempt.held) await attempt.lock.release();
    expect(codes(await look(at), "BLOCKER")).toEqual([]);
  });

  it("tells that another client has the monitor, and a domain that does not answer at all", async () => {
    const at = await startSite({ disks: [VDA] });
    const client = net.connect(at.vm.qmpPath);
    untilTestEnds({ [Symbol.asyncDispose]: () => Promise.resolve(client.destroy()).then(() => undefined) });
    await once(client, "data");
    const held = await look(at);
    expect(codes(held, "BLOCKER")).toEqual(["MONITOR_IN_USE"]);
    await backupAgrees(at, held);
    client.destroy();
    await writeConfig(at.directory.path, { domains: [{ name: "vm", qmp: at.directory.file("absent.qmp") }] });
    const absent = await look(at);
    expect(codes(absent, "BLOCKER")).toEqual(["DOMAIN_UNREACHABLE"]);
    await backupAgrees(at, absent);
  });

  it("tells an image of a domain that is off and that another program holds", async () => {
    const at = await startSite({ disks: [VDA] });
    const domains = [{ ...domainConfig("vm", at.vm), qmp: at.directory.file("absent.qmp") }];
    await writeConfig(at.directory.path, { domains, more: { runtimeDir: at.directory.file("run") } });
    const seen = await look(at);
    expect(found(seen, "DOMAIN_UNREADABLE")).toMatchObject({ errorCode: "DISK_IN_USE" });
    await backupAgrees(at, seen);
  });
});

describe("fleece doctor, of unfinished operations", () => {
  it("tells an open block snapshot with the end of its lease", async () => {
    const at = await startSite();
    const { leaseEndTime } = await at.json<{ leaseEndTime: string }>(
      ...["block-snapshot", "create", "vm", "--name", "night", "--disk", "vda", "--checkpoint"],
    );
    await at.json("export", "start", "vm", "--snapshot", "night");
    const seen = await look(at);
    expect(codes(seen, "BLOCKER", "WARNING")).toEqual(["SNAPSHOT_OPEN"]);
    expect(found(seen, "SNAPSHOT_OPEN").disk).toBe("vda");
    expect(found(seen, "SNAPSHOT_OPEN").found).toContain(leaseEndTime);
    await backupAgrees(at, seen);
    await at.vm.restart();
    const broken = await look(at);
    expect(codes(broken, "BLOCKER", "WARNING")).toEqual(["SNAPSHOT_BROKEN"]);
    await backupAgrees(at, broken);
  });

  it.each([
    ["that a killed command was making", { phase: "creating" }, "UNFINISHED_OPERATION"],
    ["whose lease has ended", { leaseUntilMs: 1, leaseHost: undefined }, "SNAPSHOT_EXPIRED"],
  ])(
    "leaves a block snapshot %s as it is, and tells that the next command ends it",
    async (_, change, code) => {
      const at = await startSite();
      await at.json("block-snapshot", "create", "vm", "--name", "night", "--checkpoint");
      const [record] = await readdir(at.directory.file("state/operations/vm"));
      const file = at.directory.file(`state/operations/vm/${record ?? ""}`);
      const journal = JSON.parse(await readFile(file, "utf8")) as { subject: object };
      await writeFile(file, JSON.stringify({ ...journal, subject: { ...journal.subject, ...change } }));
      const seen = await look(at);
      expect(codes(seen, "BLOCKER", "WARNING")).toEqual([code]);
      await backupAgrees(at, seen);
      expect(codes(await look(at), "BLOCKER", "WARNING")).toEqual([]);
    },
  );

  it("leaves what a killed backup left, and tells that the next command removes it", async () => {
    const at = await startSite({ disks: [{ ...VDA, sizeBytes: 400 * MIB, filledBytes: 300 * MIB }] });
    const command = await at.start("backup", "run", "vm");
    while (command.running && (await at.vm.blockState()).exports.length === 0) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await command.kill("SIGKILL");
    const seen = await look(at);
    expect(codes(seen, "BLOCKER", "WARNING")).toEqual(["UNFINISHED_OPERATION"]);
    expect(found(seen, "UNFINISHED_OPERATION").advice).toMatch(/no change is lost/);
    await backupAgrees(at, seen);
  });
});

describe("fleece doctor, of directories", () => {
  it("tells directories that are missing, and does not make them", async () => {
    const at = await startSite({ directories: [] });
    const seen = await look(at);
    expect(codes(seen, "BLOCKER")).toEqual(["SCRATCH_UNUSABLE", "REPOSITORY_UNUSABLE"]);
    expect(seen.stderr).toContain("2 blockers");
    await backupAgrees(at, seen);
    await at.vm.quit();
    expect(codes(await look(at), "BLOCKER")).toEqual(["REPOSITORY_UNUSABLE"]);
  });

  it("tells a state directory that cannot be made, and a journal that cannot be read", async () => {
    const at = await startSite();
    await writeFile(at.directory.file("state"), "");
    const file = await look(at);
    expect(codes(file, "BLOCKER")).toEqual(["STATE_UNUSABLE"]);
    await backupAgrees(at, file);
    const other = await startSite();
    await other.json("block-snapshot", "create", "vm", "--name", "night");
    const [record] = await readdir(other.directory.file("state/operations/vm"));
    await writeFile(other.directory.file(`state/operations/vm/${record ?? ""}`), "{");
    const torn = await look(other);
    expect(found(torn, "STATE_UNUSABLE").found).toMatch(/journal.*it is not JSON/);
  });

  it("compares free space with what the guest may overwrite (needs root for a mount)", async ({ skip }) => {
    for (const [size, severity, code] of [
      ["8k", "BLOCKER", "SCRATCH_FULL"],
      ["2m", "WARNING", "SCRATCH_SMALL"],
      ["9m", "NOTE", "SCRATCH_TIGHT"],
    ] as const) {
      const at = await startSite();
      if (!(await mountTmpfs(at.directory.file("scratch"), `size=${size}`))) skip("mount is not permitted");
      const seen = await look(at);
      expect(codes(seen, severity)).toContain(code);
      await backupAgrees(at, seen);
    }
  });

  it("compares a repository's free space with the next backup (needs root for a mount)", async ({ skip }) => {
    for (const [size, code] of [
      ["64k", "REPOSITORY_FULL"],
      ["2m", "REPOSITORY_SMALL"],
    ] as const) {
      const at = await startSite();
      if (!(await mountTmpfs(at.directory.file("backups"), `size=${size}`))) skip("mount is not permitted");
      const seen = await look(at);
      expect(codes(seen, "BLOCKER", "WARNING")).toEqual([code]);
      if (code === "REPOSITORY_FULL") await backupAgrees(at, seen);
    }
  });
});

describe("fleece doctor, of a disk in an iothread", () => {
  it("notes it, and is no obstacle: exports are staged", async () => {
    const at = await startSite({ disks: [{ ...VDA, iothread: true }] });
    const seen = await look(at);
    expect(codes(seen, "BLOCKER")).toEqual([]);
    expect(found(seen, "DISK_IOTHREAD").found).toContain("iothread iothread-vda");
    await backupAgrees(at, seen);
  });
});

describe("fleece doctor, used wrongly", () => {
  it.each([
    [["nobody"], 3, "DOMAIN_NOT_FOUND"],
    [["../etc"], 2, "INVALID_NAME"],
    [["vm", "--repository", "elsewhere"], 3, "REPOSITORY_NOT_FOUND"],
    [["vm", "--repository", "a/b"], 2, "INVALID_NAME"],
    [[], 2, "INVALID_ARGUMENT"],
    [["vm", "vm"], 2, "INVALID_ARGUMENT"],
    [["vm", "--disk", "vda"], 2, "INVALID_ARGUMENT"],
  ])("refuses %j with exit code %i", async (args, exitCode, code) => {
    const at = await startSite({ disks: [VDA] });
    const before = await everything(at);
    const result = await at.run("doctor", ...args);
    expect(result.exitCode, result.stderr).toBe(exitCode);
    expect(result.stderr).toContain(`(${code})`);
    expect(result.stdout).toBe("");
    expect(await everything(at)).toEqual(before);
  });

  it("needs a configuration that can be used", async () => {
    const at = await startSite({ disks: [VDA] });
    await writeFile(at.configPath, "domains: 7\n");
    expect((await at.run("doctor", "vm")).exitCode).toBe(2);
    const missing = await runFleece(["--embedded", "doctor", "vm"], { configPath: "/nonexistent.yaml" });
    expect(missing.stderr).toContain("(CONFIG_NOT_FOUND)");
  });
});
