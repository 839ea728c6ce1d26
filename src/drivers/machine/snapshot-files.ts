import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, constants, copyFile, lstat, mkdir, open, rename, rm, rmdir, unlink } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import type { SnapshotFiles } from "../../ports/snapshot-files.js";
import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { createPrivate, syncDirectory } from "../durable-files.js";
import { runTool } from "../qemu-tools.js";

const COPY_TIMEOUT_MS = 24 * 3600 * 1000;

export const snapshotFiles: SnapshotFiles = {
  async remove(file) {
    try {
      await unlink(file);
    } catch (error) {
      if (errnoOf(error) === "ENOENT") return;
      throw fileError(error, "remove", file);
    }
    await syncDirectory(path.dirname(file));
  },

  async removeDirectory(directory) {
    try {
      await rmdir(directory);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === "ENOENT" || errno === "ENOTEMPTY") return;
      throw fileError(error, "remove", directory);
    }
    await syncDirectory(path.dirname(directory));
  },

  async exists(file) {
    try {
      await lstat(file);
      return true;
    } catch (error) {
      if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") return false;
      throw fileError(error, "look at", file);
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

  async rename(from, to) {
    try {
      await rename(from, to);
    } catch (error) {
      throw fileError(error, "create", to);
    }
    await syncDirectory(path.dirname(to));
  },

  async copy(from, to, { sha256, signal, onProgress }) {
    signal?.throwIfAborted();
    try {
      await copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
      await chmod(to, 0o600);
      await sync(to);
      const found = await digest(to, signal, onProgress);
      if (found !== sha256) {
        throw new FleeceError("DAMAGED", `Expected SHA-256 ${sha256} of ${from}, found ${found}`, {
          facts: { path: from },
        });
      }
      await syncDirectory(path.dirname(to));
    } catch (error) {
      await rm(to, { force: true });
      throw fileError(error, "copy", from);
    }
  },

  async createOverlay(overlay, base, signal) {
    // qemu-img would follow a link and take the mode from the umask; the file that we make first, it keeps.
    await (await createPrivate(overlay)).close();
    const backing = ["-u", "-F", base.format, "-b", base.path, "-o", "cluster_size=65536"];
    const args = ["create", "-q", "-f", "qcow2", ...backing, "--", overlay, String(base.sizeBytes)];
    await runTool("qemu-img", args, { path: overlay, signal });
    await sync(overlay);
    await syncDirectory(path.dirname(overlay));
  },

  async extractSnapshot(image, snapshot, to, signal) {
    await (await createPrivate(to)).close();
    // Shared with a running domain: what belongs to an internal snapshot is not written to as long as that is there.
    const source = ["-U", "-f", "qcow2", "-l", `snapshot.name=${snapshot}`];
    const args = ["convert", "-q", ...source, "-O", "qcow2", "--", image, to];
    await runTool("qemu-img", args, { path: image, signal, timeoutMs: COPY_TIMEOUT_MS });
    await sync(to);
    await syncDirectory(path.dirname(to));
  },
};

async function sync(file: string): Promise<void> {
  const handle = await open(file, "r+");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function digest(
  file: string,
  signal: AbortSignal | undefined,
  onProgress: ((doneBytes: number) => void) | undefined,
): Promise<string> {
  const hash = createHash("sha256");
  let doneBytes = 0;
  const count = async function* (chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of chunks) {
      doneBytes += chunk.length;
      onProgress?.(doneBytes);
      yield chunk;
    }
  };
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), count, hash, { signal });
  return hash.digest("hex");
}
