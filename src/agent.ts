import { constants } from "node:fs";
import { access, readFile, stat } from "node:fs/promises";
import type { Config } from "./model/config.js";
import { parseConfig, quiesceSettings } from "./model/config.js";
import { QemuDriverFactory } from "./drivers/driver-factory.js";
import { QemuHostCleaner } from "./drivers/host-cleaner.js";
import { StorageDaemonImages } from "./drivers/images.js";
import { NbdReaderFactory } from "./drivers/nbd-io.js";
import { outputDirectories } from "./drivers/output-directory.js";
import { DirectoryRepository } from "./drivers/repository/directory-repository.js";
import { defaultRuntimeRoot, sweepRuntimeDirectories } from "./drivers/runtime-directory.js";
import { StateDirectory } from "./drivers/state-directory.js";
import { systemClock } from "./drivers/system-clock.js";
import type { Logger } from "./ports/logger.js";
import type { ServiceContext } from "./services/context.js";
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

/**
 * The composition root: the only place that knows both the services and the drivers behind their ports. Puts in order
 * what killed processes left behind before anything else is done.
 */
export async function startAgent(config: Config, log: Logger): Promise<ServiceContext> {
  const clock = systemClock;
  const runtimeRoot = config.runtimeDir ?? defaultRuntimeRoot();
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
    checkScratch: () => checkScratch(config.scratchDir),
    scratchDir: config.scratchDir,
    parallelDisks: config.parallelDisks,
  };
  await sweepRuntimeDirectories(runtimeRoot);
  await recoverAll(context);
  return context;
}

/** A missing directory is not made: it may be a file system that is not mounted. */
async function checkScratch(directory: string): Promise<void> {
  const refuse = (code: "PATH_NOT_FOUND" | "PERMISSION_DENIED", why: string, cause?: unknown): FleeceError =>
    new FleeceError(code, `The scratch directory ${directory} ${why}`, { cause, facts: { path: directory } });
  let found;
  try {
    found = await stat(directory);
  } catch (error) {
    throw refuse("PATH_NOT_FOUND", "does not exist; create it, or mount what belongs there", error);
  }
  if (!found.isDirectory()) throw refuse("PATH_NOT_FOUND", "is not a directory");
  try {
    await access(directory, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw refuse("PERMISSION_DENIED", "cannot be written to", error);
  }
}
