import type { BackupEntry, IntactEntry, ManifestDisk } from "../model/backup.js";
import { isIntact } from "../model/backup.js";
import { deleteBackup, findBackup, listBackups } from "../services/backup-catalog.js";
import type { BackupProgress } from "../services/backup-run.js";
import { runBackup } from "../services/backup-run.js";
import type { ServiceContext } from "../services/context.js";
import { CONSISTENCIES } from "./consistency.js";
import { formatName } from "./domains.js";
import type { Backup, BackupDisk, Level, ListBackupsResponse, SoundBackup } from "./messages.js";
import type { CallOptions, Progress } from "./progress.js";
import { timestampFromText } from "./timestamp.js";

export interface RunBackupRequest {
  readonly domain: string;
  /** Left out: incremental where the chain allows it, else full. */
  readonly level?: Level | undefined;
  /** Targets; empty: all disks. */
  readonly disks: readonly string[];
  /** Left out: the first of the configuration. */
  readonly repository?: string | undefined;
  /** Left out: as configured. */
  readonly quiesce?: boolean | undefined;
}

const LEVELS = { full: "FULL", incremental: "INCREMENTAL" } as const;
const LEVELS_BY_NAME = { FULL: "full", INCREMENTAL: "incremental" } as const;
const MODES = { changes: "CHANGES", compare: "COMPARE", whole: "WHOLE" } as const;

export async function runBackupHandler(
  context: ServiceContext,
  { domain, level, disks, repository, quiesce }: RunBackupRequest,
  { signal, onProgress }: CallOptions = {},
): Promise<SoundBackup> {
  const entry = await runBackup(context, {
    domain,
    ...(level === undefined ? {} : { level: LEVELS_BY_NAME[level] }),
    ...(disks.length === 0 ? {} : { disks }),
    ...(repository === undefined ? {} : { repository }),
    ...(quiesce === undefined ? {} : { quiesce }),
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress: (progress) => onProgress(progressMessage(progress)) }),
  });
  return soundBackupMessage(entry);
}

export async function listBackupsHandler(
  context: ServiceContext,
  { domain, repository }: { readonly domain?: string | undefined; readonly repository?: string | undefined },
): Promise<ListBackupsResponse> {
  const entries = await listBackups(context, {
    ...(domain === undefined ? {} : { domain }),
    ...(repository === undefined ? {} : { repository }),
  });
  return { backups: entries.map(backupMessage) };
}

export async function getBackupHandler(
  context: ServiceContext,
  { id }: { readonly id: string },
): Promise<Backup> {
  const { entry } = await findBackup(context, id);
  return backupMessage(entry);
}

/** Answers with the backup as it was. */
export async function deleteBackupHandler(
  context: ServiceContext,
  { id }: { readonly id: string },
): Promise<Backup> {
  return backupMessage(await deleteBackup(context, id));
}

export function backupMessage(entry: BackupEntry): Backup {
  if (isIntact(entry)) return soundBackupMessage(entry);
  const { id, repository, domain, damage } = entry;
  return { id, repository, domain, damage };
}

function soundBackupMessage({ id, repository, domain, manifest }: IntactEntry): SoundBackup {
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
    frozenMs: manifest.frozenMs,
    quiesceFailure: manifest.quiesceFailure,
    checkpoint: manifest.checkpoint,
    disks: manifest.disks.map(backupDiskMessage),
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
  };
}

function progressMessage(progress: BackupProgress): Progress {
  if (progress.step !== "started") return progress;
  const disks = progress.disks.map(({ target, sizeBytes }) => ({ target, sizeBytes }));
  return { step: "started", level: LEVELS[progress.level], reason: progress.reason, disks };
}
