import {
  access,
  chmod,
  copyFile,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rename,
  rm,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { guestCacheFolder } from "../guest/build-guest.js";
import { runCommand } from "../guest/commands.js";
import { type ArchiveEntry, cpioArchive } from "../guest/cpio.js";
import { findGuestParts } from "../guest/distribution.js";
import { collectModules } from "../guest/kernel-modules.js";
import { BoundProcess } from "../support/bound-process.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";

/**
 * A guest under TCG whose kernel has a device-mapper, for hosts that have none, and whose files are those of the host: Node, QEMU and this
 * repository are the host's own, read-only, with a layer in memory above them for what is written.
 */

const cacheFolder = join(guestCacheFolder, "../lvm-guest");
const packages = ["lvm2", "libdevmapper1.02.1", "libdevmapper-event1.02.1", "libaio1"];
const wantedModules = [
  "virtio_pci",
  "virtio_blk",
  "virtiofs",
  "overlay",
  "dm_mod",
  "dm_snapshot",
  "dm_thin_pool",
  "loop",
];
const diskBytes = 1 << 30;

/** Without udev and daemons: LVM makes its device nodes itself. */
const lvmConfiguration = `
global { thin_check_executable = "" thin_repair_executable = "" thin_dump_executable = "" use_lvmpolld = 0 event_activation = 0 }
activation { udev_sync = 0 udev_rules = 0 verify_udev_operations = 0 monitoring = 0 }
devices { obtain_device_list_from_udev = 0 use_devicesfile = 0 }
`;

export interface GuestRun {
  /** By sh, with the programs of LVM on its PATH. */
  readonly command: string;
  /** What it prints, as it comes. */
  readonly onOutput: (text: string) => void;
  readonly timeoutMs: number;
}

/** Boots, runs one command, and resolves to its exit status. */
export async function runInGuest({ command, onOutput, timeoutMs }: GuestRun): Promise<number> {
  const parts = await prepareParts();
  await using directory = await TemporaryDirectory.create();
  const disk = directory.file("pv");
  await using file = await open(disk, "wx");
  await file.truncate(diskBytes);
  const initrd = directory.file("initrd");
  await writeFile(initrd, await makeInitrd(parts, command));
  const socket = directory.file("fs");
  await using _files = await BoundProcess.start(await findVirtiofsd(), [
    ...[`--socket-path=${socket}`, "-o", "source=/,cache=always", "-o", "sandbox=chroot"],
  ]);
  await appears(socket);
  await using guest = await BoundProcess.start("qemu-system-x86_64", [
    ...["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "2048"],
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"],
    ...["-object", "memory-backend-memfd,id=memory,size=2048M,share=on", "-numa", "node,memdev=memory"],
    ...["-kernel", join(parts, "vmlinuz"), "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1"],
    ...["-drive", `file=${disk},format=raw,if=none,id=pv`, "-device", "virtio-blk-pci,drive=pv"],
    ...["-chardev", `socket,id=fs,path=${socket}`, "-device", "vhost-user-fs-pci,chardev=fs,tag=host"],
  ]);
  let shown = 0;
  guest.onOutput(() => {
    onOutput(guest.stdout.slice(shown));
    shown = guest.stdout.length;
  });
  const timer = setTimeout(() => void guest[Symbol.asyncDispose](), timeoutMs);
  await guest.ended;
  clearTimeout(timer);
  const end = /^EXIT (\d+)\r?$/m.exec(guest.stdout)?.[1];
  if (end === undefined) throw new Error(`The guest ended without the end of its command: ${guest.stderr}`);
  return Number(end);
}

/** Kernel, modules, busybox and LVM of the distribution, unpacked and not installed. Made once. */
async function prepareParts(): Promise<string> {
  if (await exists(cacheFolder)) return cacheFolder;
  await mkdir(join(cacheFolder, ".."), { recursive: true });
  const work = await mkdtemp(`${cacheFolder}-`);
  try {
    const parts = await findGuestParts(join(work, "kernel"), (line) => process.stderr.write(`${line}\n`));
    const result = join(work, "result");
    await mkdir(join(result, "modules"), { recursive: true });
    await copyFile(parts.kernelPath, join(result, "vmlinuz"));
    await copyFile(parts.busyboxPath, join(result, "busybox"));
    const modules = await collectModules(parts.modulesFolder, wantedModules);
    for (const { name, content } of modules) await writeFile(join(result, "modules", `${name}.ko`), content);
    await writeFile(join(result, "modules", "order"), modules.map(({ name }) => `${name}\n`).join(""));
    const downloads = join(work, "packages");
    await mkdir(downloads);
    // apt fetches as the user _apt, who has to get into the folder.
    await chmod(downloads, 0o755);
    await runCommand("apt-get", ["download", "-q", ...packages], { cwd: downloads });
    for (const name of await readdir(downloads)) {
      await runCommand("dpkg-deb", ["-x", join(downloads, name), join(result, "lvm")]);
    }
    await rename(result, cacheFolder);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return cacheFolder;
}

async function makeInitrd(parts: string, command: string): Promise<Buffer> {
  const modules = await readdir(join(parts, "modules"));
  const files: ArchiveEntry[] = [];
  for (const name of modules) {
    files.push({
      path: `modules/${name}`,
      kind: "file",
      content: await readFile(join(parts, "modules", name)),
    });
  }
  const lvm = join(parts, "lvm");
  const environment = [
    `export PATH=${lvm}/sbin:${lvm}/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
    `export LD_LIBRARY_PATH=${lvm}/lib/x86_64-linux-gnu:${lvm}/usr/lib/x86_64-linux-gnu`,
    "export LVM_SYSTEM_DIR=/tmp/lvm-etc HOME=/tmp",
  ];
  return cpioArchive([
    { path: "bin", kind: "folder" },
    { path: "bin/busybox", kind: "file", content: await readFile(join(parts, "busybox")), executable: true },
    {
      path: "init",
      kind: "file",
      content: await readFile(new URL("init.sh", import.meta.url)),
      executable: true,
    },
    { path: "command", kind: "file", content: Buffer.from([...environment, command, ""].join("\n")) },
    { path: "lvm-etc", kind: "folder" },
    { path: "lvm-etc/lvm.conf", kind: "file", content: Buffer.from(lvmConfiguration) },
    { path: "modules", kind: "folder" },
    ...files,
  ]);
}

async function findVirtiofsd(): Promise<string> {
  for (const path of ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"])
    if (await exists(path)) return path;
  throw new Error("Expected virtiofsd, which gives the guest the host's files; it is in QEMU's packages");
}

async function appears(path: string): Promise<void> {
  const signal = AbortSignal.timeout(30_000);
  while (!(await exists(path))) {
    signal.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
