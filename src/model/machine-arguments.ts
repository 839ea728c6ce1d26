import { isAbsolute, resolve } from "node:path";
import { FleeceError } from "../shared/errors.js";
import { DISK_FORMATS, type DiskFormat } from "./snapshot-plan.js";
import { optionValue, type OptionPair, parseOptionString, printOptionString } from "./option-string.js";

/** One option of a QEMU command line, as it was written. */
export interface MachineOption {
  /** Without its dashes; empty for a lone image, which is QEMU's first hard disk. */
  readonly name: string;
  /** `-` or `--`, which mean the same to QEMU; empty for a lone image. */
  readonly dashes: string;
  readonly value: string | undefined;
}

export interface MachineArguments {
  readonly program: string;
  readonly options: readonly MachineOption[];
}

/** Options of QEMU 7.2 to 10 that take no value; every other one takes the argument after it. */
const FLAGS: ReadonlySet<string> = new Set([
  ...["S", "s", "h", "help", "version", "snapshot", "nodefaults", "no-user-config", "nographic", "daemonize"],
  ...["no-reboot", "no-shutdown", "no-acpi", "no-hpet", "enable-kvm", "full-screen", "portrait", "preconfig"],
  ...["singlestep", "win2k-hack", "no-fd-bootchk", "usb", "only-migratable", "mem-prealloc", "curses"],
  ...[
    "alt-grab",
    "ctrl-grab",
    "no-quit",
    "no-frame",
    "semihosting",
    "old-param",
    "enable-fips",
    "enable-sync-profile",
  ],
  ...["xen-attach", "xen-domid-restrict"],
]);

/** Fails with UNSUPPORTED for an empty list, or one that ends in the middle of an option. */
export function parseMachineArguments(list: readonly string[]): MachineArguments {
  const [program, ...rest] = list;
  if (program === undefined) throw unsupported("Expected an argument list of QEMU, got an empty one");
  const options: MachineOption[] = [];
  for (let index = 0; index < rest.length; index++) {
    const word = rest[index] ?? "";
    const [, dashes, name] = /^(--?)(.+)$/s.exec(word) ?? [];
    if (dashes === undefined || name === undefined) {
      options.push({ name: "", dashes: "", value: word });
    } else if (FLAGS.has(name)) {
      options.push({ name, dashes, value: undefined });
    } else {
      const value = rest[++index];
      if (value === undefined) throw unsupported(`Expected a value after ${word}, the last argument of QEMU`);
      options.push({ name, dashes, value });
    }
  }
  return { program, options };
}

export function printMachineArguments({ program, options }: MachineArguments): string[] {
  return [
    program,
    ...options.flatMap(({ name, dashes, value }) => [
      ...(dashes === "" ? [] : [`${dashes}${name}`]),
      ...(value === undefined ? [] : [value]),
    ]),
  ];
}

/** A disk whose argument is to name another file. */
export interface ReplacedDisk {
  readonly target: string;
  /** Absolute paths of all files that the disk has had: the argument may name any of them. */
  readonly files: readonly string[];
  /** With a backing file, if it has one, in its header. */
  readonly overlay: string;
  /** Of the overlay. Default: qcow2. */
  readonly format?: DiskFormat;
}

export interface Rewriting {
  readonly disks: readonly ReplacedDisk[];
  /** What relative paths in the arguments count from. */
  readonly cwd: string;
  /** Resolved (`pc-q35-7.2`); left out: as it is. */
  readonly machineType?: string | undefined;
  /** Wait for a memory image. */
  readonly incoming: boolean;
}

/** How an earlier start began says nothing of this one; and a process that forks away from us could not be watched. */
const DROPPED: ReadonlySet<string> = new Set(["S", "incoming", "loadvm", "daemonize"]);

/**
 * The arguments of a QEMU with the same machine on other images, which does not start its CPUs by itself. What it leaves alone it leaves
 * byte for byte. Fails with UNSUPPORTED if a disk is not found in the arguments, or is described there in a way that would not survive
 * another image.
 */
export function rewriteArguments(list: readonly string[], rewriting: Rewriting): string[] {
  const { program, options } = parseMachineArguments(list);
  if (options.some(({ name }) => name === "snapshot")) {
    throw unsupported(
      "The QEMU of the domain was started with -snapshot, so what it writes is in none of its images",
    );
  }
  const kept = options.filter(({ name }) => !DROPPED.has(name));
  const rewritten = withMachineType(replaceDisks(kept, rewriting), rewriting.machineType);
  const end = rewriting.incoming ? ["-S", "-incoming", "defer"] : ["-S"];
  return [...printMachineArguments({ program, options: rewritten }), ...end];
}

/** Gives disks other images, and changes nothing else. Fails with UNSUPPORTED as `rewriteArguments` does. */
export function replaceDisks(
  options: readonly MachineOption[],
  rewriting: Pick<Rewriting, "disks" | "cwd">,
): MachineOption[] {
  const disks = new DiskRewriter(rewriting, options);
  const rewritten = options.map((option) => disks.rewrite(option));
  disks.checkComplete();
  return rewritten;
}

