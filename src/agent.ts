import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Config } from "./model/config.js";
import { parseConfig, quiesceSettings, shutdownGraceMs } from "./model/config.js";
import { claimAgentPlace } from "./drivers/agent-claim.js";
import { QemuDriverFactory } from "./drivers/driver-factory.js";
import { QemuHostCleaner } from "./drivers/host-cleaner.js";
import { StorageDaemonImages } from "./drivers/images.js";
import { NbdReaderFactory } from "./drivers/nbd-io.js";
import { outputDirectories } from "./drivers/output-directory.js";
import { DirectoryRepository } from "./drivers/repository/directory-repository.js";
import { checkSocketPath, defaultRuntimeRoot, sweepRuntimeDirectories } from "./drivers/runtime-directory.js";
import { ScratchDirectory } from "./drivers/scratch-directory.js";
import { StateDirectory } from "./drivers/state-directory.js";
import { systemClock } from "./drivers/system-clock.js";
import type { Logger } from "./ports/logger.js";
import type { ServiceContext } from "./services/context.js";
import { keepHouse, type Duty } from "./services/housekeeping.js";
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

/** Besides the ends of leases. */
const DUTIES: readonly Duty[] = [];

/** Looks after leases and leftovers until it is disposed of. */
export function startHousekeeping(context: ServiceContext): AsyncDisposable {
  const stop = new AbortController();
  const kept = keepHouse(context, DUTIES, stop.signal);
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await kept;
    },
  };
}

/** How long calls may run on when the agent ends. */
export const gracePeriodMs = shutdownGraceMs;

function runtimeRootOf({ runtimeDir }: Config): string {
  return runtimeDir ?? defaultRuntimeRoot();
}

/**
 * The composition root: the only place that knows both the services and the drivers behind their ports. Puts in order
 * what killed processes left behind before anything else is done, unless it is only to look (`changeNothing`).
 */
export async function startAgent(
  config: Config,
  log: Logger,
  { changeNothing = false }: { readonly changeNothing?: boolean } = {},
): Promise<ServiceContext> {
  const clock = systemClock;
  const runtimeRoot = runtimeRootOf(config);
  const images = new StorageDaemonImages({ runtimeRoot });
  const context: ServiceContext = {
    store: new StateDirectory(config.stateDir),
    host: new QemuHostCleaner(),
    clock,
    log,
    drivers: new QemuDriverFactory({ domains: config.domains, clock, runtimeRoot }),
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
  };
  if (changeNothing) return context;
  await sweepRuntimeDirectories(runtimeRoot);
  await recoverAll(context);
  return context;
}
