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

export interface ReadProgress {
  readonly target: string;
  readonly positionBytes: number;
  readonly sizeBytes: number;
}

export interface ReadOptions {
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
  const { repository, entry } = await findReadable(context, id);
  const targets = chooseTargets(entry, options.disks).map(({ target }) => target);
  await using backup = await repository.open(entry, { targets, ...signalOf(options) });
  const verified: VerifiedDisk[] = [];
  await eachDisk(context, backup, options, async (address, signal) => {
    const checkedBytes = await checkDisk(context, backup, address, { ...options, signal });
    verified.push({ target: address.target, checkedBytes });
  });
  return verified.toSorted((a, b) => a.target.localeCompare(b.target));
}

export interface RestoreRequest extends ReadOptions {
  readonly id: string;
  /** Created by the restore; must not exist. Appears only when everything in it is complete. */
  readonly directory: string;
  /** Of the restored files; left out: as the disk was in the domain. */
  readonly format?: "qcow2" | "raw";
  /** Awaited just before the directory appears, with what tells it from any other. */
  readonly onComplete?: (disks: readonly RestoredDisk[], identity: string) => Promise<void>;
}

export interface RestoredDisk {
  readonly target: string;
  readonly file: string;
  readonly format: "qcow2" | "raw";
  readonly sizeBytes: number;
}

/** Restores disks to new files, checking every block against its digest on the way: damage is never restored silently. */
export async function restoreBackup(
  context: ServiceContext,
  request: RestoreRequest,
): Promise<readonly RestoredDisk[]> {
  const { repository, entry } = await findReadable(context, request.id);
  const disks = chooseTargets(entry, request.disks);
  const operation = await Operation.begin(context.store, {
    id: randomId(8),
    domain: entry.domain,
    startedAtMs: context.clock.now(),
    subject: { kind: "restore", backupId: entry.id },
  });
  try {
    const output = await context.outputs.begin(request.directory, operation);
    try {
      const files = disks.map((disk) => {
        const format = request.format ?? disk.sourceFormat;
        return { target: disk.target, format, sizeBytes: disk.sizeBytes, name: `${disk.target}.${format}` };
      });
      const targets = disks.map(({ target }) => target);
      await using backup = await repository.open(entry, { targets, ...signalOf(request) });
      await using images = await context.images.create(
        files.map(({ name, ...file }) => ({ ...file, path: `${output.temporaryPath}/${name}` })),
        request.signal,
      );
      await eachDisk(context, backup, request, async (address, signal) => {
        const writer = images.writer(address.target);
        await checkDisk(context, backup, address, { ...request, signal }, writer);
      });
      await images.finish();
      const restored = files.map(({ name, ...file }) => ({ ...file, file: `${request.directory}/${name}` }));
      await request.onComplete?.(restored, await output.identity());
      await output.publish();
      return restored;
    } finally {
      await output.discard();
    }
  } finally {
    await operation.end();
  }
}

/** Serves a backup's disks read-only over NBD until the result is closed. */
export async function serveBackup(
  context: ServiceContext,
  id: string,
  options: {
    readonly socketPath?: string;
    readonly disks?: readonly string[];
    readonly signal?: AbortSignal;
  } = {},
): Promise<{ readonly entry: IntactEntry; readonly backup: OpenBackup }> {
  const { repository, entry } = await findReadable(context, id);
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

/** Resolves with the bytes that were compared by content. Hands data on to `writer`, if there is one. */
async function checkDisk(
  context: ServiceContext,
  backup: OpenBackup,
  address: ExportAddress,
  { signal, onProgress }: ReadOptions,
  writer?: BlockWriter,
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
      await compare(expected, run, data, target);
      if (data !== undefined) await writer?.write(run.offset, data, stop);
      if (memory !== undefined) buffers.give(memory);
      checkedBytes += data?.length ?? 0;
      onProgress?.({ target, positionBytes: run.offset + run.length, sizeBytes });
    },
    signal,
  );
  await writer?.flush(signal);
  onProgress?.({ target, positionBytes: sizeBytes, sizeBytes });
  return checkedBytes;
}

/** A block that storage or QEMU cannot read back is damage, unlike a connection that ended. */
async function readStored(
  reader: BlockReader,
  { offset, length }: BlockRun,
  into: Uint8Array,
  signal: AbortSignal,
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

async function compare(
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
