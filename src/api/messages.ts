import type { Timestamp } from "./timestamp.js";

/**
 * The messages of proto/fleece/v1 as plain objects: field names in lowerCamelCase, enums by name, sizes as safe integers.
 * What each field means is written there; json.ts refuses an object that has a field which the .proto files lack.
 */
export type DiskFormatName = "QCOW2" | "RAW";

export interface Disk {
  readonly target: string;
  readonly format: DiskFormatName;
  readonly file: string;
  readonly sizeBytes: number;
  readonly checkpoints: readonly string[];
  readonly foreignBitmaps: readonly string[];
  readonly obstacle?: { readonly code: string; readonly reason: string } | undefined;
  readonly staged: boolean;
}

export interface Domain {
  readonly name: string;
  readonly state: "RUNNING" | "PAUSED" | "INACTIVE" | "UNKNOWN";
  readonly qemuVersion?: string | undefined;
  readonly disks: readonly Disk[];
  readonly trouble?: string | undefined;
}

export interface ListDomainsResponse {
  readonly domains: readonly Domain[];
}

export interface CheckpointDisk {
  readonly target: string;
  readonly bitmap: string;
  readonly recording: boolean;
  readonly inconsistent: boolean;
  readonly busy: boolean;
  readonly persistent: boolean;
  readonly granularityBytes: number;
  readonly dirtyBytes?: number | undefined;
}

export interface Checkpoint {
  readonly domain: string;
  readonly name: string;
  readonly order: number;
  readonly time: Timestamp;
  readonly parent?: string | undefined;
  readonly valid: boolean;
  readonly disks: readonly CheckpointDisk[];
}

export interface ListCheckpointsResponse {
  readonly checkpoints: readonly Checkpoint[];
}

export type Level = "FULL" | "INCREMENTAL";
export type ConsistencyName = "CLEAN" | "FILESYSTEM" | "CRASH";

export type DiskModeName = "CHANGES" | "COMPARE" | "WHOLE";

export interface BackupDisk {
  readonly target: string;
  readonly sourceFormat: DiskFormatName;
  readonly sizeBytes: number;
  readonly readBytes: number;
  readonly storedBytes: number;
  readonly zeroBytes: number;
  readonly durationMs: number;
  readonly mode: DiskModeName;
  readonly reason: string;
}

/** What is known of any listed backup, also of a damaged one. */
interface BackupPlace {
  readonly id: string;
  readonly repository: string;
  readonly domain: string;
}

export interface SoundBackup extends BackupPlace {
  readonly level: Level;
  readonly parent?: string | undefined;
  readonly reason: string;
  readonly time: Timestamp;
  readonly startTime: Timestamp;
  readonly endTime: Timestamp;
  readonly consistency: ConsistencyName;
  readonly heldMs: number;
  readonly scratchPeakBytes?: number | undefined;
  readonly frozenMs?: number | undefined;
  readonly quiesceFailure?: string | undefined;
  readonly checkpoint: string;
  readonly disks: readonly BackupDisk[];
  readonly damage?: undefined;
}

export interface DamagedBackup extends BackupPlace {
  readonly damage: string;
}

export type Backup = SoundBackup | DamagedBackup;

export interface ListBackupsResponse {
  readonly backups: readonly Backup[];
}

export interface Verification {
  readonly backup: string;
  readonly disks: readonly { readonly target: string; readonly checkedBytes: number }[];
}

export interface Restoration {
  readonly backup: string;
  readonly directory: string;
  readonly disks: readonly {
    readonly target: string;
    readonly file: string;
    readonly format: DiskFormatName;
    readonly sizeBytes: number;
  }[];
}

export interface ServedBackup {
  readonly backup: string;
  readonly disks: readonly {
    readonly target: string;
    readonly exportName: string;
    readonly uri: string;
    readonly sizeBytes: number;
  }[];
}

export interface BlockExport {
  readonly domain: string;
  readonly snapshot: string;
  readonly target: string;
  readonly exportName: string;
  readonly uri: string;
  readonly sizeBytes: number;
  readonly since?: string | undefined;
  readonly changesContext?: string | undefined;
  readonly staged: boolean;
  readonly broken?: string | undefined;
}

export interface BlockSnapshotDisk {
  readonly target: string;
  readonly format: DiskFormatName;
  readonly sizeBytes: number;
  readonly scratchFile?: string | undefined;
}

export interface BlockSnapshot {
  readonly domain: string;
  readonly name: string;
  readonly time: Timestamp;
  readonly consistency: ConsistencyName;
  readonly heldMs: number;
  readonly frozenMs?: number | undefined;
  readonly quiesceFailure?: string | undefined;
  readonly checkpoint?: string | undefined;
  readonly scratchUsedBytes: number;
  readonly scratchLimitBytes?: number | undefined;
  readonly leaseMs: number;
  readonly leaseEndTime: Timestamp;
  readonly disks: readonly BlockSnapshotDisk[];
  readonly exports: readonly BlockExport[];
  readonly broken?: string | undefined;
}

export interface ListBlockSnapshotsResponse {
  readonly snapshots: readonly BlockSnapshot[];
}

export interface StartBlockExportsResponse {
  readonly exports: readonly BlockExport[];
}

export interface ListBlockExportsResponse {
  readonly exports: readonly BlockExport[];
}

export interface StopBlockExportsResponse {
  readonly exports: readonly BlockExport[];
}

export interface Finding {
  readonly code: string;
  readonly severity: "OK" | "NOTE" | "WARNING" | "BLOCKER";
  readonly disk?: string | undefined;
  readonly found: string;
  readonly advice: string;
  readonly errorCode?: string | undefined;
}

export interface DoctorReport {
  readonly domain: string;
  readonly repository: string;
  readonly ready: boolean;
  readonly nextLevel?: Level | undefined;
  readonly nextReason?: string | undefined;
  readonly findings: readonly Finding[];
}

/** The messages that are printed or sent whole, by their names in the package `fleece.v1`. */
export interface MessageTypes {
  readonly Domain: Domain;
  readonly ListDomainsResponse: ListDomainsResponse;
  readonly Checkpoint: Checkpoint;
  readonly ListCheckpointsResponse: ListCheckpointsResponse;
  readonly Backup: Backup;
  readonly ListBackupsResponse: ListBackupsResponse;
  readonly Verification: Verification;
  readonly Restoration: Restoration;
  readonly ServedBackup: ServedBackup;
  readonly BlockSnapshot: BlockSnapshot;
  readonly ListBlockSnapshotsResponse: ListBlockSnapshotsResponse;
  readonly StartBlockExportsResponse: StartBlockExportsResponse;
  readonly ListBlockExportsResponse: ListBlockExportsResponse;
  readonly StopBlockExportsResponse: StopBlockExportsResponse;
  readonly DoctorReport: DoctorReport;
}
