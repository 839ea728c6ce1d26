import { readdir, readFile, readlink } from "node:fs/promises";
import { basename } from "node:path";

/** `__SO_ACCEPTCON` of Linux's net.h, as /proc/net/unix shows it: the socket listens. */
const LISTENING = 0x10000;

export interface QemuProcess {
  readonly pid: number;
  /** Its own path first. */
  readonly arguments: readonly string[];
}

/**
 * The QEMU that listens on a monitor's socket. Node cannot ask a socket for its peer, so it is looked for in /proc. Undefined
 * where that cannot be told: it is another user's, in another namespace, or no QEMU at all.
 */
export async function findQemu(socketPath: string): Promise<QemuProcess | undefined> {
  const inode = await listeningInode(socketPath);
  if (inode === undefined) return undefined;
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry) || !(await holdsSocket(entry, inode))) continue;
    // A process that was forked off, or a proxy of somebody's, may hold it too.
    if (!/qemu|kvm/.test(basename(await readlink(`/proc/${entry}/exe`).catch(() => "")))) continue;
    const text = await readFile(`/proc/${entry}/cmdline`, "utf8").catch(() => "");
    if (text !== "") return { pid: Number(entry), arguments: text.split("\0").slice(0, -1) };
  }
  return undefined;
}

/** proc(5): `Num RefCount Protocol Flags Type St Inode Path`. */
async function listeningInode(socketPath: string): Promise<string | undefined> {
  const table = await readFile("/proc/net/unix", "utf8").catch(() => "");
  for (const line of table.split("\n")) {
    const [, flags = "", inode, path] =
      /^\S+ \S+ \S+ ([0-9A-Fa-f]+) \S+ \S+ +(\d+) (.+)$/.exec(line.trimEnd()) ?? [];
    if (path === socketPath && (Number.parseInt(flags, 16) & LISTENING) !== 0) return inode;
  }
  return undefined;
}

async function holdsSocket(pid: string, inode: string): Promise<boolean> {
  // Another user's process hides its files.
  const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
  for (const descriptor of descriptors) {
    const link = await readlink(`/proc/${pid}/fd/${descriptor}`).catch(() => "");
    if (link === `socket:[${inode}]`) return true;
  }
  return false;
}
