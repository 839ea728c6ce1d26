import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { untilTestEnds } from "./lifetime.js";

const run = promisify(execFile);

/** A block device with the content of a file, until the test ends. Undefined where none can be had: the test then skips by name. */
export async function loopDevice(file: string): Promise<string | undefined> {
  let path: string;
  try {
    path = (await run("losetup", ["--find", "--show", file])).stdout.trim();
  } catch {
    return undefined;
  }
  untilTestEnds({
    [Symbol.asyncDispose]: async () => {
      await run("losetup", ["--detach", path]);
    },
  });
  return path;
}
