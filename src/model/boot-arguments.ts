import { isAbsolute, resolve } from "node:path";
import { FleeceError } from "../shared/errors.js";
import {
  type MachineOption,
  parseMachineArguments,
  printMachineArguments,
  type ReplacedDisk,
  replaceDisks,
} from "./machine-arguments.js";
import { OptionFields } from "./option-fields.js";

/** The throw-away machine that a domain's arguments are to become. */
export interface BootPlan {
  /** What relative paths in the arguments count from. */
  readonly cwd: string;
  /** Each has a throw-away overlay. */
  readonly disks: readonly ReplacedDisk[];
  /** Copies of other files that the machine may write to, by the absolute path of the original. */
  readonly copies: ReadonlyMap<string, string>;
  /** Undefined: as it is. */
  readonly memoryBytes: number | undefined;
  readonly accelerator: "kvm" | "tcg";
  /** A socket for the guest agent's port; undefined: nobody asks it. */
  readonly agentSocket: string | undefined;
}

const CONSOLE = "fleece-console";
const AGENT = "fleece-agent";

/**
 * Options that only say what the machine is, or which files it reads. All others are left out, for they stand for ends on the host: networks,
 * monitors, displays, sockets, huge pages, passed-through devices. A whitelist, so that options of later versions are left out, too.
 */
const KEPT: ReadonlySet<string> = new Set([
  ...[
    "",
    "machine",
    "M",
    "cpu",
    "smp",
    "m",
    "boot",
    "bios",
    "L",
    "rtc",
    "uuid",
    "smbios",
    "acpitable",
    "fw_cfg",
  ],
  ...["global", "nodefaults", "no-acpi", "no-hpet", "no-fd-bootchk", "vga", "usb", "sandbox"],
  ...["kernel", "initrd", "append", "dtb"],
  ...["blockdev", "drive", "hda", "hdb", "hdc", "hdd", "device", "chardev", "object"],
]);

/** Objects that are within QEMU. */
const KEPT_OBJECTS: ReadonlySet<string> = new Set(["iothread", "throttle-group", "rng-builtin"]);

/** Of `-machine`: what is said anew, what belongs to memory that is plain now, and what writes files. */
const DROPPED_MACHINE = [
  ...["accel", "memory-backend", "confidential-guest-support", "memory-encryption", "hmat", "nvdimm"],
  ...["kernel-irqchip", "kernel_irqchip", "dumpdtb"],
];

/** Members of a device that name something else. It stays only if all that it names stays. */
const REFERENCES = [
  "netdev",
  "drive",
  "chardev",
  "rng",
  "iothread",
  "memdev",
  "tpmdev",
  "audiodev",
  "fsdev",
  "cryptodev",
];

/** Devices that reach the host without naming anything else, network cards, and what needs a display with 3D. */
const LEFT_OUT = new RegExp(
  [
    "^(vfio|vhost|vdpa|usb-host|usb-redir|usb-mtp|usb-ccid|u2f-passthru|virtio-input-host|ivshmem|scsi-generic|xen)",
    "^(virtio-net|e1000|igb|rtl8139|vmxnet|ne2k|pcnet|i825|tulip|usb-net|spapr-vlan)",
    "-gl(-pci)?$",
  ].join("|"),
);

/** Of several serial ports, that one is the console which comes first here. */
const CONSOLES = /^(isa-serial|pci-serial|virtconsole|spapr-vty|sclp(lm)?console)$/;

/**
 * The arguments of a machine that boots throw-away disks, beside the domain and without an end on the host: no network, no socket but
 * for the agent, standard output as its serial console. It ends instead of rebooting. Fails with UNSUPPORTED if a disk is not found, or
 * the machine has no port for the guest agent that is to be asked.
 */
