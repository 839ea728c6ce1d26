import type { Command } from "@commander-js/extra-typings";
import {
  agentSocket,
  claimAgent,
  formatHostPort,
  gracePeriodMs,
  loadConfig,
  openAccess,
  shareSocket,
} from "../agent.js";
import { FleeceError } from "../shared/errors.js";
import { findConfiguration } from "./configuration-file.js";
import { createLogger } from "./logger.js";
import type { GlobalOptions, SessionSurroundings } from "./session.js";

/** What `fleece serve` is run with. */
export type ServeAgent = () => Promise<void>;

export function describeServeCommand(command: Command, serve: ServeAgent): void {
  command
    .summary("run the agent that commands talk to")
    .description(
      "Run the agent: it answers the API over gRPC on a Unix socket, which every command uses that is given without " +
        "--embedded, and over TLS on a TCP address if one is configured. Runs until it is interrupted (SIGINT or SIGTERM); then calls have a grace period to end.",
    )
    .action(() => serve());
}

/** Runs the agent until the signal fires. Fails with AGENT_RUNNING if there is one already. */
export async function serveAgent(surroundings: SessionSurroundings, options: GlobalOptions): Promise<void> {
  const { stdout, progress, signal } = surroundings;
  if (options.agent !== undefined) {
    throw new FleeceError("INVALID_ARGUMENT", "Expected no --agent, which is for commands that talk to one");
  }
  const config = await loadConfig(findConfiguration(options.config, surroundings));
  const log = await createLogger(options.logLevel ?? config.logLevel, progress.log);
  const socketPath = agentSocket(config);
  await using _claim = await claimAgent(config);
  const { tcp, ...access } = await openAccess(config);
  const context = await surroundings.startAgent(config, log);
  signal.throwIfAborted();
  // Loaded only here: other commands should not wait for it.
  const { ApiServer } = await import("../api/server.js");
  const server = new ApiServer({ context, log, ...access });
  try {
    await server.listen(socketPath);
    await shareSocket(config);
    const bound = tcp === undefined ? undefined : await server.listenTls(tcp.address, tcp.tls);
    log.info({ socket: socketPath, ...bound }, "The agent answers");
    if (options.json !== true) {
      const and = bound === undefined ? "" : ` and by TLS on ${formatHostPort(bound)}`;
      stdout.write(`The agent answers on ${socketPath}${and}\n`);
    }
    await aborted(signal);
    log.info({}, "The agent ends");
  } finally {
    await server.close(gracePeriodMs(config));
  }
  await access.audit.write({ event: "stop" });
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
