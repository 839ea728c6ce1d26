import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { type ClientEntry, LOCAL_CLIENT, type Role } from "./model/access.js";
import type { Config } from "./model/config.js";
import {
  bootSettings,
  clientEntries,
  configuredJobs,
  defaultLimits,
  jobLimits,
  configOfRepository,
  metricsAddress,
  nbdTlsPaths,
  parseConfig,
  quiesceSettings,
  retentionPolicy,
} from "./model/config.js";
import type { HostPort } from "./model/host-port.js";
import type { RunRecord } from "./model/run-record.js";
import type { MetricsAddress } from "./model/metrics-address.js";
import { claimAgentPlace, removeStaleSocket } from "./drivers/agent-claim.js";
import { AuditFile } from "./drivers/audit-file.js";
import { DomainSnapshotDirectory } from "./drivers/domain-snapshot-directory.js";
import { QemuDiskTargets } from "./drivers/disk-targets.js";
import { QemuDriverFactory } from "./drivers/driver-factory.js";
import { NbdFronts } from "./drivers/front/front-opener.js";
import { QemuHostCleaner } from "./drivers/host-cleaner.js";
import { StorageDaemonImages } from "./drivers/images.js";
import { QemuTakers } from "./drivers/machine/takers.js";
import { QemuBootMachines } from "./drivers/boot/qemu-boot-machines.js";
import { lvmVolumes } from "./drivers/lvm/volumes.js";
import { QemuMachines } from "./drivers/machine/qemu-machines.js";
import { QemuInternalSnapshots } from "./drivers/machine/internal-snapshots.js";
import { QemuLayerMergers } from "./drivers/machine/layer-merger.js";
import { snapshotFiles } from "./drivers/machine/snapshot-files.js";
import { NbdReaderFactory } from "./drivers/nbd-io.js";
import { outputDirectories } from "./drivers/output-directory.js";
import { programs } from "./drivers/programs.js";
import { lowerIoPriority } from "./drivers/io-priority.js";
import { DirectoryRepository } from "./drivers/repository/directory-repository.js";
import {
  checkSocketPath,
  defaultRuntimeRoot,
  makeRuntimeDirectory,
  processDirectoryPath,
  sweepRuntimeDirectories,
} from "./drivers/runtime-directory.js";
import { ScratchDirectory } from "./drivers/scratch-directory.js";
import { openToGroup } from "./drivers/socket-group.js";
import { StateDirectory } from "./drivers/state-directory.js";
import { webhooks } from "./drivers/webhooks.js";
import { systemClock } from "./drivers/system-clock.js";
import { readTlsFiles, type TlsFiles } from "./drivers/tls-files.js";
import type { AuditLog } from "./ports/audit-log.js";
import type { Clock } from "./ports/clock.js";
import type { Logger } from "./ports/logger.js";
import { noMeter, type Meter } from "./ports/meter.js";
import type { ServiceContext } from "./services/context.js";
import { ExportFronts } from "./services/export-fronts.js";
import { ContextWorker } from "./services/context-worker.js";
import { keepHouse, type Duty } from "./services/housekeeping.js";
import { JobRunner } from "./services/jobs/job-runner.js";
import { copyStep } from "./services/jobs/copy-step.js";
import { pruneStep } from "./services/jobs/prune-step.js";
import { bootStep } from "./services/jobs/boot-step.js";
import { recheckStep, verifyStep } from "./services/jobs/verify-steps.js";
import { keepSchedule } from "./services/jobs/scheduler.js";
import type { RunStep } from "./services/jobs/run-step.js";
import { recoverAll } from "./services/recovery.js";
import { watchSnapshots } from "./services/snapshot-watch.js";
import { errorMessage, errnoOf, FleeceError } from "./shared/errors.js";

/** Reads and checks the configuration file. Fails with CONFIG_NOT_FOUND or CONFIG_INVALID. */
export async function loadConfig(file: string): Promise<Config> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    const why = errnoOf(error) === "ENOENT" ? "it does not exist" : errorMessage(error);
    throw new FleeceError("CONFIG_NOT_FOUND", `Cannot read the configuration ${file}: ${why}`, {
      cause: error,
    });
  }
  return parseConfig(text, file);
}

/**
 * A configuration with nothing but the repository of this directory, for a host that has no other. Its state directory is
 * gone with it, or, after a kill, with the next command of this user.
 */
