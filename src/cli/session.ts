import { resolve } from "node:path";
import {
  agentSocket,
  bareConfig,
  type Config,
  loadConfig,
  readClientFiles,
  type startAgent,
} from "../agent.js";
import type { messageToText as JsonPrinter } from "../api/json.js";
import type { Api } from "../api/call-types.js";
import { embeddedApi } from "../api/calls.js";
import type { MessageTypes } from "../api/messages.js";
import { FleeceError } from "../shared/errors.js";
import { findConfiguration } from "./configuration-file.js";
import type { LogLevel } from "./logger.js";
import { createLogger } from "./logger.js";
import { type RemotePlace, remoteAgent } from "./remote-agent.js";
import type { ProgressView } from "./progress-view.js";
import type { TextStream } from "./streams.js";

/** What a command gets from outside; a test gives its own. */
export interface Surroundings {
  readonly stdout: TextStream;
  readonly stderr: TextStream;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
  readonly startAgent: typeof startAgent;
}

export interface GlobalOptions {
  readonly config?: string | undefined;
  readonly json?: true | undefined;
  readonly embedded?: true | undefined;
  readonly agent?: string | undefined;
  readonly certificate?: string | undefined;
  readonly key?: string | undefined;
  readonly ca?: string | undefined;
  readonly logLevel?: LogLevel | undefined;
}

/** One command under way: the API it works with, and where it tells what. */
export interface Session {
  readonly api: Api;
  readonly signal: AbortSignal;
  readonly progress: ProgressView;
  /** Whether the answer is read on a terminal. */
  readonly terminal: boolean;
  /** Paths of the command line are the caller's, not the agent's. */
  absolutePath(this: void, path: string): string;
  /** Prints the answer: as JSON if that was asked for, else as `text` has it. */
  answer<Name extends keyof MessageTypes>(
    this: void,
    name: Name,
    message: MessageTypes[Name],
    text: (message: MessageTypes[Name]) => string,
  ): void;
}

/** What the verbs are given to run their actions with. */
export type RunAction = (action: (session: Session) => Promise<void>, options?: RunOptions) => Promise<void>;

export interface RunOptions {
  /** The command only looks: what killed commands left stays as it is, too. */
  readonly changeNothing?: boolean;
  /** The directory of a repository that the command works on alone, embedded and without a configuration. */
  readonly repositoryPath?: string | undefined;
  /** The file with its key. */
  readonly keyFile?: string | undefined;
}

/** With what one command has of its own. */
export interface SessionSurroundings extends Surroundings {
  readonly progress: ProgressView;
  readonly signal: AbortSignal;
}

/** Runs the action of a command. Fails with AGENT_UNREACHABLE, CONFIG_INVALID, CONFIG_NOT_FOUND, or as the action does. */
export async function runSession(
  surroundings: SessionSurroundings,
  options: GlobalOptions,
  action: (session: Session) => Promise<void>,
  runOptions: RunOptions = {},
): Promise<void> {
  const { stdout, cwd, progress, signal } = surroundings;
  const json = options.json === true ? await loadJsonPrinter() : undefined;
  await using bare = await openBare(surroundings, options, runOptions);
  const remote = bare === undefined ? remoteAgent(options, surroundings) : undefined;
  using connected = bare === undefined ? await connectAgent(remote, options, surroundings) : undefined;
  const api = connected ?? (await startEmbedded(surroundings, options, bare?.config, runOptions));
  signal.throwIfAborted();
  await action({
    api,
    signal,
    progress,
    terminal: stdout.isTTY === true,
    // Of another host, only absolute paths mean anything; its agent refuses others.
    absolutePath: (path) => (remote === undefined ? resolve(cwd, path) : path),
    answer: (name, message, text) => {
      progress.stop();
      stdout.write(json === undefined ? text(message) : json(name, message));
    },
  });
}

/** Undefined for a command that was not told to work on a repository alone. */
async function openBare(
  { cwd }: SessionSurroundings,
  { config, agent }: GlobalOptions,
  { repositoryPath, keyFile }: RunOptions,
): Promise<Awaited<ReturnType<typeof bareConfig>> | undefined> {
  if (repositoryPath === undefined) {
    if (keyFile === undefined) return undefined;
    throw new FleeceError("INVALID_ARGUMENT", "Expected --repository-path beside --key-file, got none");
  }
  if (config === undefined && agent === undefined) {
    return bareConfig(resolve(cwd, repositoryPath), keyFile && resolve(cwd, keyFile));
  }
  const other = config === undefined ? "--agent" : "--config";
  throw new FleeceError("INVALID_ARGUMENT", `Expected either --repository-path or ${other}, got both`);
}

async function startEmbedded(
  surroundings: SessionSurroundings,
  { config: file, logLevel }: GlobalOptions,
  bare: Config | undefined,
  { changeNothing = false }: RunOptions,
): Promise<Api> {
  const config = bare ?? (await loadConfig(findConfiguration(file, surroundings)));
  const log = await createLogger(logLevel ?? config.logLevel, surroundings.progress.log);
  return embeddedApi(await surroundings.startAgent(config, log, { changeNothing }));
}

/** Undefined for the embedded mode. gRPC is loaded only here: it takes as long as all the rest. */
async function connectAgent(
  remote: RemotePlace | undefined,
  { config, embedded }: GlobalOptions,
  surroundings: SessionSurroundings,
): Promise<(Api & Disposable) | undefined> {
  if (embedded === true) return undefined;
  const agent =
    remote === undefined
      ? agentSocket(await loadConfig(findConfiguration(config, surroundings)))
      : { ...remote.address, ...(await readClientFiles(remote)) };
  const { connectApi } = await import("../api/client.js");
  return connectApi(agent);
}

/**
 * Loaded only when needed, for it takes a tenth of a second; but before anything is done, so that an installation without
 * its .proto files fails before a backup and not after it.
 */
async function loadJsonPrinter(): Promise<typeof JsonPrinter> {
  const [{ messageToText }, { protoRoot }] = await Promise.all([
    import("../api/json.js"),
    import("../api/proto.js"),
  ]);
  protoRoot();
  return messageToText;
}
