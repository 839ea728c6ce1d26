import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Config } from "./model/config.js";
import { nbdTlsPaths, parseConfig, quiesceSettings } from "./model/config.js";
import { claimAgentPlace } from "./drivers/agent-claim.js";
import { QemuDriverFactory } from "./drivers/driver-factory.js";
import { NbdFronts } from "./drivers/front/front-opener.js";
import { QemuHostCleaner } from "./drivers/host-cleaner.js";
import { StorageDaemonImages } from "./drivers/images.js";
import { NbdReaderFactory } from "./drivers/nbd-io.js";
import { outputDirectories } from "./drivers/output-directory.js";
import { DirectoryRepository } from "./drivers/repository/directory-repository.js";
import { checkSocketPath, defaultRuntimeRoot, sweepRuntimeDirectories } from "./drivers/runtime-directory.js";
import { ScratchDirectory } from "./drivers/scratch-directory.js";
import { StateDirectory } from "./drivers/state-directory.js";
import { systemClock } from "./drivers/system-clock.js";
import type { Clock } from "./ports/clock.js";
import type { Logger } from "./ports/logger.js";
import type { ServiceContext } from "./services/context.js";
import { ExportFronts } from "./services/export-fronts.js";
import { recoverAll } from "./services/recovery.js";
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

/** Where the agent of this configuration answers. Fails with INVALID_ARGUMENT if the path is too long for a socket. */
export function agentSocket(config: Config): string {
  return checkSocketPath(config.api.socket ?? join(runtimeRootOf(config), "agent.sock"));
}

/** Makes this process the agent of this configuration until it lets go. Fails with AGENT_RUNNING. */
export async function claimAgent(config: Config): Promise<AsyncDisposable> {
  const { stateDir } = config;
  return claimAgentPlace({ stateDir, runtimeRoot: runtimeRootOf(config), socketPath: agentSocket(config) });
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
    fronts: withFronts = false,
  }: { readonly changeNothing?: boolean; readonly fronts?: boolean } = {},
): Promise<ServiceContext> {
  const clock = systemClock;
  const runtimeRoot = runtimeRootOf(config);
  const store = new StateDirectory(config.stateDir);
  const fronts = withFronts ? await makeFronts(config, { store, clock, log }) : undefined;
  const images = new StorageDaemonImages({ runtimeRoot });
  const context: ServiceContext = {
    store,
    host: new QemuHostCleaner(),
    clock,
    log,
    drivers: new QemuDriverFactory({
      domains: config.domains,
      clock,
      runtimeRoot,
      log,
      cbwTimeoutMs: config.scratch.cbwTimeout,
    }),
    readers: new NbdReaderFactory(),
    images,
    outputs: outputDirectories,
    repositories: new Map(
      config.repositories.map(({ name, path }) => [
        name,
        new DirectoryRepository({ name, path, images, runtimeRoot }),
      ]),
    ),
    domains: config.domains.map(({ name }) => name),
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
    parallelDisks: config.parallelDisks,
    ...(fronts === undefined ? {} : { fronts }),
  };
  if (changeNothing) return context;
  await sweepRuntimeDirectories(runtimeRoot);
  await recoverAll(context);
  await fronts?.start();
  return context;
}

async function makeFronts(
  { nbd, domains }: Config,
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
    domains: domains.map(({ name }) => name),
    idleMs: nbd?.idleTimeout ?? SOCKET_IDLE_MS,
    bytesPerSecond: nbd?.bytesPerSecond,
  });
}

/** Of readers of a Unix socket, where the configuration says nothing of remote ones. */
const SOCKET_IDLE_MS = 300_000;
