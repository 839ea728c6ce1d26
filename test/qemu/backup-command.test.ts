import { execFile } from "node:child_process";
import { readdir, stat } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { compareImages, copyToRaw, fileDigest, imageInfo } from "../support/image-tool.js";
import { startSite } from "../support/site.js";

const exec = promisify(execFile);
const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

interface BackupMessage {
  readonly id: string;
  readonly level: "FULL" | "INCREMENTAL";
  readonly parent?: string;
  readonly reason: string;
  readonly consistency: string;
  readonly heldMs: string;
  readonly disks: readonly {
    readonly target: string;
    readonly mode: string;
    readonly reason: string;
    readonly sizeBytes: string;
    readonly readBytes: string;
    readonly storedBytes: string;
    readonly zeroBytes: string;
  }[];
}

interface CheckpointList {
  readonly checkpoints: readonly { readonly name: string; readonly parent?: string }[];
}

describe("backup run", () => {
  it("takes a full, then incrementals that read only what changed, zeroed blocks as zeroes", async () => {
    const at = await startSite();
    const full = await at.json<BackupMessage>("backup", "run", "vm");
    expect(full).toMatchObject({ level: "FULL", consistency: "CRASH" });
    expect(full.disks.map(({ readBytes }) => Number(readBytes))).toEqual([4 * MIB, 4 * MIB]);
    await at.vm.guestWrite("vda", MIB + 100, 70_000, 0x77);
    await at.vm.guestDiscard("vdb", 2 * MIB, MIB);
    const incremental = await at.json<BackupMessage>("backup", "run", "vm");
    expect(incremental).toMatchObject({ level: "INCREMENTAL", parent: full.id });
    const [vda, vdb] = incremental.disks;
    expect(vda).toMatchObject({
      readBytes: String(2 * 65536),
      storedBytes: String(2 * 65536),
      zeroBytes: "0",
    });
    expect(vdb).toMatchObject({ readBytes: "0", storedBytes: "0", zeroBytes: String(MIB) });
    const to = at.directory.file("restored");
    await at.json("backup", "restore", incremental.id, "--to", to);
    await at.vm.quit();
    for (const target of ["vda", "vdb"]) {
      const result = await compareImages(
        at.directory.file(`${target}.qcow2`),
        "qcow2",
        `${to}/${target}.qcow2`,
        "qcow2",
      );
      expect(result).toMatchObject({ identical: true });
    }
  });

  it("goes on with the chain after clean restarts of the VM, and while it is inactive", async () => {
    const at = await startSite();
    const full = await at.json<BackupMessage>("backup", "run", "vm");
    await at.vm.restart();
    await at.vm.guestWrite("vda", 0, 512, 1);
    const second = await at.json<BackupMessage>("backup", "run", "vm");
    expect(second).toMatchObject({ level: "INCREMENTAL", parent: full.id });
    await at.vm.guestWrite("vda", 3 * MIB, 512, 2);
    await at.vm.quit();
    const third = await at.json<BackupMessage>("backup", "run", "vm");
    expect(third).toMatchObject({
      level: "INCREMENTAL",
      parent: second.id,
      consistency: "CLEAN",
      heldMs: "0",
    });
    expect(third.disks.map(({ readBytes }) => readBytes)).toEqual(["65536", "0"]);
    await at.vm.restart();
    const fourth = await at.json<BackupMessage>("backup", "run", "vm");
    expect(fourth).toMatchObject({ level: "INCREMENTAL", parent: third.id });
    const { checkpoints } = await at.json<CheckpointList>("checkpoint", "list", "vm");
    expect(checkpoints.map(({ name }) => name)).toEqual([full.id, second.id, third.id, fourth.id]);
    expect(checkpoints.map(({ parent }) => parent)).toEqual([undefined, full.id, second.id, third.id]);
  });

  it("compares after a crash of QEMU, also if asked for an incremental, and shows why", async () => {
    const at = await startSite();
    const full = await at.json<BackupMessage>("backup", "run", "vm");
    await at.vm.restart();
    await at.vm.kill();
    await at.vm.restart();
    const next = await at.json<BackupMessage>("backup", "run", "vm", "--incremental");
    expect(next).toMatchObject({ level: "INCREMENTAL", parent: full.id });
    expect(next.disks).toMatchObject([
      { target: "vda", mode: "COMPARE", storedBytes: "0" },
      { target: "vdb", mode: "COMPARE", storedBytes: "0" },
    ]);
    for (const { reason } of next.disks) expect(reason).toMatch(/inconsistent/);
    expect((await at.run("backup", "list", "vm")).stdout).toMatch(
      new RegExp(`^${next.id}: .*disk vdb is read whole and compared with it: .* inconsistent`, "m"),
    );
    const shown = (await at.run("backup", "show", next.id)).stdout;
    expect(shown).toMatch(/^Level +incremental: based on .*disk vda is read whole/m);
    expect(shown).toMatch(/^vdb .* compare /m);
    const after = await at.json<BackupMessage>("backup", "run", "vm");
    expect(after.disks).toMatchObject([{ mode: "CHANGES" }, { mode: "CHANGES" }]);
  });

  it("backs up chosen disks alone", async () => {
    const at = await startSite();
    const backup = await at.json<BackupMessage>("backup", "run", "vm", "--disk", "vdb");
    expect(backup.disks.map(({ target }) => target)).toEqual(["vdb"]);
    const bitmaps = (await at.vm.blockState()).bitmaps;
    expect(bitmaps.map(({ node }) => node)).toEqual(["vdb-format"]);
    const next = await at.json<BackupMessage>("backup", "run", "vm");
    expect(next).toMatchObject({ level: "INCREMENTAL", parent: backup.id });
    expect(next.reason).toMatch(/disk vda is stored whole: .* does not hold it/);
  });

  it("costs the changed data of a 64 GiB sparse disk, not its size", async () => {
    const disks = [{ target: "vda", format: "qcow2" as const, sizeBytes: 64 * GIB, filledBytes: 3 * MIB }];
    const at = await startSite({ disks });
    const full = await at.json<BackupMessage>("backup", "run", "vm");
    expect(full.disks[0]).toMatchObject({ sizeBytes: String(64 * GIB), readBytes: String(3 * MIB) });
    const unchanged = await at.json<BackupMessage>("backup", "run", "vm");
    expect(unchanged).toMatchObject({ level: "INCREMENTAL" });
    expect(unchanged.disks[0]).toMatchObject({ readBytes: "0", storedBytes: "0", zeroBytes: "0" });
    await at.json("backup", "verify", unchanged.id);
    const folder = at.directory.file(`backups/vm/${unchanged.id}`);
    let allocated = 0;
    for (const name of await readdir(folder)) allocated += (await stat(`${folder}/${name}`)).blocks * 512;
    expect(allocated).toBeLessThan(MIB);
  });

  it("removes everything it made when it is interrupted", async () => {
    const disks = [{ target: "vda", format: "qcow2" as const, sizeBytes: GIB, filledBytes: 600 * MIB }];
    const at = await startSite({ disks });
    const before = await at.state();
    const command = await at.start("backup", "run", "vm", "--log-level", "debug");
    while (!(await at.files()).some((name) => name.includes(".partial-")) && command.running) {
      await tick();
    }
    const result = await command.kill("SIGINT");
    expect(result.stderr).toContain("(INTERRUPTED)");
    expect(result.exitCode).toBe(1);
    expect(await at.state()).toEqual(before);
  });

  it("is put in order by the next command after SIGKILL, whatever that command is", async () => {
    const disks = [{ target: "vda", format: "qcow2" as const, sizeBytes: GIB, filledBytes: 600 * MIB }];
    const at = await startSite({ disks });
    const first = await at.json<BackupMessage>("backup", "run", "vm", "--disk", "vda");
    const before = await at.state();
    await at.vm.guestWrite("vda", 0, 300 * MIB, 0x66);
    const command = await at.start("backup", "run", "vm");
    while (!(await at.vm.blockState()).exports.length && command.running) {
      await tick();
    }
    await command.kill("SIGKILL");
    expect((await at.vm.blockState()).nodes.some((node) => node.startsWith("fleece-"))).toBe(true);
    await at.vm.guestWrite("vda", 400 * MIB, MIB, 0x67);
    const { backups } = await at.json<{ backups: BackupMessage[] }>("backup", "list");
    expect(backups.map(({ id }) => id)).toEqual([first.id]);
    const next = await at.json<BackupMessage>("backup", "run", "vm");
    expect(next).toMatchObject({ level: "INCREMENTAL", parent: first.id });
    expect(next.disks[0]?.readBytes).toBe(String(301 * MIB));
    // Its checkpoint goes with it.
    await at.json("backup", "delete", next.id);
    expect(await at.state()).toEqual(before);
  });
});