function withMachineType(
  options: readonly MachineOption[],
  type: string | undefined,
): readonly MachineOption[] {
  if (type === undefined) return options;
  const isMachine = ({ name }: MachineOption): boolean => name === "machine" || name === "M";
  const typeOf = (pairs: readonly OptionPair[]): number =>
    pairs.findIndex(({ key }, index) => key === "type" || (index === 0 && key === undefined));
  const hasType = options.some(
    (option) => isMachine(option) && typeOf(parseOptionString(option.value ?? "")) >= 0,
  );
  if (!hasType) return [...options, { name: "machine", dashes: "-", value: type }];
  return options.map((option) => {
    if (!isMachine(option)) return option;
    const pairs = parseOptionString(option.value ?? "");
    const at = typeOf(pairs);
    const replaced = pairs.map((pair, index) => (index === at ? { ...pair, value: type } : pair));
    return { ...option, value: printOptionString(replaced) };
  });
}

class DiskRewriter {
  readonly #cwd: string;
  readonly #disks: readonly ReplacedDisk[];
  readonly #found = new Map<string, ReplacedDisk>();
  /** Format nodes by the node that is their `file`; protocol nodes with a name of their own. */
  readonly #formatOver: ReadonlySet<string>;
  readonly #protocols = new Map<string, ReplacedDisk>();

  constructor({ cwd, disks }: Pick<Rewriting, "disks" | "cwd">, options: readonly MachineOption[]) {
    this.#cwd = cwd;
    this.#disks = disks;
    const nodes = options.flatMap((option) =>
      option.name === "blockdev" ? [blockFields(option.value ?? "")] : [],
    );
    this.#formatOver = new Set(nodes.flatMap((node) => node.get("file") ?? []));
    for (const node of nodes) {
      const disk = this.#diskOf(node.get("filename"));
      const name = node.get("node-name");
      if (disk !== undefined && name !== undefined) this.#protocols.set(name, disk);
    }
  }

  rewrite(option: MachineOption): MachineOption {
    const { name, value = "" } = option;
    if (name === "blockdev") return { ...option, value: this.#blockdev(value) };
    if (name === "drive") return { ...option, value: this.#drive(value) };
    const index = ["hda", "hdb", "hdc", "hdd"].indexOf(name === "" ? "hda" : name);
    const disk = index < 0 ? undefined : this.#diskOf(value);
    if (disk === undefined) return option;
    this.#note(disk);
    const pairs = { file: disk.overlay, format: formatOf(disk), index: String(index), media: "disk" };
    const drive = Object.entries(pairs).map(([key, text]) => ({ key, value: text }));
    return { name: "drive", dashes: "-", value: printOptionString(drive) };
  }

  checkComplete(): void {
    const missing = this.#disks.filter(({ target }) => !this.#found.has(target));
    if (missing.length === 0) return;
    const words = missing.map(({ target, files }) => `${target} (${files.join(", ")})`).join("; ");
    throw unsupported(`The argument list of QEMU names no image of these disks: ${words}`);
  }

  #blockdev(value: string): string {
    const node = blockFields(value);
    const nested = node.paths().flatMap((path) => {
      const disk = path.at(-1) === "filename" ? this.#diskOf(node.get(...path)) : undefined;
      return disk === undefined ? [] : [{ disk, at: path.slice(0, -1) }];
    });
    const [first, ...others] = nested;
    const below = this.#protocols.get(node.get("file") ?? "");
    if (first === undefined) {
      if (below === undefined) return value;
      return this.#toFormat(node, below, []);
    }
    const { disk, at } = first;
    if (others.length > 0) throw unusual(disk, "more than one of its images is in one -blockdev");
    if (at.includes("backing")) throw unusual(disk, "it is the backing file of another image there");
    node.set(disk.overlay, ...at, "filename");
    node.set("file", ...at, "driver");
    if (at.length > 0) return this.#toFormat(node, disk, at.slice(0, -1));
    if (this.#formatOver.has(node.get("node-name") ?? "")) return node.print();
    // The device uses the protocol node itself, as a raw disk: it gets a format above it.
    this.#note(disk);
    node.nest("file", ["node-name"]);
    node.set(formatOf(disk), "driver");
    return node.print();
  }

  /** Only the format matters to the overlay; where it caches and what it discards stays as it is. */
  #toFormat(node: BlockFields, disk: ReplacedDisk, at: readonly string[]): string {
    const driver = node.get(...at, "driver") ?? "";
    if (!DISK_FORMATS.some((format) => format === driver))
      throw unusual(disk, `its image is below ${driver || "no driver"}`);
    const obstacle = node
      .paths()
      .filter((path) => path.length > at.length && at.every((step, index) => path[index] === step))
      .map((path) => path[at.length] ?? "")
      .find((key) => OBSTACLES.has(key));
    if (obstacle !== undefined) throw unusual(disk, `it has \`${obstacle}\``);
    this.#note(disk);
    node.set(formatOf(disk), ...at, "driver");
    return node.print();
  }

  #drive(value: string): string {
    const pairs = parseOptionString(value);
    const key = optionValue(pairs, "file") === undefined ? "file.filename" : "file";
    const disk = this.#diskOf(optionValue(pairs, key));
    if (disk === undefined) return value;
    for (const pair of pairs) {
      const [obstacle = ""] = (pair.key ?? "").split(".");
      const isOn = obstacle !== "snapshot" || pair.value !== "off";
      if ((OBSTACLES.has(obstacle) || obstacle === "snapshot") && isOn)
        throw unusual(disk, `it has \`${obstacle}\``);
    }
    this.#note(disk);
    const others = pairs.filter((pair) => !["format", "driver", "file.driver"].includes(pair.key ?? ""));
    const replaced = others.map((pair) => (pair.key === key ? { ...pair, value: disk.overlay } : pair));
    return printOptionString([...replaced, { key: "format", value: formatOf(disk) }]);
  }

