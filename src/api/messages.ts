import type {
  Backup__Output,
  _fleece_v1_Backup_Disk__Output,
  _fleece_v1_Backup_Waits__Output,
} from "./generated/fleece/v1/Backup.js";
import type { BackupLimits__Output } from "./generated/fleece/v1/BackupLimits.js";
import type { BackupProgress__Output } from "./generated/fleece/v1/BackupProgress.js";
import type { BootProgress__Output } from "./generated/fleece/v1/BootProgress.js";
import type { BootTest__Output } from "./generated/fleece/v1/BootTest.js";
import type { BlockExport__Output } from "./generated/fleece/v1/BlockExport.js";
import type {
  BlockSnapshot__Output,
  _fleece_v1_BlockSnapshot_Disk__Output,
} from "./generated/fleece/v1/BlockSnapshot.js";
import type {
  Checkpoint__Output,
  _fleece_v1_Checkpoint_Disk__Output,
} from "./generated/fleece/v1/Checkpoint.js";
import type { CopyReport__Output } from "./generated/fleece/v1/CopyReport.js";
import type { Disk__Output } from "./generated/fleece/v1/Disk.js";
import type { DoctorReport__Output } from "./generated/fleece/v1/DoctorReport.js";
import type { Domain__Output } from "./generated/fleece/v1/Domain.js";
import type { ClonedDomainSnapshot__Output } from "./generated/fleece/v1/ClonedDomainSnapshot.js";
import type { DeletedDomainSnapshot__Output } from "./generated/fleece/v1/DeletedDomainSnapshot.js";
import type { DomainSnapshot__Output } from "./generated/fleece/v1/DomainSnapshot.js";
import type { DomainSnapshotProgress__Output } from "./generated/fleece/v1/DomainSnapshotProgress.js";
import type { ListDomainSnapshotsResponse__Output } from "./generated/fleece/v1/ListDomainSnapshotsResponse.js";
import type { RevertCost__Output } from "./generated/fleece/v1/RevertCost.js";
import type { RevertedDomain__Output } from "./generated/fleece/v1/RevertedDomain.js";
import type { Finding__Output } from "./generated/fleece/v1/Finding.js";
import type { Job__Output } from "./generated/fleece/v1/Job.js";
import type { JobHistoryResponse__Output } from "./generated/fleece/v1/JobHistoryResponse.js";
import type {
  JobRun__Output,
  _fleece_v1_JobRun_Domain__Output,
  _fleece_v1_JobRun_Trouble__Output,
} from "./generated/fleece/v1/JobRun.js";
import type { ListBackupsResponse__Output } from "./generated/fleece/v1/ListBackupsResponse.js";
import type { ListBlockExportsResponse__Output } from "./generated/fleece/v1/ListBlockExportsResponse.js";
import type { ListBlockSnapshotsResponse__Output } from "./generated/fleece/v1/ListBlockSnapshotsResponse.js";
import type { ListCheckpointsResponse__Output } from "./generated/fleece/v1/ListCheckpointsResponse.js";
import type { ListDomainsResponse__Output } from "./generated/fleece/v1/ListDomainsResponse.js";
import type { PruneReport__Output } from "./generated/fleece/v1/PruneReport.js";
import type { ListJobsResponse__Output } from "./generated/fleece/v1/ListJobsResponse.js";
import type { Restoration__Output } from "./generated/fleece/v1/Restoration.js";
import type { ServedBackup__Output } from "./generated/fleece/v1/ServedBackup.js";
import type { StartBlockExportsResponse__Output } from "./generated/fleece/v1/StartBlockExportsResponse.js";
import type { Status__Output, _fleece_v1_Status_Domain__Output } from "./generated/fleece/v1/Status.js";
import type { StopBlockExportsResponse__Output } from "./generated/fleece/v1/StopBlockExportsResponse.js";
import type { Verification__Output } from "./generated/fleece/v1/Verification.js";
import type { XmlDocument__Output } from "./generated/fleece/v1/XmlDocument.js";

/**
 * The messages of proto/fleece/v1 as plain objects: field names in lowerCamelCase, enums by name, sizes as safe integers.
 * The types are generated from there (config/generate.mjs); what each field means is written there, too.
 */
export type Message<T> = T extends readonly (infer Item)[]
  ? readonly Message<Item>[]
  : T extends object
    ? { readonly [Key in keyof T]: Message<T[Key]> | (object extends Pick<T, Key> ? undefined : never) }
    : T;

