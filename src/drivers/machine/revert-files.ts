import { createHash } from "node:crypto";
import { chown, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import * as z from "zod";
import { CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import type { SnapshotMemory } from "../../model/domain-snapshot.js";
import { BLOCK_SIZE } from "../../model/extents.js";
import type { ImageToCheck, OverlayToMake } from "../../ports/machines.js";
import { errnoOf, fileError, FleeceError, isFleeceError } from "../../shared/errors.js";
import { createPrivate, openExisting, syncDirectory } from "../durable-files.js";
import { changeImageBitmap, runTool } from "../qemu-tools.js";

const READ_BYTES = 4 * 1024 * 1024;

const chainSchema = z.array(z.object({ "virtual-size": z.int(), format: z.string() })).min(1);

/** The domain may have the file open as a backing file; nobody writes to it. */
export async function checkImage(image: ImageToCheck, signal?: AbortSignal): Promise<void> {
  const { target, file, format, sizeBytes } = image;
  const args = ["info", "--output=json", "-U", "--backing-chain", "-f", format, "--", file];
  let output: string;
  try {
    output = await runTool("qemu-img", args, { signal, path: file });
  } catch (error) {
    if (!isFleeceError(error, "PATH_NOT_FOUND", "QEMU_FAILED")) throw error;
    throw damaged(
      `The image of disk ${target} cannot be opened with all its backing files: ${error.message}`,
      file,
      error,
    );
  }
  const chain = chainSchema.safeParse(JSON.parse(output));
  const found = chain.data?.[0]?.["virtual-size"];
  if (found === sizeBytes) return;
  throw damaged(
    `Expected ${sizeBytes} bytes of disk ${target} in ${file}, found ${found ?? "no size"}`,
    file,
  );
}

export async function checkMemory(
  { file, sizeBytes, sha256 }: SnapshotMemory & { readonly kind: "external" },
  { signal, onProgress }: { signal?: AbortSignal | undefined; onProgress?: (doneBytes: number) => void },
): Promise<void> {
  const handle = await openExisting(file).catch((error: unknown) => {
    if (errnoOf(error) === "ENOENT") throw damaged(`The memory image ${file} does not exist`, file, error);
    throw fileError(error, "read", file);
  });
  try {
    const { size } = await handle.stat();
    if (size !== sizeBytes) {
      throw damaged(`Expected ${sizeBytes} bytes in the memory image ${file}, found ${size}`, file);
    }
    const hash = createHash("sha256");
    const buffer = Buffer.alloc(Math.min(READ_BYTES, Math.max(1, size)));
    for (let done = 0; done < size;) {
      signal?.throwIfAborted();
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, done);
      if (bytesRead === 0) throw damaged(`The memory image ${file} became shorter while it was read`, file);
      hash.update(buffer.subarray(0, bytesRead));
      done += bytesRead;
      onProgress?.(done);
    }
    const found = hash.digest("hex");
    if (found === sha256) return;
    throw damaged(
      `The memory image ${file} is not what was saved: expected SHA-256 ${sha256}, found ${found}`,
      file,
    );
  } finally {
    await handle.close();
  }
}

export async function fileExists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    throw fileError(error, "look at", path);
  }
}

export async function createOverlay(
  { path, base, bitmap, owner }: OverlayToMake,
  signal?: AbortSignal,
): Promise<void> {
  // qemu-img would follow a link and take the mode from the umask; the file that we make first, it keeps.
  const handle = await createPrivate(path);
  try {
    const layout = ["-o", `cluster_size=${BLOCK_SIZE}`, "-u", "-F", base.format, "-b", base.file];
    const args = ["create", "-q", "-f", "qcow2", ...layout, "--", path, String(base.sizeBytes)];
    await runTool("qemu-img", args, { signal, path });
    if (bitmap !== undefined) {
      const add = {
        action: "add",
        bitmap,
        persistent: true,
        granularityBytes: CHECKPOINT_GRANULARITY,
      } as const;
      await changeImageBitmap(path, add, { signal });
    }
    if (owner !== undefined && owner.uid !== process.geteuid?.()) await chown(path, owner.uid, owner.gid);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await syncDirectory(dirname(path));
}

export async function removeFile(path: string): Promise<void> {
  await rm(path, { force: true });
}

function damaged(message: string, path: string, cause?: unknown): FleeceError {
  return new FleeceError("DAMAGED", message, { cause, facts: { path } });
}