  #note(disk: ReplacedDisk): void {
    if (this.#found.has(disk.target)) throw unusual(disk, "it is there twice");
    this.#found.set(disk.target, disk);
  }

  #diskOf(file: string | undefined): ReplacedDisk | undefined {
    if (file === undefined) return undefined;
    const path = isAbsolute(file) ? resolve(file) : resolve(this.#cwd, file.replace(/^file:/, ""));
    return this.#disks.find(({ files }) => files.includes(path));
  }
}

/** A part of a raw file, another chain than the overlay's header has, or what the image below has and the overlay has not. */
const OBSTACLES: ReadonlySet<string> = new Set([
  "offset",
  "size",
  "force_size_calc",
  "backing",
  "data-file",
  "encrypt",
]);

/** The members of a `-blockdev`, which is JSON or an option string with dotted keys. */
interface BlockFields {
  get(...path: string[]): string | undefined;
  set(value: string, ...path: string[]): void;
  /** Paths of all members that are neither objects nor lists. */
  paths(): string[][];
  /** Puts all members but those of `above` into a new member. */
  nest(member: string, above: readonly string[]): void;
  print(): string;
}

function blockFields(value: string): BlockFields {
  return value.startsWith("{") ? new JsonFields(value) : new DottedFields(value);
}

class DottedFields implements BlockFields {
  #pairs: readonly OptionPair[];

  constructor(text: string) {
    // The implied key of -blockdev.
    this.#pairs = parseOptionString(text).map((pair) => ({ ...pair, key: pair.key ?? "driver" }));
  }

  get(...path: string[]): string | undefined {
    return optionValue(this.#pairs, path.join("."));
  }

  set(value: string, ...path: string[]): void {
    const key = path.join(".");
    this.#pairs = [...this.#pairs.filter((pair) => pair.key !== key), { key, value }];
  }

  paths(): string[][] {
    return this.#pairs.map(({ key = "" }) => key.split("."));
  }

  nest(member: string, above: readonly string[]): void {
    this.#pairs = this.#pairs.map((pair) =>
      above.includes(pair.key ?? "") ? pair : { ...pair, key: `${member}.${pair.key ?? ""}` },
    );
  }

  print(): string {
    return printOptionString(this.#pairs);
  }
}

type JsonObject = Record<string, unknown>;

class JsonFields implements BlockFields {
  #value: JsonObject;

  constructor(text: string) {
    this.#value = parseObject(text);
  }

  get(...path: string[]): string | undefined {
    let value: unknown = this.#value;
    for (const step of path) value = isObject(value) ? value[step] : undefined;
    return typeof value === "string" ? value : undefined;
  }

  set(value: string, ...path: string[]): void {
    const last = path.at(-1) ?? "";
    let object: unknown = this.#value;
    for (const step of path.slice(0, -1)) object = isObject(object) ? object[step] : undefined;
    if (isObject(object)) object[last] = value;
  }

  paths(): string[][] {
    return leaves(this.#value);
  }

  nest(member: string, above: readonly string[]): void {
    const entries = Object.entries(this.#value);
    const inner = Object.fromEntries(entries.filter(([key]) => !above.includes(key)));
    this.#value = { ...Object.fromEntries(entries.filter(([key]) => above.includes(key))), [member]: inner };
  }

  print(): string {
    return JSON.stringify(this.#value);
  }
}

/** Also of `null`, which is a backing file that there shall not be. */
function leaves(object: JsonObject): string[][] {
  return Object.entries(object).flatMap(([key, value]) =>
    isObject(value) ? leaves(value).map((path) => [key, ...path]) : [[key]],
  );
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseObject(text: string): JsonObject {
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return value;
  } catch {
    // Said below.
  }
  throw unsupported(`Expected a JSON object after -blockdev, got ${text.slice(0, 60)}`);
}

function formatOf({ format = "qcow2" }: ReplacedDisk): DiskFormat {
  return format;
}

function unusual({ target }: ReplacedDisk, why: string): FleeceError {
  return unsupported(`Disk ${target} cannot be given another image in the arguments of QEMU: ${why}`);
}

function unsupported(message: string): FleeceError {
  return new FleeceError("UNSUPPORTED", message);
}
