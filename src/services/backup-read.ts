import type { IntactEntry, ManifestDisk } from "../model/backup.js";
import { checkName } from "../model/names.js";
import { BLOCK_SIZE, blockRuns, pieces } from "../model/extents.js";
import type { BlockRun } from "../model/extents.js";
import type { ExportAddress } from "../model/snapshot-plan.js";
import type { BlockReader, BlockWriter } from "../ports/block-io.js";
import type { BlockExpectations, OpenBackup } from "../ports/repository.js";
import { forEachLimited } from "../shared/async.js";
import { FleeceError, isFleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import { GIB } from "../shared/units.js";
import { findReadable } from "./backup-catalog.js";
import type { ServiceContext } from "./context.js";
import { Operation } from "./operation.js";
import { READ_BYTES, ReadBuffers, READS_IN_FLIGHT } from "./pull.js";
import { planOutputs, type PlaceOptions, type RestoredDisk, RestoreOutputs } from "./restore-outputs.js";

export interface ReadProgress {
  readonly target: string;
  readonly positionBytes: number;
  readonly sizeBytes: number;
}

export interface ReadOptions {
  /** Left out: the first in which it can be read. */
  readonly repository?: string | undefined;
  readonly disks?: readonly string[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: ReadProgress) => void;
}

export interface VerifiedDisk {
  readonly target: string;
  readonly checkedBytes: number;
}

/**
 * Reads a backup as a restore would and compares every block with its digest, zeroes included. Fails with DAMAGED naming
 * the disk and the first offset that differs.
 */
export async function verifyBackup(
  context: ServiceContext,
  id: string,
  options: ReadOptions = {},
): Promise<readonly VerifiedDisk[]> {
  const { repository, entry } = await findReadable(context, id, options.repository);
  const targets = chooseTargets(entry, options.disks).map(({ target }) => target);
  await using backup = await repository.open(entry, { targets, ...signalOf(options) });
  const verified: VerifiedDisk[] = [];
  await eachDisk(context, backup, options, async (address, signal) => {
    const checkedBytes = await checkDisk(context, backup, address, { ...options, signal });
    verified.push({ target: address.target, checkedBytes });
  });
  if (options.disks === undefined) await backup.checkMachineFiles(signalOf(options));
  return verified.toSorted((a, b) => a.target.localeCompare(b.target));
}

export interface RestoreRequest extends ReadOptions, PlaceOptions {
  readonly id: string;
  /** Awaited just before new files appear, with what tells them from any others. */
  readonly onComplete?: (disks: readonly RestoredDisk[], identity: string) => Promise<void>;
}

/**
 * Restores disks, checking every block against its digest on the way: damage is never restored silently. With a directory,
 * `disks` go there (default: all that have no place); without, only those with a place are restored.
 */
export async function restoreBackup(
  context: ServiceContext,
  request: RestoreRequest,
): Promise<readonly RestoredDisk[]> {
  const { repository, entry } = await findReadable(context, request.id, request.repository);
  const plan = await planOutputs(context, disksToRestore(entry, request), request);
  const operation = await Operation.begin(context.store, {
    id: randomId(8),
    domain: entry.domain,
    startedAtMs: context.clock.now(),
    subject: { kind: "restore", backupId: entry.id },
  });
  try {
    const targets = plan.map(({ target }) => target);
    await using backup = await repository.open(entry, { targets, ...signalOf(request) });
    const { directory, signal } = request;
    const outputs = await RestoreOutputs.open(context, plan, { operation, directory, signal });
    try {
      await eachDisk(context, backup, request, async (address, stop) => {
        await checkDisk(
          context,
          backup,
          address,
          { ...request, signal: stop },
          outputs.writer(address.target),
        );
      });
      const machineFiles = outputs.machineFiles;
      if (machineFiles !== undefined) await backup.checkMachineFiles({ copyTo: machineFiles, signal });
      await outputs.finish();
      await request.onComplete?.(plan, await outputs.identity());
      await outputs.publish();
      return plan;
    } catch (error) {
      throw signal?.aborted === true ? error : partlyWritten(error, plan);
    } finally {
      await outputs.discard();
    }
  } finally {
    await operation.end();
  }
}

function disksToRestore(
  entry: IntactEntry,
  { disks, directory, places = [] }: RestoreRequest,
): readonly ManifestDisk[] {
  const placed = chooseTargets(
    entry,
    places.map(({ target }) => target),
  );
  const wanted = disks === undefined && directory === undefined ? [] : chooseTargets(entry, disks);
  const others = wanted.filter((disk) => !placed.includes(disk));
  if (directory !== undefined && others.length > 0) return [...placed, ...others];
  if (directory === undefined && others.length === 0 && placed.length > 0) return placed;
  const got = directory === undefined ? "no directory" : "a directory, and a place for each disk";
  throw new FleeceError(
    "INVALID_ARGUMENT",
    `Expected a directory if a disk has no place of its own, got ${got}`,
    {
      facts: { field: "directory" },
    },
  );
}

/** The same error, saying that devices and exports hold neither what they held nor the backup. */
function partlyWritten(error: unknown, plan: readonly RestoredDisk[]): unknown {
  const places = plan.filter(({ kind }) => kind !== "file").map(({ file }) => file);
  if (places.length === 0 || !isFleeceError(error)) return error;
  const message = `${error.message}; what was restored to ${places.join(", ")} is not complete`;
  return new FleeceError(error.code, message, {
    cause: error,
    facts: { ...error.facts, incomplete: places },
  });
}

/** Serves a backup's disks read-only over NBD until the result is closed. */
export async function serveBackup(
  context: ServiceContext,
  id: string,
  options: {
    readonly repository?: string | undefined;
    readonly socketPath?: string;
    readonly disks?: readonly string[];
    readonly signal?: AbortSignal;
  } = {},
): Promise<{ readonly entry: IntactEntry; readonly backup: OpenBackup }> {
  const { repository, entry } = await findReadable(context, id, options.repository);
  const targets = chooseTargets(entry, options.disks).map(({ target }) => target);
  const { socketPath } = options;
  const backup = await repository.open(entry, {
    targets,
    ...signalOf(options),
    ...(socketPath === undefined ? {} : { socketPath }),
  });
  return { entry, backup };
}

function signalOf({ signal }: { readonly signal?: AbortSignal }): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}

