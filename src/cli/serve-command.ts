import type { Command } from "@commander-js/extra-typings";
import { agentSocket, claimAgent, loadConfig } from "../agent.js";
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
        "--embedded. Runs until it is interrupted (SIGINT or SIGTERM); then calls have a grace period to end.",
    )
    .action(() => serve());
}

/** Runs the agent until the signal fires. Fails with AGENT_RUNNING if there is one already. */
export async function serveAgent(surroundings: SessionSurroundings, options: GlobalOptions): Promise<void> {
  const { stdout, progress, signal } = surroundings;
  const config = await loadConfig(findConfiguration(options.config, surroundings));
  const log = await createLogger(options.logLevel ?? config.logLevel, progress.log);
  const socketPath = agentSocket(config);
  await using _claim = await claimAgent(config);
  const context = await surroundings.startAgent(config, log, { fronts: true });
  await using _fronts = context.fronts;
  signal.throwIfAborted();
  // Loaded only here: other commands should not wait for it.
  const { ApiServer } = await import("../api/server.js");
  const server = new ApiServer({ context, log });
  await server.listen(socketPath);
  log.info({ socket: socketPath }, "The agent answers");
  if (options.json !== true) stdout.write(`The agent answers on ${socketPath}\n`);
  await aborted(signal);
  log.info({}, "The agent ends");
  await server.close(config.api.shutdownGrace);
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
