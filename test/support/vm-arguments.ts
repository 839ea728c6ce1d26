import type { Json } from "./monitor.js";

export type DiskFormat = "qcow2" | "raw" | "vpc" | "vhdx" | "vmdk" | "vdi";
export type DiskBus = "virtio-blk" | "scsi" | "ide";

export interface TestDisk {
  /** The device's id, which is the disk's target for the agent. */
  readonly target: string;
  readonly path: string;
  readonly format: DiskFormat;
  /** Default: `virtio-blk`. */
  readonly bus?: DiskBus;
  /** Runs the disk in an iothread of its own. Not for `ide`. */
  readonly iothread?: boolean;
  readonly readOnly?: boolean;
  /** An object of `extraArguments` that limits what goes to the file. */
  readonly throttleGroup?: string;
  /** `path` is one. */
  readonly blockDevice?: boolean;
  /** Default: `<target>-format`, over a file node `<target>-file`. */
  readonly nodeName?: string;
}

export interface LinuxBoot {
  readonly kernel: string;
  readonly initrd: string;
  readonly append: string;
}

export interface VmHardware {
  readonly disks: readonly TestDisk[];
  /** Default: `tcg`, which works everywhere. */
  readonly accelerator?: "tcg" | "kvm";
  /** Default: `q35`, or `pc` when a disk is on the IDE bus. */
  readonly machine?: "q35" | "pc";
  /** MiB. Default: 64. */
  readonly memoryMib?: number;
  /** The CPUs do not start. */
  readonly paused?: boolean;
  readonly boot?: LinuxBoot;
  /** A Unix socket on which somebody listens already: QEMU connects the guest's serial port to it. */
  readonly serialPath?: string;
  /** Further arguments for QEMU, as they are. */
  readonly extraArguments?: readonly string[];
}

export function formatNodeName(disk: TestDisk): string {
  return disk.nodeName ?? `${disk.target}-format`;
}

/** What `qemu-io -d` of the human monitor calls the disk: virtio-blk has its block backend one level down. */
export function qemuIoPath(disk: TestDisk): string {
  const onVirtio = (disk.bus ?? "virtio-blk") === "virtio-blk";
  return onVirtio ? `/machine/peripheral/${disk.target}/virtio-backend` : disk.target;
}

export function qemuArguments(hardware: VmHardware, qmpPaths: readonly string[]): string[] {
  const usesIde = hardware.disks.some((disk) => disk.bus === "ide");
  const machine = hardware.machine ?? (usesIde ? "pc" : "q35");
  return [
    ...["-accel", hardware.accelerator ?? "tcg"],
    ...["-machine", machine, "-m", String(hardware.memoryMib ?? 64)],
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...(hardware.paused === true ? ["-S"] : []),
    ...qmpPaths.flatMap((path, index) => monitorArguments(path, index)),
    ...serialArguments(hardware),
    ...bootArguments(hardware),
    ...hardware.disks.flatMap((disk, index) => diskArguments(disk, index, machine)),
    ...(hardware.extraArguments ?? []),
  ];
}

function monitorArguments(path: string, index: number): string[] {
  const chardev = `socket,id=qmp${index},path=${escapeCommas(path)},server=on,wait=off`;
  return ["-chardev", chardev, "-mon", `chardev=qmp${index},mode=control`];
}

function serialArguments({ serialPath }: VmHardware): string[] {
  if (serialPath === undefined) return [];
  return ["-chardev", `socket,id=serial,path=${escapeCommas(serialPath)}`, "-serial", "chardev:serial"];
}

function bootArguments({ boot }: VmHardware): string[] {
  if (boot === undefined) return [];
  return ["-kernel", boot.kernel, "-initrd", boot.initrd, "-append", boot.append, "-no-reboot"];
}

function diskArguments(disk: TestDisk, index: number, machine: "q35" | "pc"): string[] {
  const drive = `id=${disk.target},drive=${formatNodeName(disk)}`;
  const iothread = disk.iothread === true ? `iothread-${disk.target}` : undefined;
  const suffix = iothread === undefined ? "" : `,iothread=${iothread}`;
  return [
    ...(iothread === undefined ? [] : ["-object", `iothread,id=${iothread}`]),
    ...["-blockdev", JSON.stringify(blockdev(disk))],
    ...deviceArguments(disk, drive, suffix, idePlace(index, machine)),
  ];
}

function deviceArguments(disk: TestDisk, drive: string, iothread: string, idePlace: string): string[] {
  const bus = disk.bus ?? "virtio-blk";
  if (bus === "virtio-blk") return ["-device", `virtio-blk-pci,${drive}${iothread}`];
  if (bus === "ide") return ["-device", `ide-hd,${drive},${idePlace}`];
  // A controller each: only a controller, not a disk on it, can be given an iothread.
  const controller = `scsi-${disk.target}`;
  return [
    ...["-device", `virtio-scsi-pci,id=${controller}${iothread}`],
    ...["-device", `scsi-hd,${drive},bus=${controller}.0`],
  ];
}

/** q35 has six AHCI ports with one disk each, pc two channels with two each. */
function idePlace(index: number, machine: "q35" | "pc"): string {
  if (machine === "q35") return `bus=ide.${index}`;
  return `bus=ide.${Math.floor(index / 2)},unit=${index % 2}`;
}

/** `discard: unmap` on both nodes, so that what the guest discards is really unmapped. */
function blockdev(disk: TestDisk): Json {
  const common = { discard: "unmap", "read-only": disk.readOnly === true };
  const driver = disk.blockDevice === true ? "host_device" : "file";
  const file = { ...common, driver, filename: disk.path, "node-name": `${disk.target}-file` };
  return {
    ...common,
    driver: disk.format,
    "node-name": formatNodeName(disk),
    file:
      disk.throttleGroup === undefined
        ? file
        : { ...common, driver: "throttle", "throttle-group": disk.throttleGroup, file },
  };
}

/** In QEMU's option strings a comma ends a value unless it is doubled. */
function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}
