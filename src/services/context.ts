import type { Client } from "../model/access.js";
import type { BackupLimits } from "../model/backup-limits.js";
import { checkName } from "../model/names.js";
import type { QuiesceSettings } from "../model/quiesce.js";
import type { RetentionPolicy } from "../model/retention.js";
import type { ReaderFactory } from "../ports/block-io.js";
import type { DriverFactory } from "../ports/block-driver.js";
import type { DomainSnapshotStore } from "../ports/domain-snapshot-store.js";
import type { InternalSnapshots } from "../ports/internal-snapshots.js";
import type { LayerMergers } from "../ports/layer-merger.js";
import type { SnapshotFiles } from "../ports/snapshot-files.js";
import type { Clock } from "../ports/clock.js";
import type { DiskTargets } from "../ports/disk-targets.js";
import type { ImageFactory } from "../ports/image-writer.js";
import type { Meter } from "../ports/meter.js";
import type { OutputDirectories } from "../ports/output-directory.js";
import type { BootSettings } from "../model/boot-test.js";
import type { BootMachines } from "../ports/boot-machines.js";
import type { Machines } from "../ports/machines.js";
import type { Logger } from "../ports/logger.js";
import type { ProgramRunner } from "../ports/program-runner.js";
import type { BackupRepository, MachineFile } from "../ports/repository.js";
import type { ScratchSpace } from "../ports/scratch-space.js";
import type { SnapshotTakers } from "../ports/snapshot-taker.js";
import type { HostCleaner, StateStore } from "../ports/state-store.js";
import type { Volumes } from "../ports/volumes.js";
import type { Webhooks } from "../ports/webhooks.js";
import { FleeceError } from "../shared/errors.js";
import type { ExportFronts } from "./export-fronts.js";
import type { Jobs } from "./jobs/job-runner.js";
import { DomainSession } from "./domain-session.js";
import { recoverDomain } from "./recovery.js";

/** What every service works with; put together once, in agent.ts. */
export interface ServiceContext {
  readonly store: StateStore;
  readonly domainSnapshots: DomainSnapshotStore;
  readonly takers: SnapshotTakers;
  readonly machines: Machines;
  readonly bootMachines: BootMachines;
  /** By domain. */
  readonly bootTests: ReadonlyMap<string, BootSettings>;
  readonly layers: LayerMergers;
  readonly snapshotFiles: SnapshotFiles;
  readonly internals: InternalSnapshots;
  readonly volumes: Volumes;
  readonly host: HostCleaner;
  readonly clock: Clock;
  readonly log: Logger;
  readonly meter: Meter;
  /** For whom the work is done. */
  readonly client: Client;
  readonly drivers: DriverFactory;
  readonly readers: ReaderFactory;
  readonly images: ImageFactory;
  readonly outputs: OutputDirectories;
  readonly diskTargets: DiskTargets;
  /** What is backed up of a domain beside its disks. */
  readonly machineFiles: ReadonlyMap<string, readonly MachineFile[]>;
  /** In the order of the configuration; the first is the default. */
  readonly repositories: ReadonlyMap<string, BackupRepository>;
  readonly domains: readonly string[];
  /** Of the domains that have a guest agent. */
  readonly quiesce: ReadonlyMap<string, QuiesceSettings>;
  readonly scratchDir: string;
  readonly scratch: ScratchSpace;
  /** In bytes, by domain; undefined where there is none. */
  readonly scratchLimits: ReadonlyMap<string, number | undefined>;
  /** Which backups of a domain stay in a repository; undefined: all. */
  readonly retention: (repository: string, domain: string) => RetentionPolicy | undefined;
  /** How many disks are read side by side. */
  readonly parallelDisks: number;
  /** Of what bitmaps call unchanged: which share is read to see whether that is so, from 0 to 1. */
  readonly sampleShare: number;
  /** Of backups that somebody asks for, and of jobs that have none of their own. */
  readonly limits: BackupLimits;
  /** Of an agent: embedded commands do not live as long as what is offered to remote readers. */
  readonly fronts?: ExportFronts;
  readonly jobs: Jobs;
  readonly programs: ProgramRunner;
  readonly webhooks: Webhooks;
}

/** Fails with INVALID_NAME or DOMAIN_NOT_FOUND. */
export function requireDomain({ domains }: ServiceContext, name: string): string {
  checkName("domain", name);
  if (domains.includes(name)) return name;
  throw new FleeceError(
    "DOMAIN_NOT_FOUND",
    `The configuration has no domain ${name}; it has ${domains.join(", ")}`,
    { facts: { domain: name } },
  );
}

export function requireRepository({ repositories }: ServiceContext, name?: string): BackupRepository {
  const [first] = repositories.values();
  if (name === undefined && first !== undefined) return first;
  const found = repositories.get(checkName("repository", name ?? ""));
  if (found !== undefined) return found;
  throw new FleeceError(
    "REPOSITORY_NOT_FOUND",
    `The configuration has no repository ${name ?? ""}; it has ${[...repositories.keys()].join(", ")}`,
    { facts: { repository: name ?? "" } },
  );
}

/**
 * Runs an operation that changes a domain: alone on it, and after whatever killed operations left has been put in order.
 * Fails with DOMAIN_BUSY, or with CLEANUP_INCOMPLETE if that order cannot be made.
 */
export async function withDomain<T>(
  context: ServiceContext,
  domain: string,
  purpose: string,
  action: (session: DomainSession) => Promise<T>,
): Promise<T> {
  const lock = await context.store.lockDomain(domain, purpose);
  try {
    await using session = new DomainSession(context.drivers, domain);
    await recoverDomain(context, session);
    return await action(session);
  } finally {
    await context.fronts?.follow(domain);
    await lock.release();
  }
}
