import { rm } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, fileError, FleeceError, isFleeceError } from "../shared/errors.js";
import type { Secret } from "../shared/secret.js";
import { createPrivate, openExisting, removeFile } from "./durable-files.js";
import { luksPlace } from "./qcow2-image.js";
import { runTool } from "./qemu-tools.js";
import { makeRuntimeDirectory, processDirectoryPath } from "./runtime-directory.js";
import type { StorageDaemon } from "./storage-daemon.js";

/** Of the object in a daemon that holds the passphrase; all images of a daemon have the same one. */
const SECRET_ID = "repository-key";

const FIRST_CLUSTER_BYTES = 65_536;
/** QEMU's has 2 MiB. */
const MAX_HEADER_BYTES = 16 * 1024 * 1024;

/** The member `encrypt` of a node, once `giveKey` has been called. */
export const ENCRYPTED = { format: "luks", "key-secret": SECRET_ID } as const;

/** Hands the daemon the passphrase, over its private socket: no argument, environment or file has it. */
export async function giveKey(
  daemon: StorageDaemon,
  passphrase: Secret,
  signal: AbortSignal | undefined,
): Promise<void> {
  const data = Buffer.from(passphrase.reveal()).toString("base64");
  await daemon.execute(
    "object-add",
    { "qom-type": "secret", id: SECRET_ID, format: "base64", data },
    { signal },
  );
}

/**
 * The shortest time for deriving a key from the passphrase: with a random one of 32 bytes or more there is nothing to guess,
 * and each open of each image of a chain would pay for it.
 */
const OPTIONS = `encrypt.format=luks,encrypt.key-secret=${SECRET_ID},encrypt.iter-time=1`;

/**
 * QEMU 7.2 measures its speed by the CPU time of its process, and gives up, within 0.1 s, when the kernel has not counted any
 * yet: about every fifth time (measured).
 */
const NOT_MEASURED = /Unable to get accurate CPU usage/;
const MAX_TRIES = 40;

/** A new LUKS header with a new random key, by qemu-img, which takes 2 s of CPU time to measure its speed. */
export async function newLuksHeader(
  passphrase: Secret,
  {
    runtimeRoot,
    signal,
  }: { readonly runtimeRoot: string | undefined; readonly signal: AbortSignal | undefined },
): Promise<Buffer> {
  const directory = processDirectoryPath(runtimeRoot);
  await makeRuntimeDirectory(directory);
  try {
    const path = join(directory, "luks.qcow2");
    await using secret = await createPrivate(join(directory, "key"));
    // Only the descriptor is left when the passphrase is written: no name ever leads to it.
    await removeFile(join(directory, "key"));
    await secret.writeFile(passphrase.reveal());
    for (let tries = 1; ; tries++) {
      try {
        const object = `secret,id=${SECRET_ID},file=/dev/fd/0`;
        const args = ["create", "-q", "--object", object, "-f", "qcow2", "-o", OPTIONS, "--", path, "64K"];
        await runTool("qemu-img", args, { signal, input: secret.fd });
        return await readLuksHeader(path);
      } catch (error) {
        const again = isFleeceError(error, "QEMU_FAILED") && NOT_MEASURED.test(error.message);
        if (!again || tries === MAX_TRIES) throw error;
      }
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Of an image. Fails with DAMAGED if that has none. */
export async function readLuksHeader(path: string): Promise<Buffer> {
  try {
    await using file = await openExisting(path);
    const { buffer, bytesRead } = await file.read(
      Buffer.alloc(FIRST_CLUSTER_BYTES),
      0,
      FIRST_CLUSTER_BYTES,
      0,
    );
    const place = luksPlace(buffer.subarray(0, bytesRead));
    if (place === undefined || place.length > MAX_HEADER_BYTES) throw noHeader(path);
    const header = Buffer.alloc(place.length);
    const found = await file.read(header, 0, header.length, place.offset);
    if (found.bytesRead < header.length) throw noHeader(path);
    return header;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") throw noHeader(path);
    throw fileError(error, "read", path);
  }
}

function noHeader(path: string): FleeceError {
  return new FleeceError("DAMAGED", `The image ${path} has no LUKS header that can be used`, {
    facts: { path },
  });
}
