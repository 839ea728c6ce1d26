import { mkdir, readdir } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { isAtLeast } from "../../src/model/known-qemu-issues.js";
import { buildGuest, type GuestFiles } from "../guest/build-guest.js";
import { makeDataDisk } from "../guest/data-disk.js";
import { bootGuest, type GuestVm } from "../guest/guest-vm.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { runFleece, startFleece } from "../support/fleece.js";
import { copyToRaw, createImage, fileDigest } from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";
import type { TestDisk } from "../support/vm-arguments.js";

const MIB = 1024 * 1024;

interface BackupMessage {
  readonly id: string;
  readonly level: string;
  readonly heldMs: string;
}

/** The second disk is without a file system. */
async function writeSecondDisk(guest: GuestVm, seekMib: number): Promise<void> {
  const command = `dd if=/dev/urandom of=/dev/sda bs=1M count=4 seek=${seekMib} conv=fsync`;
  expect(await guest.command(command)).toMatchObject({ exitStatus: 0 });
}

describe("a guest at work whose disks run in iothreads", () => {
  let files: GuestFiles;
  beforeAll(async () => {
    files = await buildGuest();
  });

  it("is backed up in full and twice incrementally, each the frozen moment, and once more while it runs, without noticing", async () => {
    const directory = await temporaryDirectory();
    const disks: TestDisk[] = [
      { target: "vda", path: directory.file("vda.qcow2"), format: "qcow2", iothread: true },
      { target: "sda", path: directory.file("sda.qcow2"), format: "qcow2", bus: "scsi", iothread: true },
    ];
    await makeDataDisk(directory.file("vda.qcow2"), { sizeBytes: 128 * MIB, contentBytes: 16 * MIB });
    await createImage(directory.file("sda.qcow2"), 32 * MIB);
    for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
    const guest = untilTestEnds(
      await bootGuest({ files, directory: directory.path, disks, tickSeconds: 0.01 }),
    );
    const configPath = await writeConfig(directory.path, {
      domains: [domainConfig("vm", guest.vm)],
      more: { runtimeDir: directory.file("run") },
    });
    const run = async (...args: string[]) => {
      const result = await runFleece(["--embedded", ...args, "--json"], { configPath });
      expect(result.stderr).toBe("");
      return result.json();
    };
    // From 9.0 on QEMU itself offers disks in iothreads.
    const shown = (await run("domain", "show", "vm")) as { readonly qemuVersion: string };
    const staged = !isAtLeast(shown.qemuVersion, "9.0");
    expect(shown).toMatchObject({ disks: [{ staged }, { staged }] });

    for (const [round, level] of ["FULL", "INCREMENTAL", "INCREMENTAL"].entries()) {
      await guest.work(3);
      await writeSecondDisk(guest, round);
      // Standing still, so that the moment is known; stopping makes QEMU write out its caches.
      await guest.vm.qmp("stop");
      const moments: string[] = [];
      for (const { target, path } of disks) {
        const file = directory.file(`${target}.moment.raw`);
        await copyToRaw(path, "qcow2", file);
        moments.push(await fileDigest(file));
      }
      const command = await startFleece(["--embedded", "backup", "run", "vm", "--json"], { configPath });
      const frozen = async (): Promise<boolean> =>
        (await guest.vm.blockState()).nodes.filter((node) => node.includes("-access ")).length === 2;
      while (!(await frozen())) expect(command.running).toBe(true);
      // Nothing of the copy can be over before the guest has written again.
      process.kill(command.pid, "SIGSTOP");
      await guest.vm.qmp("cont");
      await writeSecondDisk(guest, round);
      await guest.work(3);
      process.kill(command.pid, "SIGCONT");
      const result = await command.result();
      expect(result.stderr).toBe("");
      const backup = result.json() as BackupMessage;
      expect(backup.level).toBe(level);
      await guest.work(3);

      await run("backup", "verify", backup.id);
      const to = directory.file(`restored-${round}`);
      await run("backup", "restore", backup.id, "--to", to, "--format", "raw");
      for (const [index, { target }] of disks.entries()) {
        expect(await fileDigest(`${to}/${target}.raw`)).toBe(moments[index]);
      }
      for (const left of ["scratch", "run", "state/operations/vm"]) {
        expect(await readdir(directory.file(left))).toEqual([]);
      }
      const { nodes, devices, bitmaps, exports, jobs } = await guest.vm.blockState();
      expect([...nodes, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
      expect(bitmaps.filter(({ name }) => !name.startsWith("fleece:1:"))).toEqual([]);
      expect([...exports, ...jobs]).toEqual([]);
    }
    const last = (await run("backup", "run", "vm")) as BackupMessage;
    expect(Number(last.heldMs)).toBeGreaterThan(0);
    await run("backup", "verify", last.id);
    await guest.work(3);
    await guest.command("pause");
    const errors = await guest.command("dmesg | grep -iE 'i/o error|ext4.*error'");
    expect(errors.lines).toEqual([]);
    expect(guest.vm.running).toBe(true);
    await guest.poweroff();
  });
});
