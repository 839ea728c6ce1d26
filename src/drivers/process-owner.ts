import { readFileSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { errnoOf, FleeceError } from "../shared/errors.js";

/** A process that is not mistaken for a later one with the same pid: the start time is in clock ticks since boot. */
export interface ProcessOwner {
  readonly pid: number;
  readonly startTicks: number;
}

export function processOwner(pid: number = process.pid): ProcessOwner {
  const stat = readStat(pid);
  if (stat === undefined)
    throw new FleeceError("INTERNAL", `Expected process ${pid} to run, found none in /proc`);
  return { pid, startTicks: stat.startTicks };
}

/** False once the process is gone, a zombie, or replaced by another one with the same pid. */
export function isOwnerAlive(owner: ProcessOwner): boolean {
  const stat = readStat(owner.pid);
  return stat !== undefined && stat.startTicks === owner.startTicks && !"ZX".includes(stat.state);
}

/** Sends a signal unless the process has ended, also between this check and the signal. */
export function signalOwner(owner: ProcessOwner, signal: NodeJS.Signals): void {
  if (!isOwnerAlive(owner)) return;
  try {
    process.kill(owner.pid, signal);
  } catch (error) {
    if (errnoOf(error) !== "ESRCH") throw error;
  }
}

export interface FoundProcess extends ProcessOwner {
  readonly args: readonly string[];
}

/** Living processes of this user whose arguments pass `accept`. */
export async function findProcesses(accept: (args: readonly string[]) => boolean): Promise<FoundProcess[]> {
  const found: FoundProcess[] = [];
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const args = await readOwnArguments(entry);
    if (args === undefined || !accept(args)) continue;
    const stat = readStat(Number(entry));
    if (stat !== undefined) found.push({ pid: Number(entry), startTicks: stat.startTicks, args });
  }
  return found.filter(isOwnerAlive);
}

async function readOwnArguments(entry: string): Promise<readonly string[] | undefined> {
  try {
    if ((await stat(`/proc/${entry}`)).uid !== process.geteuid?.()) return undefined;
    return (await readFile(`/proc/${entry}/cmdline`, "utf8")).split("\0").slice(0, -1);
  } catch (error) {
    // The process ended while it was looked at, or hides itself.
    if (["ENOENT", "ESRCH", "EACCES", "EPERM"].includes(errnoOf(error) ?? "")) return undefined;
    throw error;
  }
}

function readStat(pid: number): { state: string; startTicks: number } | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch (error) {
    if (["ENOENT", "ESRCH"].includes(errnoOf(error) ?? "")) return undefined;
    throw error;
  }
  // proc(5): the second field is the command in parentheses and may hold anything; state is field 3, starttime 22.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0] ?? "X", startTicks: Number(fields[19]) };
}
