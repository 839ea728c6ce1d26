import { chmod, constants, copyFile, mkdir, rename, rm, stat } from "node:fs/promises";
import path from "node:path";
import * as z from "zod";
import type { KnownImage, SnapshotFiles } from "../../ports/snapshot-files.js";
import { errnoOf, fileError, FleeceError, isFleeceError } from "../../shared/errors.js";
import {
  createPrivate,
  exists,
  removeEmptyDirectory,
  removeFile,
  syncDirectory,
  syncFile,
} from "../durable-files.js";
import { freeBytes } from "../free-bytes.js";
import { runTool } from "../qemu-tools.js";
import { checkMemory, digestMemory, memoryError } from "./memory-digest.js";
import { createOverlay } from "./overlays.js";

const COPY_TIMEOUT_MS = 24 * 3600 * 1000;

export const snapshotFiles: SnapshotFiles = {
  exists,

  async place(directory) {
    try {
      const found = await stat(directory);
      if (!found.isDirectory()) return undefined;
      return { device: String(found.dev), freeBytes: await freeBytes(directory) };
    } catch (error) {
      if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) ?? "")) return undefined;
      throw fileError(error, "look at", directory);
    }
  },

  async makeDirectory(directory) {
    try {
      await mkdir(directory, { mode: 0o700 });
    } catch (error) {
      throw fileError(error, "create the directory", directory);
    }
    await syncDirectory(path.dirname(directory));
  },

  async removeDirectory(directory) {
    if (await removeEmptyDirectory(directory)) await syncDirectory(path.dirname(directory));
  },

  async remove(file) {
    if (await removeFile(file)) await syncDirectory(path.dirname(file));
  },

  async rename(from, to) {
    try {
      await rename(from, to);
    } catch (error) {
      throw fileError(error, "create", to);
    }
    await syncDirectory(path.dirname(to));
  },

  async dropFirstName({ path: file, firstName }) {
    await removeFile(firstName);
    await syncDirectory(path.dirname(file));
  },

  createOverlay,
  checkImage,

  async extractSnapshot(image, snapshot, to, signal) {
    // qemu-img would follow a link and take the mode from the umask; the file that we make first, it keeps.
    await (await createPrivate(to)).close();
    // Shared with a running domain: what belongs to an internal snapshot is not written to as long as that is there.
    const source = ["-U", "-f", "qcow2", "-l", `snapshot.name=${snapshot}`];
    const args = ["convert", "-q", ...source, "-O", "qcow2", "--", image, to];
    await runTool("qemu-img", args, { path: image, signal, timeoutMs: COPY_TIMEOUT_MS });
    await syncFile(to);
    await syncDirectory(path.dirname(to));
  },

  checkMemory,

  async sealMemory(file, sizeBytes, options = {}) {
    await syncFile(file);
    return digestMemory(file, sizeBytes, options);
  },

  async copyMemory(memory, to, options) {
    options.signal?.throwIfAborted();
    try {
      await copyFile(memory.file, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
      await chmod(to, 0o600);
      await syncFile(to);
      await checkMemory(memory, options, to);
      await syncDirectory(path.dirname(to));
    } catch (error) {
      await rm(to, { force: true });
      throw memoryError(error, "copy", memory.file);
    }
  },
};

const chainSchema = z.array(z.object({ "virtual-size": z.int(), format: z.string() })).min(1);

/** The domain may have the file open as a backing file; nobody writes to it. */
async function checkImage(
  { target, file, format, sizeBytes }: KnownImage & { readonly target: string },
  signal?: AbortSignal,
): Promise<void> {
  const args = ["info", "--output=json", "-U", "--backing-chain", "-f", format, "--", file];
  let output: string;
  try {
    output = await runTool("qemu-img", args, { signal, path: file });
  } catch (cause) {
    if (!isFleeceError(cause, "PATH_NOT_FOUND", "QEMU_FAILED")) throw cause;
    throw new FleeceError(
      "DAMAGED",
      `The image of disk ${target} cannot be opened with all its backing files: ${cause.message}`,
      { cause, facts: { path: file } },
    );
  }
  const chain = chainSchema.safeParse(JSON.parse(output));
  const found = chain.data?.[0]?.["virtual-size"];
  if (found === sizeBytes) return;
  throw new FleeceError(
    "DAMAGED",
    `Expected ${sizeBytes} bytes of disk ${target} in ${file}, found ${found ?? "no size"}`,
    { facts: { path: file } },
  );
}
