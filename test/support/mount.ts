import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { untilTestEnds } from "./lifetime.js";

const run = promisify(execFile);

/** Mounts a tmpfs on a directory until the test ends. False where this user may not mount: the test then skips by name. */
export async function mountTmpfs(directory: string, options: string): Promise<boolean> {
  return await mount(directory, "-t", "tmpfs", "-o", options, "tmpfs");
}

/** As `mountTmpfs`, a file system that does not know O_DIRECT. */
export async function mountRamfs(directory: string): Promise<boolean> {
  return await mount(directory, "-t", "ramfs", "ramfs");
}

async function mount(directory: string, ...what: string[]): Promise<boolean> {
  try {
    await run("mount", [...what, directory]);
  } catch {
    return false;
  }
  untilTestEnds({
    [Symbol.asyncDispose]: async () => {
      await run("umount", [directory]);
    },
  });
  return true;
}
