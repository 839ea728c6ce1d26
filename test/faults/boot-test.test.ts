import { existsSync } from "node:fs";
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { workingAccelerator } from "../../src/drivers/boot/accelerator.js";
import { buildGuest, type GuestFiles } from "../guest/build-guest.js";
import { runCommand } from "../guest/commands.js";
import { cpioArchive } from "../guest/cpio.js";
import { withGuestAgent } from "../guest/guest-agent.js";
import { writeConfig } from "../support/config-file.js";
import { type FleeceResult, runFleece } from "../support/fleece.js";
import { temporaryDirectory } from "../support/lifetime.js";
import type { JsonObject } from "../support/monitor.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";
import { ALL_FAULTS } from "../support/sample.js";

/** Says what is on the disk and which network devices there are, and starts the guest agent if it is there. Without the file it ends, and Linux panics. */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /tmp /data
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
mount -t ext4 /dev/vda /data && echo writing >/data/written && sync
[ -e /data/proof ] || { echo "no root file system"; exit 1; }
echo "PROOF $(cat /data/proof) NET" $(ls /sys/class/net)
port=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name | cut -d/ -f5)
[ -x /bin/qemu-ga ] && qemu-ga -d -m virtio-serial -p "/dev/$port" -t /tmp -f /tmp/qga.pid -l /tmp/qga.log
while :; do sleep 60; done
`;

let files: GuestFiles | undefined;
let agentFiles: GuestFiles | undefined;

beforeAll(async () => {
  if (!ALL_FAULTS) return;
  const directory = await TemporaryDirectory.create();
  const made = async ({ kernel, initrd }: GuestFiles, name: string): Promise<GuestFiles> => {
    const init = cpioArchive([{ path: "init", kind: "file", content: Buffer.from(INIT), executable: true }]);
    const path = directory.file(name);
    // Linux unpacks archives that follow each other, one over the other.
    await writeFile(path, Buffer.concat([await readFile(initrd), init]));
    return { kernel, initrd: path };
  };
  const plain = await buildGuest();
  files = await made(plain, "initrd");
  const withAgent = await withGuestAgent(plain, directory.path);
  agentFiles = withAgent && (await made(withAgent, "agent"));
  return () => directory[Symbol.asyncDispose]();
});

/** A domain that is off, and a backup of its disk, on which there is a file system with a file. */
async function host(
  { kernel, initrd }: GuestFiles,
  bootTest: JsonObject,
): Promise<{
  run(...args: string[]): Promise<FleeceResult>;
  readonly disk: string;
  backUp(): Promise<string>;
}> {
  const at = await temporaryDirectory();
  for (const name of ["backups", "scratch", "files"]) await mkdir(at.file(name));
  await writeFile(at.file("files/proof"), "of-this-backup\n");
  const disk = at.file("vda.raw");
  await runCommand("mkfs.ext4", ["-q", "-F", "-d", at.file("files"), disk, "16M"]);
  const launch = [
    ...["qemu-system-x86_64", "-m", "128", "-kernel", kernel, "-initrd", initrd],
    ...["-append", "console=ttyS0 quiet panic=-1", "-drive", "file=vda,if=virtio,format=raw"],
    ...["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "e1000"],
    ...["-device", "virtio-serial-pci", "-chardev", `socket,id=a,path=${at.file("a")},server=on,wait=off`],
    ...["-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0"],
  ];
  const domain = {
    ...{ name: "vm", disks: [{ target: "vda", file: disk, format: "raw" as const }] },
    bootTest: { launch, accelerator: "tcg", timeout: "5m", ...bootTest },
  };
  const configPath = await writeConfig(at.path, { domains: [domain], more: { runtimeDir: at.file("run") } });
  const run = (...args: string[]): Promise<FleeceResult> =>
    runFleece(["--embedded", ...args], { configPath });
  const backUp = async (): Promise<string> =>
    ((await run("backup", "run", "vm", "--json")).json() as { id: string }).id;
  return { run, disk, backUp };
}

function guest(found: GuestFiles | undefined): GuestFiles {
  if (found === undefined) throw new Error("Expected the files of a guest");
  return found;
}

/** Real Linux under TCG takes its time: what boots in `qemu/boot-test.test.ts` is a boot sector. */
describe.runIf(ALL_FAULTS)("a boot test of Linux", () => {
  it("sees what is on the backup's disk, in a machine without a network", async () => {
    const at = await host(guest(files), { console: "/^PROOF of-this-backup NET lo\\r?$/" });
    await at.backUp();
    const { exitCode, stdout, stderr } = await at.run("backup", "boot-test", "--domain", "vm", "--json");
    expect(exitCode, stderr).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ domain: "vm", accelerator: "tcg" });
    // What the guest wrote was thrown away.
    const listing = await runCommand("debugfs", ["-R", "ls /", at.disk]);
    expect(listing.toString()).not.toContain("written");
  });

  it("hears the guest agent", async (context) => {
    if (agentFiles === undefined) context.skip("the guest agent cannot be had here");
    const at = await host(guest(agentFiles), { guestAgent: true });
    const { exitCode, stdout, stderr } = await at.run("backup", "boot-test", await at.backUp());
    expect(exitCode, stderr).toBe(0);
    expect(stdout).toContain("has booted: an answer of its guest agent after");
  });

  it("fails with the kernel's last words when the file system is damaged", async () => {
    const at = await host(guest(files), { console: "PROOF" });
    await writeFile(at.disk, Buffer.alloc(16 * 2 ** 20, 0x5a));
    const { exitCode, stderr } = await at.run("backup", "boot-test", await at.backUp());
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/\(BOOT_FAILED\)/);
    expect(stderr).toMatch(/no root file system.*Kernel panic/s);
  });
});

describe.runIf(ALL_FAULTS)("workingAccelerator", () => {
  it("is KVM where the firmware comes to its end by it, and TCG where QEMU ends at once", async (context) => {
    if (!existsSync("/dev/kvm")) context.skip("there is no /dev/kvm here");
    const at = await temporaryDirectory();
    const program = at.file("qemu");
    // Whether KVM works or not: what runs by it here is emulated.
    await writeFile(program, '#!/bin/sh\nshift 2\nexec qemu-system-x86_64 -accel tcg "$@"\n');
    await chmod(program, 0o755);
    expect(await workingAccelerator(program)).toBe("kvm");
    expect(await workingAccelerator("false")).toBe("tcg");
  });
});
