import type { BackupEntry, IntactEntry, Manifest, ManifestDisk } from "../model/backup.js";
import { isIntact, keyIdOf, momentMs } from "../model/backup.js";
import type { BackupWaits } from "../model/backup-limits.js";
import { type DeletedBackup, deleteBackup, findBackup, listBackups } from "../services/backup-catalog.js";
import type { BackupProgress } from "../services/backup-run.js";
import { runBackup } from "../services/backup-run.js";
import type { ServiceContext } from "../services/context.js";
import { lastBootTest } from "../services/boot-test.js";
import { lastVerification } from "../services/verifications.js";
import type { CallOptions, CallRequest } from "./call-types.js";
import { CONSISTENCIES } from "./consistency.js";
import { formatName } from "./domains.js";
import type {
  Backup,
  BackupDisk,
  BackupProgress as ProgressMessage,
  BackupWaits as BackupWaitsMessage,
  ListBackupsResponse,
} from "./messages.js";
import { page } from "./page.js";
import { timestampFromMs, timestampFromText } from "./timestamp.js";

export const LEVELS = { full: "FULL", incremental: "INCREMENTAL" } as const;
const LEVELS_BY_NAME = { LEVEL_UNSPECIFIED: undefined, FULL: "full", INCREMENTAL: "incremental" } as const;
/** Of a damaged backup. */
const NOTHING_KNOWN = {
  level: "LEVEL_UNSPECIFIED",
  reason: "",
  time: null,
  startTime: null,
  endTime: null,
  consistency: "CONSISTENCY_UNSPECIFIED",
  heldMs: 0,
  checkpoint: "",
  disks: [],
  machineFiles: [],
  verifiedTime: null,
  lastBoot: null,
  waits: null,
} as const;
const MODES = { changes: "CHANGES", compare: "COMPARE", whole: "WHOLE" } as const;

export async function runBackupHandler(
  context: ServiceContext,
  { domain, level: levelOrNone, disks, repository, quiesce }: CallRequest<"Backups.Run">,
  { signal, onProgress, requestKey }: CallOptions,
): Promise<Backup> {
  const level = LEVELS_BY_NAME[levelOrNone];
  const entry = await runBackup(context, {
    domain,
    ...(level === undefined ? {} : { level }),
    ...(disks.length === 0 ? {} : { disks }),
    ...(repository === undefined ? {} : { repository }),
    ...(quiesce === undefined ? {} : { quiesce }),
    ...(requestKey === undefined ? {} : { request: requestKey }),
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress: (progress) => onProgress(progressMessage(progress)) }),
  });
  return soundBackupMessage(entry);
}

export async function listBackupsHandler(
  context: ServiceContext,
  { domain, repository, ...paging }: CallRequest<"Backups.List">,
): Promise<ListBackupsResponse> {
  const entries = await listBackups(context, {
    ...(domain === undefined ? {} : { domain }),
    ...(repository === undefined ? {} : { repository }),
  });
  const scope = ["backups", domain ?? null, repository ?? null];
  const repositories = [...context.repositories.keys()];
  const keyOf = (entry: BackupEntry) => [
    repositories.indexOf(entry.repository),
    entry.domain,
    momentMs(entry),
    entry.id,
  ];
  const { items, nextPageToken } = page(entries, paging, scope, keyOf);
  const backups = await Promise.all(items.map((entry) => withProofs(context, entry)));
  return { backups, nextPageToken };
}

export async function getBackupHandler(
  context: ServiceContext,
  { id, repository }: CallRequest<"Backups.Get">,
): Promise<Backup> {
  const { entry } = await findBackup(context, id, repository);
  return withProofs(context, entry);
}

/** Answers with the backup as it was. */
export async function deleteBackupHandler(
  context: ServiceContext,
  { id, repository }: CallRequest<"Backups.Delete">,
  { beforeEffect, signal }: CallOptions,
): Promise<Backup> {
  const message = ({ entry, mergedInto }: DeletedBackup): Backup => ({ ...backupMessage(entry), mergedInto });
  const onFound = async (found: DeletedBackup): Promise<void> => beforeEffect?.(message(found));
  return message(await deleteBackup(context, id, { repository, signal, onFound }));
}

