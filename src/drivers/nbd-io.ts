import { connectNbd, NbdError, type NbdConnection } from "nbd-client-ts";
import type { Extent } from "../model/extents.js";
import { BLOCK_SIZE } from "../model/extents.js";
import type { ExportAddress } from "../model/snapshot-plan.js";
import type { BlockReader, BlockWriter, ReaderFactory } from "../ports/block-io.js";
import { FleeceError } from "../shared/errors.js";
import { MIB } from "../shared/units.js";

const ALLOCATION = "base:allocation";
/** Of `base:allocation` (NBD's proto.md): reads as zeroes. */
const STATE_ZERO = 2;
/** Of `qemu:dirty-bitmap:…` (QEMU's interop/nbd.rst): the bitmap has it marked. */
const STATE_DIRTY = 1;

/** Whoever has read as much will read more, and QEMU's allocator is worth a warm-up. */
const WORTH_WARM_UP_BYTES = 64 * MIB;

/** Reads what a QEMU process offers on a private socket. */
export class NbdReaderFactory implements ReaderFactory {
  async open(address: ExportAddress, signal?: AbortSignal): Promise<BlockReader> {
    const { target, exportName, socketPath, changesContext } = address;
    const metaContexts = [ALLOCATION, ...(changesContext === undefined ? [] : [changesContext])];
    const connection = await nbdCall(target, signal, () =>
      connectNbd({ socketPath, exportName, metaContexts, ...(signal === undefined ? {} : { signal }) }),
    );
    if (connection.sizeBytes === address.sizeBytes) {
      return new NbdReader(connection, address, await connectToRelease(address, signal));
    }
    await connection.close();
    throw new FleeceError(
      "NBD_FAILED",
      `Expected disk ${target} with ${address.sizeBytes} bytes, the export has ${connection.sizeBytes}`,
    );
  }
}

/** Undefined where it cannot be had: giving content up is only a saving. */
async function connectToRelease(
  { socketPath, releaseExport }: ExportAddress,
  signal: AbortSignal | undefined,
): Promise<NbdConnection | undefined> {
  if (releaseExport === undefined) return undefined;
  try {
    const connection = await connectNbd({ socketPath, exportName: releaseExport, ...withSignal(signal) });
    if (connection.canTrim) return connection;
    await connection.close();
  } catch (error) {
    if (!(error instanceof NbdError)) throw error;
  }
  return undefined;
}

class NbdReader implements BlockReader {
  readonly sizeBytes: number;
  readonly #connection: NbdConnection;
  readonly #address: ExportAddress;
  #release: NbdConnection | undefined;
  #readBytes = 0;

  constructor(connection: NbdConnection, address: ExportAddress, release: NbdConnection | undefined) {
    this.#connection = connection;
    this.#release = release;
    this.#address = address;
    this.sizeBytes = address.sizeBytes;
  }

  async *extents(signal?: AbortSignal): AsyncGenerator<Extent> {
    const { target, changesContext } = this.#address;
    try {
      for await (const { offset, length, flags } of this.#connection.extents(withSignal(signal))) {
        const changed = changesContext === undefined || isSet(flags[changesContext], STATE_DIRTY);
        yield { offset, length, changed, zero: isSet(flags[ALLOCATION], STATE_ZERO) };
      }
    } catch (error) {
      throw nbdFailure(error, target, signal);
    }
  }