describe("A command that only looks at a domain", () => {
  it("says who has the monitor while a backup runs, instead of calling the domain unreachable", async () => {
    const disks = [{ target: "vda", format: "qcow2" as const, sizeBytes: GIB, filledBytes: 600 * MIB }];
    const at = await startSite({ disks });
    const command = await at.start("backup", "run", "vm");
    // In the midst of reading: QEMU drops a client that takes longer than 10 s to negotiate.
    const underWay = (name: string): boolean => /\.partial-.*vda\.qcow2 \d{8,} /.test(name);
    while (command.running && !(await at.files()).some(underWay)) await tick();
    process.kill(command.pid, "SIGSTOP");
    const look = await at.run("checkpoint", "list", "vm");
    const list = await at.run("domain", "list");
    process.kill(command.pid, "SIGCONT");
    expect(look.stderr).toMatch(/busy: backup run vm \(process \d+.*\(DOMAIN_BUSY\)/);
    expect(look.exitCode).toBe(4);
    expect(list.stdout).toMatch(/busy: backup run vm/);
    const result = await command.result();
    expect(result.exitCode, result.stderr).toBe(0);
  });
});

describe("backup serve", () => {
  it("offers every disk to any NBD client until it is interrupted, then leaves no socket", async () => {
    const at = await startSite();
    const { id } = await at.json<BackupMessage>("backup", "run", "vm");
    const socket = at.directory.file("s.sock");
    const command = await at.start("backup", "serve", id, "--socket", socket, "--json");
    await command.waitForOutput(/\}\s*$/, { timeoutMs: 30_000 });
    const served = JSON.parse(command.stdout) as { disks: { target: string; uri: string }[] };
    expect(served.disks.map(({ target }) => target)).toEqual(["vda", "vdb"]);
    const copy = at.directory.file("copy.raw");
    await exec("nbdcopy", [served.disks[0]?.uri ?? "", copy]);
    const source = at.directory.file("source.raw");
    await copyToRaw(at.directory.file("vda.qcow2"), "qcow2", source);
    expect(await fileDigest(copy)).toBe(await fileDigest(source));
    expect((await command.kill("SIGTERM")).exitCode).toBe(0);
    await expect(stat(socket)).rejects.toThrow();
    expect((await readdir(at.directory.file("run"))).filter((name) => name.startsWith("p-"))).toEqual([]);
  });
});