export function bootArguments(list: readonly string[], plan: BootPlan): string[] {
  const { program, options } = parseMachineArguments(list);
  const kept = options.filter(({ name }) => KEPT.has(name));
  const machine = new BootMachine(replaceDisks(kept, plan), plan);
  const serial = machine.hasConsoleDevice ? [] : ["-serial", `chardev:${CONSOLE}`];
  const agent = plan.agentSocket?.replaceAll(",", ",,");
  return [
    ...printMachineArguments({ program, options: machine.options }),
    ...["-accel", plan.accelerator, "-no-user-config", "-no-reboot"],
    ...["-nic", "none", "-display", "none", "-monitor", "none", "-parallel", "none"],
    ...(plan.memoryBytes === undefined ? [] : ["-m", `${Math.ceil(plan.memoryBytes / 2 ** 20)}M`]),
    ...["-chardev", `stdio,id=${CONSOLE},signal=off`, ...serial],
    ...(agent === undefined ? [] : ["-chardev", `socket,id=${AGENT},path=${agent},server=on,wait=off`]),
  ];
}

class BootMachine {
  readonly options: readonly MachineOption[];
  readonly hasConsoleDevice: boolean;
  readonly #plan: BootPlan;
  readonly #console: MachineOption | undefined;
  /** Ids of what devices may name. */
  readonly #ids = new Set<string>();
  /** Ids of devices that were left out, with the buses that they had. */
  readonly #gone = new Set<string>();
  readonly #overlays: ReadonlySet<string>;
  #hasAgent = false;

  constructor(options: readonly MachineOption[], plan: BootPlan) {
    this.#plan = plan;
    this.#overlays = new Set(plan.disks.map(({ overlay }) => overlay));
    const ports = options.filter(
      ({ name, value = "" }) => name === "device" && CONSOLES.test(driverOf(value)),
    );
    this.#console = ports.find(({ value = "" }) => !driverOf(value).startsWith("virt")) ?? ports[0];
    this.hasConsoleDevice = this.#console !== undefined;
    // What is named comes first: QEMU itself does not care for the order.
    const sorted = options.toSorted((a, b) => rankOf(a) - rankOf(b));
    const results = new Map(sorted.map((option) => [option, this.#keep(option)]));
    this.options = options.flatMap((option) => results.get(option) ?? []);
    if (plan.agentSocket === undefined || this.#hasAgent) return;
    throw new FleeceError(
      "UNSUPPORTED",
      "The machine has no port for the guest agent: expected a virtserialport with the name org.qemu.guest_agent.0 in its arguments",
    );
  }

  /** Undefined: it is left out. */
  #keep(option: MachineOption): MachineOption | undefined {
    const { name, value = "" } = option;
    switch (name) {
      case "m":
        return this.#plan.memoryBytes === undefined ? { ...option, value: plainMemory(value) } : undefined;
      case "cpu":
        // What the host's processor has, the emulated one may lack; `max` is all that it has.
        return this.#plan.accelerator === "tcg" ? { ...option, value: "max" } : option;
      case "machine":
      case "M":
        return { ...option, value: this.#machine(value) };
      case "object":
        return this.#object(option, new OptionFields(value, "qom-type"));
      case "chardev":
        return this.#chardev(option, new OptionFields(value, "backend"));
      case "drive":
        return this.#drive(option, new OptionFields(value, "file"));
      case "blockdev":
        return this.#blockdev(option, new OptionFields(value, "driver"));
      case "device":
        return this.#device(option, new OptionFields(value, "driver"));
      // Legacy disks that were replaced are drives now; the others are of nobody's backup.
      case "":
      case "hda":
      case "hdb":
      case "hdc":
      case "hdd":
        return undefined;
      default:
        return option;
    }
  }

  #machine(value: string): string {
    const fields = new OptionFields(value, "type");
    for (const key of DROPPED_MACHINE) fields.remove(key);
    for (const key of ["pflash0", "pflash1"]) {
      if (!this.#ids.has(fields.get(key) ?? "")) fields.remove(key);
    }
    return fields.print();
  }

  #object(option: MachineOption, fields: OptionFields): MachineOption | undefined {
    if (!KEPT_OBJECTS.has(fields.get("qom-type") ?? "")) return undefined;
    this.#ids.add(fields.get("id") ?? "");
    return option;
  }

  /** Whatever it was, it leads nowhere. */
  #chardev(option: MachineOption, fields: OptionFields): MachineOption | undefined {
    const id = fields.get("id");
    if (id === undefined) return undefined;
    this.#ids.add(id);
    return { ...option, value: `null,id=${id}` };
  }

  #drive(option: MachineOption, fields: OptionFields): MachineOption | undefined {
    const key = fields.has("file.filename") ? "file.filename" : "file";
    const isReadOnly =
      ["readonly", "read-only"].some((name) => isOn(fields, name)) || fields.get("media") === "cdrom";
    const kept = this.#image(fields, key, isReadOnly);
    if (kept) this.#ids.add(fields.get("id") ?? "");
    return kept ? { ...option, value: fields.print() } : undefined;
  }

  #blockdev(option: MachineOption, fields: OptionFields): MachineOption | undefined {
    const key = fields.has("filename") ? "filename" : "file.filename";
    const below = fields.get("file");
    const kept =
      below === undefined
        ? this.#image(fields, key, isOn(fields, "read-only"))
        : this.#ids.has(below) && !fields.has("backing");
    if (kept) this.#ids.add(fields.get("node-name") ?? "");
    return kept ? { ...option, value: fields.print() } : undefined;
  }