export async function bareConfig(
  repositoryPath: string,
  keyFile?: string,
): Promise<{ readonly config: Config } & AsyncDisposable> {
  const stateDir = processDirectoryPath();
  await makeRuntimeDirectory(stateDir);
  return {
    config: configOfRepository(repositoryPath, stateDir, keyFile),
    [Symbol.asyncDispose]: () => rm(stateDir, { recursive: true, force: true }),
  };
}

/** Where the agent of this configuration answers. Fails with INVALID_ARGUMENT if the path is too long for a socket. */
export function agentSocket(config: Config): string {
  return checkSocketPath(config.api.socket ?? join(runtimeRootOf(config), "agent.sock"));
}

/** Makes this process the agent of this configuration until it lets go. Fails with AGENT_RUNNING. */
export async function claimAgent(config: Config): Promise<AsyncDisposable> {
  const { stateDir } = config;
  return claimAgentPlace({ stateDir, runtimeRoot: runtimeRootOf(config), socketPath: agentSocket(config) });
}

/** Where the agent's metrics are served, free to bind; undefined if they are not. Fails as `claimAgent` does. */
export async function claimMetricsAddress(config: Config): Promise<MetricsAddress | undefined> {
  const address = metricsAddress(config);
  if (address !== undefined && "path" in address) await removeStaleSocket(checkSocketPath(address.path));
  return address;
}

export type { Config, ServiceContext };

/** What of a new configuration a running agent can take over, and what not. */
export { reloadedConfig } from "./model/reload.js";

/** What the API needs beside the services: who may use it, and where it answers. */
export interface Access {
  readonly audit: AuditLog;
  readonly clients: readonly ClientEntry[];
  readonly socketRole: Role;
  readonly limits: Config["api"]["limits"];
  readonly tcp: { readonly address: HostPort; readonly tls: TlsFiles } | undefined;
}

/** Fails with AUDIT_FAILED, TLS_INVALID, PATH_NOT_FOUND or PERMISSION_DENIED. */
export async function openAccess(config: Config): Promise<Access> {
  const { auditLog, socketRole, limits, tcp } = config.api;
  const audit = new AuditFile(auditLog ?? join(config.stateDir, "audit.log"), systemClock);
  const tls =
    tcp === undefined
      ? undefined
      : await readTlsFiles({ certificate: tcp.certificate, key: tcp.key, ca: tcp.clientCa });
  // Better now than at the first change.
  await audit.write({ event: "start", pid: process.pid });
  return {
    audit,
    clients: clientEntries(config),
    socketRole,
    limits,
    tcp: tcp === undefined || tls === undefined ? undefined : { address: tcp.address, tls },
  };
}

/** Lets the group of the configuration use the agent's socket, if there is one. */
export async function shareSocket(config: Config): Promise<void> {
  const { socketGroup } = config.api;
  if (socketGroup !== undefined) await openToGroup(agentSocket(config), String(socketGroup));
}

/** What a command shows to an agent on another host. */
export const readClientFiles = readTlsFiles;
export { formatHostPort, parseHostPort } from "./model/host-port.js";

/** Besides the ends of leases. */
const DUTIES: readonly Duty[] = [watchSnapshots];

/** What follows on each backup of a job, in this order. */
const RUN_STEPS: readonly RunStep[] = [verifyStep, bootStep, pruneStep, copyStep, recheckStep];

/** Loaded when it is needed: most commands tell nobody of runs. */
async function runJson(record: RunRecord): Promise<string> {
  const { runMessage } = await import("./api/jobs.js");
  const { toJson } = await import("./api/json.js");
  return JSON.stringify(toJson("JobRun", runMessage(record)));
}

/** Looks after leases and leftovers. */
export function houseKeeper(): ContextWorker {
  return new ContextWorker((context, signal) => keepHouse(context, DUTIES, signal));
}

/** Runs jobs when they are due; runs that it has begun go on. */
export function scheduleKeeper(): ContextWorker {
  return new ContextWorker(keepSchedule);
}

function runtimeRootOf({ runtimeDir }: Config): string {
  return runtimeDir ?? defaultRuntimeRoot();
}

/**
 * The composition root: the only place that knows both the services and the drivers behind their ports. Puts in order
 * what killed processes left behind before anything else is done, unless it is only to look (`changeNothing`). With `fronts`,
 * exports are offered to remote readers, too, until the caller closes them.
 */
