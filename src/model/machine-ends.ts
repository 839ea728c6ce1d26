import { isAbsolute, resolve } from "node:path";
import { parseMachineArguments, type MachineOption } from "./machine-arguments.js";
import { optionValue, type OptionPair, parseOptionString } from "./option-string.js";

/** What of a QEMU's surroundings its arguments claim. */
export interface MachineEnds {
  /** Absolute paths of sockets that it listens on, and its pid file: each can be had by one process at a time. */
  readonly paths: readonly string[];
  /** Ends that two QEMUs cannot have at the same time and that cannot be moved aside, as the arguments have them. */
  readonly exclusive: readonly string[];
  /** Arguments that stand for something which only the former starter of the process had (open files), so that nobody else can start it. */
  readonly inherited: readonly string[];
}

export function machineEnds(list: readonly string[], cwd: string): MachineEnds {
  const ends = { paths: new Set<string>(), exclusive: new Set<string>(), inherited: new Set<string>() };
  for (const option of parseMachineArguments(list).options) {
    const { name, dashes, value = "" } = option;
    const words = `${dashes}${name}${value === "" ? "" : ` ${value}`}`;
    if (isInherited(option)) ends.inherited.add(words);
    const path = pathEnd(option);
    if (path !== undefined) ends.paths.add(isAbsolute(path) ? resolve(path) : resolve(cwd, path));
    else if (isExclusive(option)) ends.exclusive.add(words);
  }
  return { paths: [...ends.paths], exclusive: [...ends.exclusive], inherited: [...ends.inherited] };
}

const FD_KEYS = /(^|[,.{"])(fd|fds|vhostfd|vhostfds|sockfd|passwordid-fd)("\s*:|=)/;

function isInherited({ name, value = "" }: MachineOption): boolean {
  if (name === "add-fd" || value.includes("/dev/fdset/") || value.includes("/dev/fd/")) return true;
  return name !== "incoming" && name !== "append" && FD_KEYS.test(value);
}

/** Options whose value may be a character device in the short form (`unix:/path,server`). */
const CHARACTER_ENDS: ReadonlySet<string> = new Set([
  "qmp",
  "qmp-pretty",
  "monitor",
  "serial",
  "parallel",
  "gdb",
]);

function pathEnd({ name, value = "" }: MachineOption): string | undefined {
  if (name === "pidfile") return value;
  const pairs = parseOptionString(value);
  const first = pairs[0]?.key === undefined ? (pairs[0]?.value ?? "") : "";
  if (CHARACTER_ENDS.has(name)) {
    const [, path] = /^(?:mon:)?unix:(.+)$/s.exec(first) ?? [];
    return listens(pairs) && !isOn(pairs, "abstract") ? path : undefined;
  }
  if (name === "chardev") {
    const path = optionValue(pairs, "path");
    return first === "socket" && listens(pairs) && !isOn(pairs, "abstract") ? path : undefined;
  }
  if (name === "vnc" || name === "display") return /^(?:vnc=)?unix:(.+)$/s.exec(first)?.[1] ?? vncPath(pairs);
  if (name === "spice") return isOn(pairs, "unix") ? optionValue(pairs, "addr") : undefined;
  if (name === "netdev" && first === "stream" && isOn(pairs, "server"))
    return optionValue(pairs, "addr.path");
  return undefined;
}

function vncPath(pairs: readonly OptionPair[]): string | undefined {
  return /^unix:(.+)$/s.exec(optionValue(pairs, "vnc") ?? "")?.[1];
}

const PROTOCOLS = /^(?:mon:)?(tcp|telnet|tn3270|websocket|udp):/;

function isExclusive({ name, value = "" }: MachineOption): boolean {
  const pairs = parseOptionString(value);
  const first = pairs[0]?.key === undefined ? (pairs[0]?.value ?? "") : "";
  switch (name) {
    case "s":
    case "spice":
    case "tpmdev":
      return true;
    case "qmp":
    case "qmp-pretty":
    case "monitor":
    case "serial":
    case "parallel":
      return (
        (PROTOCOLS.test(first) && (listens(pairs) || first.includes("udp:"))) || listensAbstractly(pairs)
      );
    case "gdb":
      return PROTOCOLS.test(first);
    case "chardev":
      if (first === "udp") return true;
      return (
        first === "socket" &&
        listens(pairs) &&
        (optionValue(pairs, "port") !== undefined || isOn(pairs, "abstract"))
      );
    case "vnc":
      return first !== "none";
    case "display":
      return optionValue(pairs, "vnc") !== undefined && optionValue(pairs, "vnc") !== "none";
    case "netdev":
    case "nic":
    case "net":
      return exclusiveNetwork(first, pairs);
    case "device":
      return /^(vfio-|usb-host|vhost-|pci-assign)/.test(optionValue(pairs, "driver") ?? first);
    case "object":
      // Both processes would write to the same memory.
      return optionValue(pairs, "mem-path") !== undefined && isOn(pairs, "share");
    default:
      return false;
  }
}

function exclusiveNetwork(kind: string, pairs: readonly OptionPair[]): boolean {
  switch (kind) {
    case "user":
      return optionValue(pairs, "hostfwd") !== undefined;
    case "tap":
      return optionValue(pairs, "ifname") !== undefined;
    case "socket":
      return optionValue(pairs, "connect") === undefined;
    case "stream":
      return isOn(pairs, "server");
    case "none":
    case "nic":
    case "bridge":
      return false;
    default:
      // l2tpv3, vhost-user, vhost-vdpa and others: one peer each.
      return true;
  }
}

function listensAbstractly(pairs: readonly OptionPair[]): boolean {
  return listens(pairs) && isOn(pairs, "abstract");
}

function listens(pairs: readonly OptionPair[]): boolean {
  return isOn(pairs, "server");
}

/** `server`, `server=on` and, as older versions had it, `server=yes`. */
function isOn(pairs: readonly OptionPair[], key: string): boolean {
  const pair = pairs.findLast((each) => each.key === key || (each.key === undefined && each.value === key));
  return pair !== undefined && (pair.key === undefined || ["on", "yes", "true", "y"].includes(pair.value));
}
