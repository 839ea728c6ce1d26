import { runTool } from "./qemu-tools.js";

/** As of ionice(1): a level of the best-effort class, 7 being the least, or the idle class. */
export type IoPriority = number | "idle";

/**
 * For this process, and for all that it starts from now on: a thread inherits it from the one that made it, so that it reaches the
 * threads of storage daemons that wait for the disk. Fails with TOOL_MISSING, or QEMU_FAILED with the words of ionice.
 */
export async function lowerIoPriority(priority: IoPriority): Promise<void> {
  const how = priority === "idle" ? ["-c", "3"] : ["-c", "2", "-n", String(priority)];
  await runTool("ionice", [...how, "-p", String(process.pid)]);
}

/** What a command that is no work of ours begins with, so that it does not inherit that. */
export const USUAL_IO_PRIORITY = ["ionice", "-c", "0"] as const;