function chooseTargets(entry: IntactEntry, targets?: readonly string[]): readonly ManifestDisk[] {
  const { disks } = entry.manifest;
  if (targets === undefined) return disks;
  return [...new Set(targets)].map((target) => {
    const disk = disks.find((listed) => listed.target === checkName("disk", target));
    if (disk !== undefined) return disk;
    const known = disks.map((listed) => listed.target).join(", ");
    throw new FleeceError("DISK_NOT_FOUND", `Backup ${entry.id} has no disk ${target}; it has ${known}`, {
      facts: { backup: entry.id, target },
    });
  });
}

function eachDisk(
  context: ServiceContext,
  backup: OpenBackup,
  { signal }: ReadOptions,
  action: (address: ExportAddress, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  return forEachLimited(backup.addresses, context.parallelDisks, action, signal);
}

/** Resolves with the bytes that were compared by content. Hands data on to `output`, and zeroes unless that is new. */
async function checkDisk(
  context: ServiceContext,
  backup: OpenBackup,
  address: ExportAddress,
  { signal, onProgress }: ReadOptions,
  output?: { readonly writer: BlockWriter; readonly isNew: boolean },
): Promise<number> {
  const { target, sizeBytes } = address;
  await using expected = await backup.expectations(target);
  await using reader = await context.readers.open(address, signal);
  const buffers = new ReadBuffers();
  let checkedBytes = 0;
  await forEachLimited(
    requests(reader, signal),
    READS_IN_FLIGHT,
    async (run, stop) => {
      const memory = run.kind === "zero" ? undefined : buffers.take(run.length);
      const into = memory?.subarray(0, run.length);
      const data = into === undefined ? undefined : await readStored(reader, run, into, stop);
      await compareStored(expected, run, data, target);
      if (data !== undefined) await output?.writer.write(run.offset, data, stop);
      else if (output?.isNew === false) await output.writer.writeZeroes(run.offset, run.length, stop);
      if (memory !== undefined) buffers.give(memory);
      checkedBytes += data?.length ?? 0;
      onProgress?.({ target, positionBytes: run.offset + run.length, sizeBytes });
    },
    signal,
  );
  await output?.writer.flush(signal);
  onProgress?.({ target, positionBytes: sizeBytes, sizeBytes });
  return checkedBytes;
}

/** A block that storage or QEMU cannot read back is damage, unlike a connection that ended. */
export async function readStored(
  reader: BlockReader,
  { offset, length }: BlockRun,
  into: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  try {
    return await reader.read(offset, length, signal, into);
  } catch (error) {
    if (!isFleeceError(error, "NBD_FAILED") || error.facts["errno"] !== "EIO") throw error;
    throw new FleeceError("DAMAGED", `The backup cannot be read: ${error.message}`, { cause: error });
  }
}

async function* requests(reader: BlockReader, signal?: AbortSignal): AsyncGenerator<BlockRun> {
  for await (const run of blockRuns(reader.extents(signal), reader.sizeBytes, BLOCK_SIZE)) {
    yield* pieces(run, run.kind === "zero" ? GIB : READ_BYTES);
  }
}

/** Fails with DAMAGED unless a run, read as `data` or as zeroes, holds what was stored. */
export async function compareStored(
  expected: BlockExpectations,
  run: BlockRun,
  data: Uint8Array | undefined,
  target: string,
): Promise<void> {
  const mismatch =
    data === undefined
      ? await expected.firstNonZero(run.offset, run.length)
      : await expected.firstMismatch(run.offset, data);
  if (mismatch === undefined) return;
  throw new FleeceError(
    "DAMAGED",
    `Disk ${target} of the backup does not hold what was stored: the block at byte ${mismatch} differs from its digest`,
    { facts: { target, offset: mismatch } },
  );
}
