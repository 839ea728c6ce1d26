import { readFile, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { debianTool } from "../support/debian-tool.js";
import type { GuestFiles } from "./build-guest.js";
import { runCommand } from "./commands.js";
import { type ArchiveEntry, cpioArchive } from "./cpio.js";
import type { GuestVm } from "./guest-vm.js";

/**
 * The real qemu-ga with its libraries, in a first root file system of its own. Undefined where it cannot be had. It runs in
 * a guest alone: on the host it would freeze the host's file systems.
 */
export async function withGuestAgent(files: GuestFiles, directory: string): Promise<GuestFiles | undefined> {
  const program = await debianTool("qemu-ga", "qemu-guest-agent");
  if (program === undefined) return undefined;
  const listing = (await runCommand("ldd", [program])).toString();
  if (listing.includes("not found")) return undefined;
  const libraries = [...listing.matchAll(/(\/\S+) \(0x/g)].flatMap(([, path]) => path ?? []);
  const contents: ArchiveEntry[] = [];
  for (const path of libraries) contents.push(executable(path.slice(1), await readFile(path)));
  contents.push(executable("bin/qemu-ga", await readFile(program)));
  const folders = new Set(contents.flatMap(({ path }) => ancestors(path)));
  const extra = cpioArchive([
    ...[...folders].toSorted().map((path) => ({ path, kind: "folder" as const })),
    ...contents,
  ]);
  // Linux unpacks archives that follow each other, one over the other.
  const initrd = `${directory}/agent-initrd.cpio`;
  await writeFile(initrd, Buffer.concat([await readFile(files.initrd), extra]));
  return { ...files, initrd };
}

/** The channel between the agent in the guest and a socket on the host. */
export function guestAgentArguments(socketPath: string): string[] {
  return [
    ...["-device", "virtio-serial-pci"],
    ...["-chardev", `socket,id=qga,path=${socketPath},server=on,wait=off`],
    ...["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"],
  ];
}

/** There is no udev that would name the port. */
export async function startGuestAgent(guest: GuestVm): Promise<void> {
  const port = "$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name | cut -d/ -f5)";
  const { exitStatus, lines } = await guest.command(
    `qemu-ga -d -m virtio-serial -p /dev/${port} -t /tmp -f /tmp/qga.pid -l /tmp/qga.log`,
  );
  if (exitStatus !== 0) throw new Error(`qemu-ga did not start: ${lines.join("\n")}`);
}

function executable(path: string, content: Buffer): ArchiveEntry {
  return { path, kind: "file", content, executable: true };
}

function ancestors(path: string): string[] {
  const parent = dirname(path);
  return parent === "." ? [] : [...ancestors(parent), parent];
}
