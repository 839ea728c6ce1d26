import { readFile } from "node:fs/promises";
import { BoundProcess } from "../../support/bound-process.js";
import type { Run } from "./figures.js";

/** Runs "$@" and prints what the shell knows of it afterwards: wall clock, then user and system time of its children. */
const ACCOUNT = `
t0=$EPOCHREALTIME
"$@" >/dev/null
status=$?
t1=$EPOCHREALTIME
echo "WALL $t0 $t1"
times
exit $status`;

/** A whole process with its children, from start to end. Linux and bash only. */
export async function measureProcess(bytes: number, command: string, ...args: string[]): Promise<Run> {
  const env = { ...process.env, LC_ALL: "C" };
  await using shell = await BoundProcess.start("bash", ["-c", ACCOUNT, "bash", command, ...args], { env });
  const { exitCode } = await shell.ended;
  if (exitCode !== 0) throw new Error(`${command} failed: ${shell.stderr}`);
  const wall = /WALL (\S+) (\S+)/.exec(shell.stdout);
  // The second line of `times` is about children: "0m1.234s 0m0.567s".
  const times = [...shell.stdout.matchAll(/(\d+)m([\d.]+)s/g)].slice(2);
  if (wall === null || times.length !== 2) throw new Error(`Expected times, got: ${shell.stdout}`);
  const cpuSeconds = times.reduce(
    (sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds),
    0,
  );
  return { bytes, seconds: Number(wall[2]) - Number(wall[1]), cpuSeconds };
}

export interface WatchedRun {
  readonly seconds: number;
  readonly peakRssBytes: number;
  /** It was killed when its time was over. */
  readonly timedOut: boolean;
}

/** Runs a single process to its end, or for `limitMs`. Its peak comes from the kernel, asked 20 times a second. */
export async function watchProcess(limitMs: number, command: string, ...args: string[]): Promise<WatchedRun> {
  const start = performance.now();
  await using child = await BoundProcess.start(command, args);
  let peakRssBytes = 0;
  let timedOut = false;
  while (child.running) {
    peakRssBytes = Math.max(peakRssBytes, await peakRssOf(child.pid));
    timedOut = performance.now() - start > limitMs;
    if (timedOut) await child.stop("SIGKILL");
    else await Promise.race([child.ended, new Promise((resolve) => setTimeout(resolve, 50))]);
  }
  const seconds = (performance.now() - start) / 1000;
  const { exitCode } = await child.ended;
  if (!timedOut && exitCode !== 0) throw new Error(`${command} failed: ${child.stderr}`);
  return { seconds, peakRssBytes, timedOut };
}

async function peakRssOf(pid: number): Promise<number> {
  // Gone, or a zombie without memory, once it has ended.
  const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  return Number(/VmHWM:\s*(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
}

/** A client of `test/bench/clients` in a process of its own. It measures itself: start-up is no client's work. */
export async function measureClient(script: string, ...args: string[]): Promise<Run> {
  const path = new URL(`../clients/${script}`, import.meta.url).pathname;
  const flags = ["--conditions=source", "--import", "tsx"];
  await using child = await BoundProcess.start(process.execPath, [...flags, path, ...args]);
  const { exitCode } = await child.ended;
  if (exitCode !== 0) throw new Error(`${script} failed: ${child.stderr}`);
  return JSON.parse(child.stdout) as Run;
}

/** Measures what happens in this process. `work` resolves with the bytes moved. */
export async function measureHere(work: () => Promise<number>): Promise<Run> {
  const before = process.resourceUsage();
  const start = performance.now();
  const bytes = await work();
  const seconds = (performance.now() - start) / 1000;
  const after = process.resourceUsage();
  const micros = after.userCPUTime + after.systemCPUTime - before.userCPUTime - before.systemCPUTime;
  return { bytes, seconds, cpuSeconds: micros / 1e6, peakRssBytes: after.maxRSS * 1024 };
}