  async read(offset: number, length: number, signal?: AbortSignal, into?: Uint8Array): Promise<Uint8Array> {
    try {
      const wasWorth = this.#readBytes > WORTH_WARM_UP_BYTES;
      this.#readBytes += length;
      if (!wasWorth && this.#readBytes > WORTH_WARM_UP_BYTES) {
        await this.#connection.warmUp(withSignal(signal));
      }
      const memory = into === undefined ? {} : { into };
      return await this.#connection.read(offset, length, { ...withSignal(signal), ...memory });
    } catch (error) {
      throw brokenSnapshot(error, this.#address.target) ?? nbdFailure(error, this.#address.target, signal);
    }
  }

  /**
   * Whole blocks alone: QEMU 7.2 aborts, and the VM with it, at a TRIM of the filter's view that does not begin and end on
   * its clusters. The first block stays: reading it by that view is how one asks whether the snapshot is intact.
   */
  async release(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    const start = Math.max(Math.ceil(offset / BLOCK_SIZE), 1) * BLOCK_SIZE;
    const end = Math.floor((offset + length) / BLOCK_SIZE) * BLOCK_SIZE;
    const connection = this.#release;
    if (connection === undefined || start >= end) return;
    try {
      await connection.trim(start, end - start, withSignal(signal));
    } catch {
      // A closed connection or a refusal: what comes after would fare no better.
      this.#release = undefined;
      await connection.close();
    }
  }

  async close(): Promise<void> {
    await this.#release?.close();
    await this.#connection.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

export interface WriterAddress {
  readonly target: string;
  readonly exportName: string;
  readonly socketPath: string;
}

/** Opens a writable export. What `explain` makes of an error is thrown in its place. */
export async function openNbdWriter(
  address: WriterAddress,
  explain: (error: unknown) => Promise<unknown>,
  signal?: AbortSignal,
): Promise<BlockWriter> {
  const { target, exportName, socketPath } = address;
  const connection = await nbdCall(target, signal, () =>
    connectNbd({ socketPath, exportName, ...withSignal(signal) }),
  );
  return new NbdWriter(connection, target, explain);
}

/**
 * Opens an export of somebody else's, to write a disk of this size over it. Fails with INVALID_ARGUMENT if that cannot be done
 * with it, or if the URI is none.
 */
export async function openNbdTarget(
  target: string,
  uri: string,
  sizeBytes: number,
  signal?: AbortSignal,
): Promise<BlockWriter> {
  const connection = await nbdCall(target, signal, () => connectNbd(uri, withSignal(signal)));
  const { minimumBytes } = connection.blockSize;
  const obstacle = connection.readOnly
    ? "it is read-only"
    : sizeBytes % minimumBytes !== 0 || BLOCK_SIZE % minimumBytes !== 0
      ? `it takes multiples of ${minimumBytes} bytes alone`
      : undefined;
  if (obstacle === undefined) return new NbdWriter(connection, target, (error) => Promise.resolve(error));
  await connection.close();
  throw new FleeceError("INVALID_ARGUMENT", `Cannot write disk ${target} to ${uri}: ${obstacle}`);
}

const ZEROES = new Uint8Array(MIB);

class NbdWriter implements BlockWriter {
  readonly sizeBytes: number;
  readonly #connection: NbdConnection;
  readonly #target: string;
  readonly #explain: (error: unknown) => Promise<unknown>;

  constructor(connection: NbdConnection, target: string, explain: (error: unknown) => Promise<unknown>) {
    this.#connection = connection;
    this.#target = target;
    this.#explain = explain;
    this.sizeBytes = connection.sizeBytes;
  }

  async write(offset: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    await this.#call(signal, () => this.#connection.write(offset, data, withSignal(signal)));
  }

  async writeZeroes(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    if (this.#connection.canWriteZeroes) {
      await this.#call(signal, () => this.#connection.writeZeroes(offset, length, withSignal(signal)));
      return;
    }
    for (let done = 0; done < length; done += ZEROES.length) {
      await this.write(offset + done, ZEROES.subarray(0, length - done), signal);
    }
  }

  async flush(signal?: AbortSignal): Promise<void> {
    // Some servers offer none; there is no other way to ask them.
    if (!this.#connection.canFlush) return;
    await this.#call(signal, () => this.#connection.flush(withSignal(signal)));
  }

  async close(): Promise<void> {
    await this.#connection.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #call(signal: AbortSignal | undefined, action: () => Promise<void>): Promise<void> {
    try {
      await nbdCall(this.#target, signal, action);
    } catch (error) {
      const lostConnection =
        error instanceof FleeceError && error.cause instanceof NbdError && error.cause.scope === "connection";
      throw lostConnection ? await this.#explain(error) : error;
    }
  }
}

async function nbdCall<T>(
  target: string,
  signal: AbortSignal | undefined,
  action: () => Promise<T>,
): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw nbdFailure(error, target, signal);
  }
}

/** An aborted call throws what its signal was aborted with, so that the first cause wins over its consequences. */
function nbdFailure(error: unknown, target: string, signal: AbortSignal | undefined): unknown {
  if (!(error instanceof NbdError)) return error;
  if (error.code === "ABORTED" && signal?.aborted === true) return signal.reason;
  const options = { cause: error, facts: { target, nbdCode: error.code, errno: error.errno ?? "" } };
  if (error.errno === "ENOSPC") {
    return new FleeceError("NO_SPACE", `No space left to write disk ${target}`, options);
  }
  const code = error.code === "INVALID_URI" ? "INVALID_ARGUMENT" : "NBD_FAILED";
  return new FleeceError(code, `Disk ${target}: ${error.message}`, options);
}

/**
 * QEMU's block layer says EACCES for content that a copy-before-write filter has lost; its NBD server has no such
 * number and sends EINVAL (newer ones EPERM). A failing disk says EIO.
 */
function brokenSnapshot(error: unknown, target: string): FleeceError | undefined {
  if (!(error instanceof NbdError) || error.code !== "REQUEST_FAILED") return undefined;
  if (error.errno !== "EINVAL" && error.errno !== "EPERM") return undefined;
  return new FleeceError(
    "SNAPSHOT_BROKEN",
    `The frozen content of disk ${target} is gone, likely because scratch space ran out: ${error.message}`,
    { cause: error, facts: { target } },
  );
}

function isSet(flags: number | undefined, bit: number): boolean {
  return ((flags ?? 0) & bit) !== 0;
}

function withSignal(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}
