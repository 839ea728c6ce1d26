import { execFile } from "node:child_process";
import { promisify } from "node:util";

const BLOCK = 64 * 1024;

/** Numbers of the 64 KiB blocks that any NBD client is told to have changed, by this metadata context. */
export async function changedBlocks(uri: string, context: string): Promise<number[]> {
  const { stdout } = await promisify(execFile)("nbdinfo", ["--json", `--map=${context}`, uri]);
  const extents = JSON.parse(stdout) as { offset: number; length: number; type: number }[];
  return extents
    .filter(({ type }) => (type & 1) === 1)
    .flatMap(({ offset, length }) =>
      Array.from({ length: length / BLOCK }, (_, index) => offset / BLOCK + index),
    );
}

/** The name of that context in exports of ours. */
export const changesSince = (checkpoint: string): string => `qemu:dirty-bitmap:since-${checkpoint}`;