export function backupMessage(entry: BackupEntry): Backup {
  if (isIntact(entry)) return soundBackupMessage(entry);
  const { id, repository, domain, damage, copiedFrom } = entry;
  return {
    ...NOTHING_KNOWN,
    id,
    repository,
    domain,
    damage,
    protected: entry.protected === true,
    copiedFrom,
  };
}

function soundBackupMessage(entry: IntactEntry): Backup {
  const { id, repository, domain, manifest } = entry;
  return {
    id,
    repository,
    domain,
    level: LEVELS[manifest.level],
    parent: manifest.parent,
    reason: manifest.reason,
    time: timestampFromText(manifest.time),
    startTime: timestampFromText(manifest.startedAt),
    endTime: timestampFromText(manifest.finishedAt),
    consistency: CONSISTENCIES[manifest.consistency],
    heldMs: manifest.heldMs,
    scratchPeakBytes: manifest.scratchPeakBytes,
    waits: manifest.waits === undefined ? null : waitsMessage(manifest.waits),
    frozenMs: manifest.frozenMs,
    quiesceFailure: manifest.quiesceFailure,
    checkpoint: manifest.checkpoint,
    disks: manifest.disks.map(backupDiskMessage),
    protected: entry.protected === true,
    machineFiles: machineFileMessages(manifest),
    verifiedTime: null,
    lastBoot: null,
    copiedFrom: entry.copiedFrom,
    keyId: keyIdOf(manifest),
  };
}

export function machineFileMessages({ machineFiles = [] }: Manifest): Backup["machineFiles"] {
  return machineFiles.map(({ path, sizeBytes }) => ({ path, sizeBytes }));
}

async function withProofs({ store }: ServiceContext, entry: BackupEntry): Promise<Backup> {
  const verified = await lastVerification(store, entry);
  const booted = await lastBootTest(store, entry);
  return {
    ...backupMessage(entry),
    ...(verified === undefined
      ? {}
      : { verifiedTime: timestampFromMs(verified.timeMs), verifiedDamage: verified.damage }),
    ...(booted === undefined
      ? {}
      : { lastBoot: { time: timestampFromMs(booted.timeMs), failure: booted.failure } }),
  };
}

function backupDiskMessage(disk: ManifestDisk): BackupDisk {
  const { target, sourceFormat, sizeBytes, readBytes, storedBytes, zeroBytes, durationMs, mode, reason } =
    disk;
  return {
    target,
    sourceFormat: formatName(sourceFormat),
    sizeBytes,
    readBytes,
    storedBytes,
    zeroBytes,
    durationMs,
    mode: MODES[mode],
    reason,
    encrypted: disk.keyId !== undefined,
  };
}

export function progressMessage(progress: BackupProgress): ProgressMessage {
  switch (progress.step) {
    case "started": {
      const disks = progress.disks.map(({ target, sizeBytes }) => ({ target, sizeBytes }));
      return { started: { level: LEVELS[progress.level], reason: progress.reason, disks } };
    }
    case "scratch": {
      const { usedBytes, limitBytes } = progress;
      return { scratch: { usedBytes, limitBytes } };
    }
    case "pace": {
      const { readBytesPerSecond, writeBytesPerSecond, guestBytesPerSecond, waits } = progress;
      const rates = { readBytesPerSecond, writeBytesPerSecond, guestBytesPerSecond };
      return { pace: { ...rates, waits: waitsMessage(waits) } };
    }
    case "disk": {
      const { target, positionBytes, readBytes, storedBytes } = progress;
      return { disk: { target, positionBytes, readBytes, storedBytes } };
    }
  }
}

function waitsMessage({ readLimit, writeLimit, guestLatency }: BackupWaits): BackupWaitsMessage {
  return { readLimitMs: readLimit, writeLimitMs: writeLimit, guestLatencyMs: guestLatency };
}
