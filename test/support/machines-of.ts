import { readdir, readFile } from "node:fs/promises";

/** Pids of living QEMUs whose arguments name the directory. */
export async function machinesOf(directory: string): Promise<number[]> {
  const found: number[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const args = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (args.startsWith("qemu-system-") && args.includes(`${directory}/`)) found.push(Number(pid));
  }
  return found;
}

/** For those that the product has started: they outlive its process on purpose. */
export async function endMachines(directory: string): Promise<void> {
  for (const pid of await machinesOf(directory)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has just ended.
    }
  }
  while ((await machinesOf(directory)).length > 0) await new Promise((resolve) => setTimeout(resolve, 10));
}
