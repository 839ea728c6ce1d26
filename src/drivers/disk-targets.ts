import { constants, type FileHandle, open, stat } from "node:fs/promises";
import { isAbsolute } from "node:path";
import type { BlockWriter } from "../ports/block-io.js";
import type { DiskTargets, ExistingTarget, TargetKind } from "../ports/disk-targets.js";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { openNbdTarget, openNbdWriter } from "./nbd-io.js";
import { processDirectoryPath } from "./runtime-directory.js";
import { StorageDaemon } from "./storage-daemon.js";

const NBD_SCHEME = /^nbds?(\+unix)?:/i;
const NODE = "target";

/** Writes devices through storage daemons of ours, which know how a device is zeroed, and NBD exports over NBD. */
export class QemuDiskTargets implements DiskTargets {
  readonly #runtimeRoot: string | undefined;

  constructor({ runtimeRoot }: { readonly runtimeRoot?: string | undefined } = {}) {
    this.#runtimeRoot = runtimeRoot;
  }

  async kindOf(to: string): Promise<TargetKind> {
    if (NBD_SCHEME.test(to)) return "nbd";
    if (!isAbsolute(to)) {
      throw new FleeceError("INVALID_ARGUMENT", `Expected an absolute path or an NBD URI, got ${to}`);
    }
    try {
      return (await stat(to)).isBlockDevice() ? "block-device" : "file";
    } catch (error) {
      // A device that is not there must not become a file in the memory of /dev.
      if (errnoOf(error) === "ENOENT" && !to.startsWith("/dev/")) return "file";
      throw fileError(error, "write to", to);
    }
  }

  async open(place: ExistingTarget, sizeBytes: number, signal?: AbortSignal): Promise<BlockWriter> {
    const writer =
      place.kind === "nbd"
        ? await openNbdTarget(place.target, place.to, sizeBytes, signal)
        : await this.#openDevice(place, signal);
    if (writer.sizeBytes >= sizeBytes) return writer;
    const message = `Expected at least ${sizeBytes} bytes for disk ${place.target}, ${place.to} has ${writer.sizeBytes}`;
    await writer.close();
    throw new FleeceError("INVALID_ARGUMENT", message, { facts: { target: place.target } });
  }

  async #openDevice({ target, to }: ExistingTarget, signal: AbortSignal | undefined): Promise<BlockWriter> {
    const claim = await claimDevice(to);
    try {
      const directory = processDirectoryPath(this.#runtimeRoot);
      const daemon = await StorageDaemon.start({ directory, lifetime: "process", signal });
      try {
        return new DeviceWriter(await serveDevice(daemon, target, to, signal), daemon, claim);
      } catch (error) {
        await daemon.stop();
        throw error;
      }
    } catch (error) {
      await claim.close();
      throw error;
    }
  }
}

/**
 * Keeps out mounts, volume groups and whoever else asks for a device alone: open(2) on O_EXCL without O_CREAT. QEMU's locks,
 * which the daemon takes, keep out virtual machines.
 */
async function claimDevice(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDWR | constants.O_EXCL);
  } catch (error) {
    if (errnoOf(error) !== "EBUSY") throw fileError(error, "write to", path);
    throw new FleeceError("DISK_IN_USE", `Cannot write to ${path}: it is mounted or in use otherwise`, {
      cause: error,
      facts: { path },
    });
  }
}

async function serveDevice(
  daemon: StorageDaemon,
  target: string,
  filename: string,
  signal: AbortSignal | undefined,
): Promise<BlockWriter> {
  const node = { driver: "host_device", "node-name": NODE, filename, discard: "unmap" } as const;
  await daemon.execute("blockdev-add", node, { signal });
  const nbd = { type: "nbd", id: NODE, "node-name": NODE, name: NODE, writable: true } as const;
  await daemon.execute("block-export-add", nbd, { signal });
  const address = { target, exportName: NODE, socketPath: daemon.nbdSocketPath };
  return openNbdWriter(address, (error) => daemon.explain(error), signal);
}

class DeviceWriter implements BlockWriter {
  readonly sizeBytes: number;
  readonly #writer: BlockWriter;
  readonly #daemon: StorageDaemon;
  readonly #claim: FileHandle;

  constructor(writer: BlockWriter, daemon: StorageDaemon, claim: FileHandle) {
    this.sizeBytes = writer.sizeBytes;
    this.#writer = writer;
    this.#daemon = daemon;
    this.#claim = claim;
  }

  write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#writer.write(offset, data, signal);
  }

  writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    return this.#writer.writeZeroes(offset, length, signal);
  }

  flush(signal?: AbortSignal): Promise<void> {
    return this.#writer.flush(signal);
  }

  async close(): Promise<void> {
    await this.#writer.close();
    await this.#daemon.stop();
    await this.#claim.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
