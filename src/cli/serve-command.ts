import type { Command } from "@commander-js/extra-typings";
import type { Logger } from "pino";
import {
  agentSocket,
  claimAgent,
  claimMetricsAddress,
  type Config,
  formatHostPort,
  houseKeeper,
  loadConfig,
  openAccess,
  reloadedConfig,
  scheduleKeeper,
  type ServiceContext,
  shareSocket,
} from "../agent.js";
import type { AgentMetrics } from "../api/metrics.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import { findConfiguration } from "./configuration-file.js";
import { createLogger } from "./logger.js";
import { packageVersion } from "./package-version.js";
import { ServiceManager } from "./service-manager.js";
import type { GlobalOptions, SessionSurroundings } from "./session.js";

/** What `fleece serve` is run with. */
export type ServeAgent = () => Promise<void>;

export function describeServeCommand(command: Command, serve: ServeAgent): void {
  command
    .summary("run the agent that commands talk to")
    .description(
      "Run the agent: it answers the API over gRPC on a Unix socket, which every command uses that is given without " +
        "--embedded, and over TLS on a TCP address if one is configured. Runs until it is interrupted (SIGINT or SIGTERM); " +
        "then calls have a grace period to end, unless a second signal comes. SIGHUP makes it read its configuration again.",
    )
    .action(() => serve());
}

/** Runs the agent until the signal fires. Fails with AGENT_RUNNING if there is one already. */
export async function serveAgent(surroundings: SessionSurroundings, options: GlobalOptions): Promise<void> {
  const { stdout, progress, signal, env } = surroundings;
  if (options.agent !== undefined) {
    throw new FleeceError("INVALID_ARGUMENT", "Expected no --agent, which is for commands that talk to one");
  }
  const file = findConfiguration(options.config, surroundings);
  let config = await loadConfig(file);
  const log = await createLogger(options.logLevel ?? config.logLevel, progress.log);
  const manager = new ServiceManager(env, log);
  const socketPath = agentSocket(config);
  await using _claim = await claimAgent(config);
  const { tcp, ...access } = await openAccess(config);
  const metricsAddress = await claimMetricsAddress(config);
  // Loaded only here: other commands should not wait for them.
  const [{ ApiServer }, { openRequests }, { AgentMetrics }, { serveMetrics }] = await Promise.all([
    import("../api/server.js"),
    import("../api/repeatable.js"),
    import("../api/metrics.js"),
    import("../api/metrics-server.js"),
  ]);
  const metrics = new AgentMetrics(packageVersion());
  const context = await surroundings.startAgent(config, log, { meter: metrics, fronts: true });
  const { fronts, jobs } = context;
  await using _fronts = fronts;
  signal.throwIfAborted();
  const requests = await openRequests(context);
  const server = new ApiServer({ context, requests, log, calls: metrics, ...access });
  await using housekeeping = houseKeeper();
  await using schedule = scheduleKeeper();
  const followers: readonly Follower[] = [
    metrics,
    server,
    housekeeping,
    schedule,
    ...(fronts === undefined ? [] : [fronts]),
  ];
  await followAll(followers, context);
  await using metricsServer =
    metricsAddress === undefined ? undefined : await serveMetrics(metrics, metricsAddress, log);
  const reload: Reload = {
    file,
    log,
    level: options.logLevel,
    surroundings,
    metrics,
    fronts,
    runner: jobs.runner,
    followers,
  };
  await using _alive = manager.keepAlive(context.clock);
  await using _reload = onHangup(async () => {
    await manager.reloading();
    config = await readAgain(config, reload);
    await manager.ready(`Answers on ${socketPath}`);
  });
  try {
    await server.listen(socketPath);
    await shareSocket(config);
    const bound = tcp === undefined ? undefined : await server.listenTls(tcp.address, tcp.tls);
    const { pid } = process;
    log.info({ socket: socketPath, ...bound, metricsPort: metricsServer?.port, pid }, "The agent answers");
    if (options.json !== true) {
      const and = bound === undefined ? "" : ` and by TLS on ${formatHostPort(bound)}`;
      stdout.write(`The agent answers on ${socketPath}${and}\n`);
    }
    await manager.ready(`Answers on ${socketPath}`);
    await aborted(signal);
    log.info({ reason: errorMessage(signal.reason) }, "The agent ends");
  } finally {
    using _impatience = exitOnSignal(log);
    // No run begins any more.
    await schedule[Symbol.asyncDispose]();
    await Promise.all([
      manager.stopping(),
      housekeeping[Symbol.asyncDispose](),
      jobs.runner.close(),
      server.close(config.api.shutdownGrace),
    ]);
  }
  await access.audit.write({ event: "stop" });
  log.info({}, "The agent has ended");
}

/** What works with the newest context. */
interface Follower {
  use(context: ServiceContext): void | Promise<void>;
}

async function followAll(followers: readonly Follower[], context: ServiceContext): Promise<void> {
  for (const follower of followers) await follower.use(context);
}

interface Reload {
  readonly file: string;
  readonly log: Logger;
  /** Of the command line: stronger than the file's. */
  readonly level: GlobalOptions["logLevel"];
  readonly surroundings: SessionSurroundings;
  readonly metrics: AgentMetrics;
  /** They live as long as the agent. */
  readonly fronts: ServiceContext["fronts"];
  /** So do the runs of jobs. */
  readonly runner: ServiceContext["jobs"]["runner"];
  readonly followers: readonly Follower[];
}

/** Never fails: returns the configuration that is in force from now on, which is the old one if the file's is of no use. */
async function readAgain(before: Config, reload: Reload): Promise<Config> {
  const { file, log, level, surroundings, metrics: meter, fronts, runner, followers } = reload;
  try {
    const { config, refused } = reloadedConfig(before, await loadConfig(file));
    log.level = level ?? config.logLevel;
    for (const key of refused) log.warn({ key }, `${key} stays as it was: only a restart changes it`);
    // What killed processes left was put in order at the start; the calls that run now are not killed.
    const context = await surroundings.startAgent(config, log, { changeNothing: true, meter });
    const jobs = { ...context.jobs, runner };
    await followAll(followers, { ...context, jobs, ...(fronts === undefined ? {} : { fronts }) });
    meter.reloaded("done");
    log.info({ file }, "The configuration was read again");
    return config;
  } catch (error) {
    meter.reloaded("failed");
    const facts = error instanceof FleeceError ? { file, code: error.code } : { file, err: error };
    log.error(facts, `The configuration stays as it was: ${errorMessage(error)}`);
    return before;
  }
}

/** One after the other. Disposed of, it waits for the last. */
function onHangup(action: () => Promise<void>): AsyncDisposable {
  let last = Promise.resolve();
  const listener = (): void => {
    last = last.then(action);
  };
  process.on("SIGHUP", listener);
  return {
    async [Symbol.asyncDispose]() {
      process.off("SIGHUP", listener);
      await last;
    },
  };
}

/** What runs is in the journal: the next start undoes it. A guest that is held or frozen has its guard. */
function exitOnSignal(log: Logger): Disposable {
  const listener = (name: NodeJS.Signals): void => {
    log.warn({ signal: name }, "The agent ends at once; its next start undoes what ran");
    process.exit(1);
  };
  for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, listener);
  return {
    [Symbol.dispose]: () => {
      for (const name of ["SIGINT", "SIGTERM"] as const) process.off(name, listener);
    },
  };
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
