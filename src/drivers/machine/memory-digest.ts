import { createHash } from "node:crypto";
import type { DigestOptions, ExternalMemory } from "../../ports/snapshot-files.js";
import { fileError, FleeceError, isFleeceError } from "../../shared/errors.js";
import { openExisting } from "../durable-files.js";

const READ_BYTES = 1 << 20;

/** Fails with DAMAGED if the memory is not what was saved. `copy`: the file to read, if it is not the original. */
export async function checkMemory(
  { file, sizeBytes, sha256 }: ExternalMemory,
  options: DigestOptions,
  copy = file,
): Promise<void> {
  const found = await digestMemory(copy, sizeBytes, options);
  if (found === sha256) return;
  throw damaged(
    `The memory image ${file} is not what was saved: expected SHA-256 ${sha256}, found ${found}`,
    file,
  );
}

/** SHA-256, hexadecimal. Fails with DAMAGED if there is no such file, or it has another size. */
export async function digestMemory(
  path: string,
  sizeBytes: number,
  { signal, onProgress }: DigestOptions,
): Promise<string> {
  try {
    await using file = await openExisting(path);
    const { size } = await file.stat();
    if (size !== sizeBytes) {
      throw damaged(`Expected ${sizeBytes} bytes in the memory image ${path}, found ${size}`, path);
    }
    const hash = createHash("sha256");
    const buffer = Buffer.alloc(READ_BYTES);
    for (let done = 0; done < size;) {
      signal?.throwIfAborted();
      const { bytesRead } = await file.read(buffer, 0, buffer.length, done);
      if (bytesRead === 0) throw damaged(`The memory image ${path} became shorter while it was read`, path);
      hash.update(buffer.subarray(0, bytesRead));
      done += bytesRead;
      onProgress?.(done);
    }
    return hash.digest("hex");
  } catch (cause) {
    throw memoryError(cause, "read", path);
  }
}

/** What reading a memory image failed with; one that is gone is damage. */
export function memoryError(cause: unknown, verb: "read" | "copy", path: string): unknown {
  const error = fileError(cause, verb, path);
  if (!isFleeceError(error, "PATH_NOT_FOUND")) return error;
  return damaged(`The memory image ${path} does not exist`, path, error);
}

function damaged(message: string, path: string, cause?: unknown): FleeceError {
  return new FleeceError("DAMAGED", message, { cause, facts: { path } });
}
