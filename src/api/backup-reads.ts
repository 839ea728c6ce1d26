import type { ExportAddress } from "../model/snapshot-plan.js";
import type { ReadOptions } from "../services/backup-read.js";
import { restoreBackup, serveBackup, verifyBackup } from "../services/backup-read.js";
import type { ServiceContext } from "../services/context.js";
import { formatName } from "./domains.js";
import type { DiskFormatName, Restoration, ServedBackup, Verification } from "./messages.js";
import { nbdUri } from "./nbd-uri.js";
import type { CallOptions } from "./progress.js";

export interface ReadBackupRequest {
  readonly id: string;
  /** Targets; empty: all disks of the backup. */
  readonly disks: readonly string[];
}

export interface RestoreBackupRequest extends ReadBackupRequest {
  /** Absolute; created by the restore. */
  readonly directory: string;
  /** Left out: as the disk was in the domain. */
  readonly format?: DiskFormatName | undefined;
}

export interface ServeBackupRequest extends ReadBackupRequest {
  /** Absolute; left out: one is made up. */
  readonly socketPath?: string | undefined;
}

const FORMATS_BY_NAME = { QCOW2: "qcow2", RAW: "raw" } as const;

export async function verifyBackupHandler(
  context: ServiceContext,
  { id, disks }: ReadBackupRequest,
  options: CallOptions = {},
): Promise<Verification> {
  const verified = await verifyBackup(context, id, readOptions(disks, options));
  return {
    backup: id,
    disks: verified.map(({ target, checkedBytes }) => ({ target, checkedBytes })),
  };
}

export async function restoreBackupHandler(
  context: ServiceContext,
  { id, disks, directory, format }: RestoreBackupRequest,
  options: CallOptions = {},
): Promise<Restoration> {
  const restored = await restoreBackup(context, {
    id,
    directory,
    ...(format === undefined ? {} : { format: FORMATS_BY_NAME[format] }),
    ...readOptions(disks, options),
  });
  return {
    backup: id,
    directory,
    disks: restored.map((disk) => ({
      target: disk.target,
      file: disk.file,
      format: formatName(disk.format),
      sizeBytes: disk.sizeBytes,
    })),
  };
}

/** A backup that is offered until `close`, which is idempotent. */
export interface ServingBackup {
  readonly message: ServedBackup;
  /** Resolves when the server ends by itself, with the reason. */
  readonly ended: Promise<string>;
  close(): Promise<void>;
}

export async function serveBackupHandler(
  context: ServiceContext,
  { id, disks, socketPath }: ServeBackupRequest,
  { signal }: Pick<CallOptions, "signal"> = {},
): Promise<ServingBackup> {
  const { backup } = await serveBackup(context, id, {
    ...readOptions(disks, signal === undefined ? {} : { signal }),
    ...(socketPath === undefined ? {} : { socketPath }),
  });
  return {
    message: { backup: id, disks: backup.addresses.map(servedDisk) },
    ended: backup.ended,
    close: () => backup.close(),
  };
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
    ...(onProgress === undefined
      ? {}
      : { onProgress: (progress) => onProgress({ step: "disk", ...progress }) }),
  };
}