export type Disk = Message<Disk__Output>;
export type Domain = Message<Domain__Output>;
export type ListDomainsResponse = Message<ListDomainsResponse__Output>;
export type CheckpointDisk = Message<_fleece_v1_Checkpoint_Disk__Output>;
export type Checkpoint = Message<Checkpoint__Output>;
export type ListCheckpointsResponse = Message<ListCheckpointsResponse__Output>;
export type BackupDisk = Message<_fleece_v1_Backup_Disk__Output>;
export type BackupWaits = Message<_fleece_v1_Backup_Waits__Output>;
export type BackupLimits = Message<BackupLimits__Output>;
export type Backup = Message<Backup__Output>;
export type BackupProgress = Message<BackupProgress__Output>;
/** What long calls tell on their way. */
export type Progress = BackupProgress | DomainSnapshotProgress | BootProgress;
export type BootProgress = Message<BootProgress__Output>;
export type BootTest = Message<BootTest__Output>;
export type ListBackupsResponse = Message<ListBackupsResponse__Output>;
export type Verification = Message<Verification__Output>;
export type PruneReport = Message<PruneReport__Output>;
export type CopyReport = Message<CopyReport__Output>;
export type Restoration = Message<Restoration__Output>;
export type ServedBackup = Message<ServedBackup__Output>;
export type BlockExport = Message<BlockExport__Output>;
export type BlockSnapshotDisk = Message<_fleece_v1_BlockSnapshot_Disk__Output>;
export type BlockSnapshot = Message<BlockSnapshot__Output>;
export type ListBlockSnapshotsResponse = Message<ListBlockSnapshotsResponse__Output>;
export type StartBlockExportsResponse = Message<StartBlockExportsResponse__Output>;
export type ListBlockExportsResponse = Message<ListBlockExportsResponse__Output>;
export type StopBlockExportsResponse = Message<StopBlockExportsResponse__Output>;
export type DomainSnapshot = Message<DomainSnapshot__Output>;
export type DomainSnapshotProgress = Message<DomainSnapshotProgress__Output>;
export type ListDomainSnapshotsResponse = Message<ListDomainSnapshotsResponse__Output>;
export type RevertCost = Message<RevertCost__Output>;
export type RevertedDomain = Message<RevertedDomain__Output>;
export type DeletedDomainSnapshot = Message<DeletedDomainSnapshot__Output>;
export type ClonedDomainSnapshot = Message<ClonedDomainSnapshot__Output>;
export type Finding = Message<Finding__Output>;
export type DoctorReport = Message<DoctorReport__Output>;
export type Job = Message<Job__Output>;
export type ListJobsResponse = Message<ListJobsResponse__Output>;
export type JobRun = Message<JobRun__Output>;
export type JobRunDomain = Message<_fleece_v1_JobRun_Domain__Output>;
export type JobTrouble = Message<_fleece_v1_JobRun_Trouble__Output>;
export type JobHistoryResponse = Message<JobHistoryResponse__Output>;
export type Status = Message<Status__Output>;
export type StatusDomain = Message<_fleece_v1_Status_Domain__Output>;
export type XmlDocument = Message<XmlDocument__Output>;
export type DiskFormatName = Disk["format"];
export type Level = Backup["level"];

/** The messages that are printed, by their names in the package `fleece.v1`. */
export interface MessageTypes {
  readonly Domain: Domain;
  readonly ListDomainsResponse: ListDomainsResponse;
  readonly Checkpoint: Checkpoint;
  readonly ListCheckpointsResponse: ListCheckpointsResponse;
  readonly Backup: Backup;
  readonly ListBackupsResponse: ListBackupsResponse;
  readonly Verification: Verification;
  readonly BootTest: BootTest;
  readonly PruneReport: PruneReport;
  readonly CopyReport: CopyReport;
  readonly Restoration: Restoration;
  readonly ServedBackup: ServedBackup;
  readonly BlockSnapshot: BlockSnapshot;
  readonly ListBlockSnapshotsResponse: ListBlockSnapshotsResponse;
  readonly StartBlockExportsResponse: StartBlockExportsResponse;
  readonly ListBlockExportsResponse: ListBlockExportsResponse;
  readonly StopBlockExportsResponse: StopBlockExportsResponse;
  readonly DomainSnapshot: DomainSnapshot;
  readonly ListDomainSnapshotsResponse: ListDomainSnapshotsResponse;
  readonly RevertCost: RevertCost;
  readonly RevertedDomain: RevertedDomain;
  readonly DeletedDomainSnapshot: DeletedDomainSnapshot;
  readonly ClonedDomainSnapshot: ClonedDomainSnapshot;
  readonly DoctorReport: DoctorReport;
  readonly XmlDocument: XmlDocument;
  readonly ListJobsResponse: ListJobsResponse;
  readonly JobRun: JobRun;
  readonly JobHistoryResponse: JobHistoryResponse;
  readonly Status: Status;
}
