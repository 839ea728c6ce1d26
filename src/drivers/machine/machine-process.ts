import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { basename, resolve } from "node:path";
import type { MachineProcess } from "../../model/machine-start.js";
import { errnoOf } from "../../shared/errors.js";
import { isOwnerAlive, processOwner } from "../process-owner.js";

/**
 * The QEMU that listens on a monitor's socket. Node cannot ask a socket for its peer, so it is looked for in /proc. Undefined where
 * that cannot be told: it is another user's, in another namespace, or no QEMU at all.
 */
export async function findQemu(socketPath: string): Promise<MachineProcess | undefined> {
  const wanted = await fileIdentity(socketPath);
  if (wanted === undefined) return undefined;
  const bound = await listeningSockets();
  for (const pid of await processIds()) {
    for (const inode of await socketsOf(pid)) {
      const name = bound.get(inode);
      if (name === undefined) continue;
      const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => "/");
      if ((await fileIdentity(resolve(cwd, name))) !== wanted) continue;
      const process = await describeProcess(pid);
      // What it has forked off may hold the socket too, and somebody's proxy may be what listens.
      if (process !== undefined && /qemu|kvm/.test(basename(process.program))) return process;
    }
  }
  return undefined;
}

/** Living processes with exactly these arguments. */
export async function findByArguments(list: readonly string[]): Promise<MachineProcess[]> {
  const found: MachineProcess[] = [];
  for (const pid of await processIds()) {
    if ((await readArguments(pid))?.join("\0") !== list.join("\0")) continue;
    const described = await describeProcess(pid);
    if (described !== undefined) found.push(described);
  }
  return found.filter(isOwnerAlive);
}

export async function describeProcess(pid: number): Promise<MachineProcess | undefined> {
  try {
    const owner = processOwner(pid);
    const list = await readArguments(pid);
    if (list === undefined) return undefined;
    const status = await readFile(`/proc/${pid}/status`, "latin1");
    const environment = await readFile(`/proc/${pid}/environ`, "utf8").catch(() => "");
    return {
      ...owner,
      arguments: list,
      program: await readlink(`/proc/${pid}/exe`),
      cwd: await readlink(`/proc/${pid}/cwd`),
      // Effective ids: those with which it opens files.
      uid: numbersOf(status, "Uid")[1] ?? 0,
      gid: numbersOf(status, "Gid")[1] ?? 0,
      groups: numbersOf(status, "Groups"),
      environment: environment.split("\0").filter((entry) => entry.includes("=")),
    };
  } catch {
    // It has ended meanwhile, or hides itself.
    return undefined;
  }
}

function numbersOf(status: string, key: string): number[] {
  const [, values = ""] = new RegExp(`^${key}:\\s*(.*)$`, "m").exec(status) ?? [];
  return values.split(/\s+/).filter(Boolean).map(Number);
}

async function readArguments(pid: number): Promise<string[] | undefined> {
  const text = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  return text === "" ? undefined : text.split("\0").slice(0, -1);
}

async function processIds(): Promise<number[]> {
  return (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
}

/** proc(5): `Num: RefCount Protocol Flags Type St Inode Path`; the flag is __SO_ACCEPTCON. */
async function listeningSockets(): Promise<ReadonlyMap<string, string>> {
  const sockets = new Map<string, string>();
  for (const line of (await readFile("/proc/net/unix", "utf8")).split("\n")) {
    const [, inode, name] = /^\S+ \S+ \S+ 00010000 \S+ \S+ +(\d+) (.+)$/.exec(line) ?? [];
    if (inode !== undefined && name !== undefined && !name.startsWith("@")) sockets.set(inode, name);
  }
  return sockets;
}

async function socketsOf(pid: number): Promise<string[]> {
  const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
  const links = await Promise.all(descriptors.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")));
  return links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []);
}

async function fileIdentity(path: string): Promise<string | undefined> {
  try {
    const { dev, ino } = await stat(path, { bigint: true });
    return `${dev.toString()}:${ino.toString()}`;
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "EACCES"].includes(errnoOf(error) ?? "")) return undefined;
    throw error;
  }
}
