import { isAbsolute } from "node:path";
import type { ExportAddress } from "../model/snapshot-plan.js";
import type { ReadOptions, RestoredDisk } from "../services/backup-read.js";
import { restoreBackup, serveBackup } from "../services/backup-read.js";
import type { ServiceContext } from "../services/context.js";
import { verifyAndRemember } from "../services/verifications.js";
import { FleeceError } from "../shared/errors.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import { formatName } from "./domains.js";
import type { Restoration, ServedBackup, Verification } from "./messages.js";
import { nbdUri } from "./nbd-uri.js";
import { endOrAbort } from "./until.js";

const FORMATS_BY_NAME = { FORMAT_UNSPECIFIED: undefined, QCOW2: "qcow2", RAW: "raw" } as const;

export async function verifyBackupHandler(
  context: ServiceContext,
  { id, disks }: CallRequest<"Backups.Verify">,
  options: CallOptions,
): Promise<Verification> {
  const verified = await verifyAndRemember(context, id, readOptions(disks, options));
  return {
    backup: id,
    disks: verified.map(({ target, checkedBytes }) => ({ target, checkedBytes })),
  };
}

export async function restoreBackupHandler(
  context: ServiceContext,
  { id, disks, directory, format: formatOrNone }: CallRequest<"Backups.Restore">,
  options: CallOptions,
): Promise<Restoration> {
  requireAbsolute("directory", directory);
  const { beforeEffect, promised } = options;
  if (promised?.proof !== undefined && (await context.outputs.identityOf(directory)) === promised.proof) {
    return promised.answer as Restoration;
  }
  const format = FORMATS_BY_NAME[formatOrNone];
  const message = (restored: readonly RestoredDisk[]): Restoration => ({
    backup: id,
    directory,
    disks: restored.map((disk) => ({
      target: disk.target,
      file: disk.file,
      format: formatName(disk.format),
      sizeBytes: disk.sizeBytes,
    })),
  });
  const restored = await restoreBackup(context, {
    id,
    directory,
    ...(format === undefined ? {} : { format }),
    ...(beforeEffect === undefined
      ? {}
      : { onComplete: (found, identity) => beforeEffect(message(found), identity) }),
    ...readOptions(disks, options),
  });
  return message(restored);
}

/** Ends when it is cancelled. Fails with QEMU_FAILED if the NBD server ends by itself. */
export async function serveBackupHandler(
  context: ServiceContext,
  { id, disks, socketPath }: CallRequest<"Backups.Serve">,
  { signal, onServed }: CallOptions,
): Promise<undefined> {
  if (socketPath !== undefined) requireAbsolute("socketPath", socketPath);
  const { backup } = await serveBackup(context, id, {
    ...readOptions(disks, { signal }),
    ...(socketPath === undefined ? {} : { socketPath }),
  });
  try {
    onServed?.({ backup: id, disks: backup.addresses.map(servedDisk) });
    const reason = await endOrAbort(backup.ended, signal);
    if (reason === undefined) return undefined;
    throw new FleeceError("QEMU_FAILED", `The NBD server of backup ${id} ended by itself: ${reason}`, {
      facts: { backup: id },
    });
  } finally {
    await backup.close();
  }
}

/** The agent's working directory is nobody's business. */
function requireAbsolute(field: string, path: string): void {
  if (isAbsolute(path)) return;
  throw new FleeceError("INVALID_ARGUMENT", `Expected an absolute path for ${field}, got ${path}`, {
    facts: { field },
  });
}

function servedDisk({
  target,
  exportName,
  socketPath,
  sizeBytes,
}: ExportAddress): ServedBackup["disks"][number] {
  const uri = nbdUri(exportName, socketPath);
  return { target, exportName, uri, sizeBytes };
}

function readOptions(disks: readonly string[], { signal, onProgress }: CallOptions): ReadOptions {
  return {
    ...(disks.length === 0 ? {} : { disks }),
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress: (progress) => onProgress({ disk: progress }) }),
  };
}