describe("backup delete", () => {
  it("merges a backup that another is based on into that, and its checkpoint; the next one follows on", async () => {
    const at = await startSite();
    const full = await at.json<BackupMessage>("backup", "run", "vm");
    const next = await at.json<BackupMessage>("backup", "run", "vm");
    expect(await at.json("backup", "delete", full.id)).toMatchObject({ id: full.id, mergedInto: next.id });
    const { backups } = await at.json<{ backups: BackupMessage[] }>("backup", "list");
    expect(backups).toMatchObject([{ id: next.id, level: "FULL" }]);
    const { checkpoints } = await at.json<{ checkpoints: { name: string }[] }>("checkpoint", "list", "vm");
    expect(checkpoints.map(({ name }) => name)).toEqual([next.id]);
    const last = await at.json<BackupMessage>("backup", "run", "vm");
    expect(last).toMatchObject({ level: "INCREMENTAL", parent: next.id });
    await at.json("backup", "verify", last.id);
    for (const { id } of [last, next]) await at.json("backup", "delete", id);
    expect((await at.json<{ backups?: unknown[] }>("backup", "list")).backups ?? []).toEqual([]);
    expect((await at.json<BackupMessage>("backup", "run", "vm")).level).toBe("FULL");
  });
});

describe("A repository", () => {
  it("holds plain qcow2 files with relative backing, readable by qemu-img after it was moved elsewhere", async () => {
    const at = await startSite();
    const full = await at.json<BackupMessage>("backup", "run", "vm");
    await at.vm.guestWrite("vda", 0, 512, 9);
    const next = await at.json<BackupMessage>("backup", "run", "vm");
    const moved = at.directory.file("moved");
    await exec("mv", [at.directory.file("backups"), moved]);
    const image = `${moved}/vm/${next.id}/vda.qcow2`;
    expect(await imageInfo(image, "qcow2")).toMatchObject({
      backing: `../${full.id}/vda.qcow2`,
      backingFormat: "qcow2",
    });
    await at.vm.quit();
    const result = await compareImages(image, "qcow2", at.directory.file("vda.qcow2"), "qcow2");
    expect(result).toMatchObject({ identical: true });
  });
});

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 5));
}