export async function startAgent(
  config: Config,
  log: Logger,
  {
    changeNothing = false,
    meter = noMeter,
    fronts: withFronts = false,
    clock = systemClock,
  }: {
    readonly changeNothing?: boolean;
    readonly meter?: Meter;
    readonly fronts?: boolean;
    readonly clock?: Clock;
  } = {},
): Promise<ServiceContext> {
  if (config.ioPriority !== undefined) await lowerIoPriority(config.ioPriority);
  const runtimeRoot = runtimeRootOf(config);
  const store = new StateDirectory(config.stateDir);
  const fronts = withFronts ? await makeFronts(config.nbd, { store, clock, log }) : undefined;
  const images = new StorageDaemonImages({ runtimeRoot });
  const domainSnapshots = new DomainSnapshotDirectory(config.stateDir);
  const context: ServiceContext = {
    store,
    domainSnapshots,
    takers: new QemuTakers({ domains: config.domains, clock, runtimeRoot }),
    bootMachines: new QemuBootMachines({ domains: config.domains, clock, runtimeRoot }),
    bootTests: new Map(config.domains.map((domain) => [domain.name, bootSettings(domain)])),
    machines: new QemuMachines({
      ...{ domains: config.domains, stateDir: config.stateDir },
      lowersIoPriority: config.ioPriority !== undefined,
    }),
    layers: new QemuLayerMergers({ domains: config.domains, runtimeRoot }),
    snapshotFiles,
    internals: new QemuInternalSnapshots(config.domains),
    volumes: lvmVolumes,
    host: new QemuHostCleaner(),
    clock,
    log,
    meter,
    client: LOCAL_CLIENT,
    drivers: new QemuDriverFactory({
      domains: config.domains,
      domainSnapshots,
      clock,
      runtimeRoot,
      log,
      cbwTimeoutMs: config.scratch.cbwTimeout,
    }),
    readers: new NbdReaderFactory(),
    images,
    outputs: outputDirectories,
    diskTargets: new QemuDiskTargets({ runtimeRoot }),
    repositories: new Map(
      config.repositories.map(({ name, path, reserve, compression, encryption }) => [
        name,
        new DirectoryRepository({
          ...{ name, path, images, reserveBytes: reserve, compression, encryption, runtimeRoot },
        }),
      ]),
    ),
    domains: config.domains.map(({ name }) => name),
    machineFiles: new Map(config.domains.map(({ name, machineFiles }) => [name, machineFiles ?? []])),
    quiesce: new Map(
      config.domains.flatMap((domain) => {
        const settings = quiesceSettings(domain);
        return settings === undefined ? [] : [[domain.name, settings]];
      }),
    ),
    scratchDir: config.scratchDir,
    scratch: new ScratchDirectory({ path: config.scratchDir, reserveBytes: config.scratch.reserve }),
    scratchLimits: new Map(
      config.domains.map(({ name, scratch }) => [name, scratch?.limit ?? config.scratch.limit]),
    ),
    retention: (repository, domain) => retentionPolicy(config, repository, domain),
    parallelDisks: config.parallelDisks,
    sampleShare: config.sample,
    limits: defaultLimits(config),
    programs,
    jobs: {
      list: configuredJobs(config),
      limits: jobLimits(config),
      runner: new JobRunner({ store, clock, log }, RUN_STEPS),
      toJson: runJson,
    },
    webhooks,
    ...(fronts === undefined ? {} : { fronts }),
  };
  if (changeNothing) return context;
  await sweepRuntimeDirectories(runtimeRoot);
  await recoverAll(context);
  await fronts?.use(context);
  return context;
}

async function makeFronts(
  nbd: Config["nbd"],
  parts: { readonly store: StateDirectory; readonly clock: Clock; readonly log: Logger },
): Promise<ExportFronts> {
  const opener = new NbdFronts({
    tcp: nbd && { address: nbd.address, tls: nbdTlsPaths(nbd) ?? "plaintext" },
    limits: nbd && {
      handshakeMs: nbd.handshakeTimeout,
      connections: nbd.connections,
      connectionsPerClient: nbd.connectionsPerClient,
    },
    clock: parts.clock,
    logger: parts.log,
  });
  await opener.check();
  return new ExportFronts({
    ...parts,
    opener,
    idleMs: nbd?.idleTimeout ?? SOCKET_IDLE_MS,
    bytesPerSecond: nbd?.bytesPerSecond,
  });
}

/** Of readers of a Unix socket, where the configuration says nothing of remote ones. */
const SOCKET_IDLE_MS = 300_000;