  /** Whether an image may be opened: our overlays, our copies, and files that are read alone. */
  #image(fields: OptionFields, key: string, isReadOnly: boolean): boolean {
    const file = fields.get(key);
    if (file === undefined) return false;
    if (this.#overlays.has(file)) return true;
    if (fields.has("backing")) return false;
    const path = isAbsolute(file) ? resolve(file) : resolve(this.#plan.cwd, file.replace(/^file:/, ""));
    const copy = this.#plan.copies.get(path);
    if (copy !== undefined) fields.set(key, copy);
    return copy !== undefined || (isReadOnly && !/^[\w.+-]+:|^\/dev\//.test(file));
  }

  #device(option: MachineOption, fields: OptionFields): MachineOption | undefined {
    const driver = fields.get("driver") ?? "";
    const isLoose = REFERENCES.some((key) => fields.has(key) && !this.#ids.has(fields.get(key) ?? ""));
    const [parent = ""] = (fields.get("bus") ?? "").split(".");
    if (isLoose || LEFT_OUT.test(driver) || this.#gone.has(parent)) {
      const id = fields.get("id");
      if (id !== undefined) this.#gone.add(id);
      return undefined;
    }
    const isAgent = driver === "virtserialport" && fields.get("name") === "org.qemu.guest_agent.0";
    if (option === this.#console) fields.set("chardev", CONSOLE);
    else if (!isAgent || this.#plan.agentSocket === undefined) return option;
    else {
      this.#hasAgent = true;
      fields.set("chardev", AGENT);
    }
    return { ...option, value: fields.print() };
  }
}

const RANKS = ["object", "chardev", "blockdev", "drive", "device"];

/** Protocol nodes before the format nodes that name them. */
function rankOf({ name, value = "" }: MachineOption): number {
  const isAbove = name === "blockdev" && new OptionFields(value, "driver").get("file") !== undefined;
  return isAbove ? RANKS.indexOf("drive") : RANKS.includes(name) ? RANKS.indexOf(name) : RANKS.length;
}

function driverOf(value: string): string {
  return new OptionFields(value, "driver").get("driver") ?? "";
}

function isOn(fields: OptionFields, key: string): boolean {
  return fields.has(key) && ["on", "yes", "true", undefined].includes(fields.get(key));
}

/** Without slots for more, which need memory objects. */
function plainMemory(value: string): string {
  return new OptionFields(value, "size").get("size") ?? "";
}
