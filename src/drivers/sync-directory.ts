import { open } from "node:fs/promises";

/** Makes the names in a directory durable: what a rename, creation or removal needs after it (fsync(2)). */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
