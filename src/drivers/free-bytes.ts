import { statfs } from "node:fs/promises";
import { fileError } from "../shared/errors.js";

/** What the file system of a directory has left for this user; root may take the reserve too, but should not count on it. */
export async function freeBytes(directory: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(directory);
    return bavail * bsize;
  } catch (error) {
    throw fileError(error, "ask for the free space of", directory);
  }
}
