import { mkdir } from "node:fs/promises";
import { formatBytes, MIB } from "../../src/shared/units.js";
import { chooseAccelerator } from "../guest/accelerator.js";
import { buildGuest, type GuestFiles } from "../guest/build-guest.js";
import { makeDataDisk } from "../guest/data-disk.js";
import { bootGuest, type GuestVm } from "../guest/guest-vm.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { createImage, fillImage } from "../support/image-tool.js";
import type { DiskFormat, TestDisk } from "../support/vm-arguments.js";
import { Pulse } from "./pulse.js";
import type { Screen } from "./screen.js";
import type { Workplace } from "./workplace.js";

export const domain = "web01";
const tickSeconds = 0.1;
const workOf: Readonly<Record<string, string>> = {
  vda: "ext4 full of files; the guest works on it all the time",
  vdb: "ext4 full of files; the guest leaves it alone",
  sda: "on SCSI, without a file system; the guest writes to it now and then",
};

/** The VM of the demo, with the configuration that makes it a domain of fleece. */
export interface Scene {
  readonly workplace: Workplace;
  readonly screen: Screen;
  readonly files: GuestFiles;
  readonly accelerator: "tcg" | "kvm";
  readonly guest: GuestVm;
  readonly pulse: Pulse;
}

export async function setScene(workplace: Workplace, screen: Screen): Promise<Scene> {
  const files = await buildGuest(undefined, (line) => screen.line(line));
  const [disks, accelerator] = await Promise.all([makeDisks(workplace), chooseAccelerator(files)]);
  for (const { target, size, format } of disks) {
    screen.line(`${target}  ${formatBytes(size).padStart(7)} ${format.padEnd(5)}  ${workOf[target] ?? ""}`);
  }
  const guest = await workplace.own(await boot({ workplace, files, accelerator }, "guest", disks));
  screen.line(
    `Linux is up, in QEMU${accelerator === "kvm" ? " with KVM" : " without KVM (emulated, so slow)"}`,
  );
  await configure(workplace, guest);
  return { workplace, screen, files, accelerator, guest, pulse: new Pulse(guest) };
}

export async function boot(
  { workplace, files, accelerator }: Pick<Scene, "workplace" | "files" | "accelerator">,
  name: string,
  disks: readonly TestDisk[],
): Promise<GuestVm> {
  return bootGuest({ files, directory: workplace.sockets.path, name, disks, accelerator, tickSeconds });
}

async function makeDisks(workplace: Workplace): Promise<(TestDisk & { readonly size: number })[]> {
  const disk = (target: string, format: DiskFormat, sizeMib: number) => {
    const path = workplace.file(`${target}.${format}`);
    return { target, path, format, size: sizeMib * MIB };
  };
  const data = disk("vda", "qcow2", 1024);
  const idle = disk("vdb", "qcow2", 256);
  const raw = { ...disk("sda", "raw", 64), bus: "scsi" as const };
  await makeDataDisk(data.path, { sizeBytes: data.size, contentBytes: 100 * MIB });
  await makeDataDisk(idle.path, { sizeBytes: idle.size, contentBytes: 32 * MIB });
  await createImage(raw.path, raw.size, { format: "raw" });
  await fillImage(raw.path, "raw", { offset: 0, length: 32 * MIB, pattern: 0x5a });
  return [data, idle, raw];
}

/** Scratch and repository must exist: fleece does not fill the place of a file system that is not mounted. */
async function configure(workplace: Workplace, guest: GuestVm): Promise<void> {
  for (const name of ["scratch", "backups"]) await mkdir(workplace.file(name));
  await writeConfig(workplace.folder, {
    domains: [domainConfig(domain, guest.vm)],
    more: { runtimeDir: workplace.sockets.file("run") },
  });
}
