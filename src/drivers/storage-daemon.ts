import { lstat, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { errnoOf, errorMessage, FleeceError } from "../shared/errors.js";
import {
  connectQmp,
  isQmpError,
  type ExecuteParameters,
  type QmpCommandName,
  type QmpReturns,
  type QmpSession,
} from "../qmp/index.js";
import { exists } from "./durable-files.js";
import { endProcess, type EndProcessOptions, findDaemons } from "./end-daemon.js";
import { type ProcessOwner } from "./process-owner.js";
import { checkSocketPath, makeRuntimeDirectory } from "./runtime-directory.js";
import { DAEMON, type DaemonLifetime, type DaemonProcess, readLog, spawnDaemon } from "./spawn-daemon.js";
import { cleanOutput, toolFailure } from "./tool-failure.js";

/** A daemon listens within milliseconds; a host that is out of memory takes longer. */
const START_TIMEOUT_MS = 30_000;
const POLL_MS = 5;
/** How long after a broken connection the daemon's end may take to become known. */
const OBITUARY_MS = 500;

export interface StartDaemonOptions {
  /** Absolute and short. Made here with mode 0700, removed when the daemon is ended; its parent is a runtime root. */
  readonly directory: string;
  /** `process`: dies with this process, also on SIGKILL. `detached`: lives until `endDaemon(directory)`. */
  readonly lifetime: DaemonLifetime;
  /** Of the NBD server; default: `nbd.sock` in the directory. Must not exist. */
  readonly socketPath?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A `qemu-storage-daemon` of ours, with a QMP session and an NBD server on a Unix socket, both for this user alone. */
export class StorageDaemon implements AsyncDisposable {
  readonly directory: string;
  readonly nbdSocketPath: string;
  readonly qmp: QmpSession;
  /** Resolves with the reason when the daemon ends without `stop`. Never rejects. */
  readonly ended: Promise<string>;
  /** Resolves with the reason when the daemon has ended in whatever way, also after `stop` or `detach`. */
  readonly gone: Promise<string>;
  readonly #owner: ProcessOwner;
  #stopped: Promise<void> | undefined;

  private constructor(parts: {
    directory: string;
    nbdSocketPath: string;
    qmp: QmpSession;
    process: Pick<DaemonProcess, "owner" | "ended">;
  }) {
    this.directory = parts.directory;
    this.nbdSocketPath = parts.nbdSocketPath;
    this.qmp = parts.qmp;
    this.#owner = parts.process.owner;
    this.gone = parts.process.ended;
    this.ended = new Promise((resolve) => {
      void parts.process.ended.then((reason) => {
        if (this.#stopped === undefined) resolve(reason);
      });
    });
  }

  /** Fails with ALREADY_EXISTS, TOOL_MISSING, or QEMU_FAILED with the daemon's words; leaves nothing then. */
  static async start(options: StartDaemonOptions): Promise<StorageDaemon> {
    const { directory, lifetime, signal } = options;
    const nbdSocketPath = checkSocketPath(options.socketPath ?? join(directory, "nbd.sock"));
    const qmpPath = checkSocketPath(join(directory, "qmp.sock"));
    signal?.throwIfAborted();
    await checkAbsent(nbdSocketPath);
    await makeRuntimeDirectory(directory);
    let process: DaemonProcess | undefined;
    try {
      process = await spawnDaemon(directory, nbdSocketPath, lifetime);
      const qmp = await connectWhenReady({ socketPath: qmpPath, nbdSocketPath }, process, signal);
      return new StorageDaemon({ directory, nbdSocketPath, qmp, process });
    } catch (error) {
      if (process !== undefined) {
        await endProcess(process.owner);
        await rm(nbdSocketPath, { force: true });
      }
      await rm(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** The detached daemon of `directory`, or undefined when none lives. Only one session at a time can be attached. */
  static async attach(directory: string, signal?: AbortSignal): Promise<StorageDaemon | undefined> {
    const [owner] = await findDaemons(directory);
    if (owner === undefined) return undefined;
    const { nbdSocketPath } = owner;
    const qmp = await connectQmp({ socketPath: join(directory, "qmp.sock"), signal }).catch(
      (error: unknown) => {
        signal?.throwIfAborted();
        throw new FleeceError("QEMU_FAILED", `The storage daemon in ${directory} does not answer`, {
          cause: error,
        });
      },
    );
    const ended = qmp.closed.then(() => lastWords(directory));
    return new StorageDaemon({ directory, nbdSocketPath, qmp, process: { owner, ended } });
  }

  /**
   * Why the daemon of `directory` has ended, or undefined while it lives. `gone` is that of the object that started it: only
   * the parent of a process learns how it ended; without it the daemon's last words must do.
   */
  static async obituary(
    directory: string,
    gone: Promise<string> | undefined,
    signal?: AbortSignal,
  ): Promise<FleeceError | undefined> {
    signal?.throwIfAborted();
    if ((await findDaemons(directory)).length > 0) return undefined;
    const reason = await (gone ?? lastWords(directory));
    return new FleeceError("QEMU_FAILED", `The storage daemon of the frozen disks is gone: ${reason}`);
  }

  get pid(): number {
    return this.#owner.pid;
  }

  /** A QMP command. QEMU_FAILED (or NO_SPACE and the like, by QEMU's words), also when the daemon has ended. */
  async execute<C extends QmpCommandName>(
    command: C,
    ...parameters: ExecuteParameters<C>
  ): Promise<QmpReturns<C>> {
    return await this.attempt(() => this.qmp.execute(command, ...parameters));
  }

  /** Runs what talks to `qmp` itself, with errors as `execute` has them. */
  async attempt<T>(action: (qmp: QmpSession) => Promise<T>): Promise<T> {
    try {
      return await action(this.qmp);
    } catch (error) {
      throw await this.#commandFailure(error);
    }
  }

  /**
   * The same error, or a better one: when the daemon has just ended, its last words are the cause of whatever failed
   * between it and us.
   */
  async explain(error: unknown): Promise<unknown> {
    if (this.#stopped !== undefined) return error;
    const timer = new AbortController();
    const timeout = delay(OBITUARY_MS, undefined, { signal: timer.signal }).catch(() => undefined);
    const reason = await Promise.race([this.ended, timeout]);
    timer.abort();
    return reason === undefined ? error : new FleeceError("QEMU_FAILED", reason, { cause: error });
  }

  /** Ends the daemon and removes its directory and sockets. Idempotent. Does not flush: delete the nodes first. */
  async stop(how: EndProcessOptions = {}): Promise<void> {
    this.#stopped ??= this.#stop(how);
    await this.#stopped;
  }

  /** Leaves a detached daemon to itself. */
  async detach(): Promise<void> {
    this.#stopped ??= Promise.resolve();
    await this.qmp.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #stop(how: EndProcessOptions): Promise<void> {
    await this.qmp.close();
    await endProcess(this.#owner, how);
    await this.gone;
    await rm(this.nbdSocketPath, { force: true });
    await rm(this.directory, { recursive: true, force: true });
  }

  async #commandFailure(error: unknown): Promise<unknown> {
    if (!isQmpError(error)) return error;
    if (error.code === "QMP_ABORTED") return error.cause ?? error;
    if (error.code !== "QMP_COMMAND_FAILED") {
      const failure = new FleeceError("QEMU_FAILED", `${DAEMON}: ${error.message}`, { cause: error });
      return this.explain(failure);
    }
    const output = cleanOutput(error.qemuText ?? error.message, DAEMON);
    return toolFailure(DAEMON, { output, ending: `refused ${error.command ?? "a command"}`, cause: error });
  }
}

async function lastWords(directory: string): Promise<string> {
  const words = cleanOutput(await readLog(directory), DAEMON);
  return words === "" ? `${DAEMON} ended` : `${DAEMON} ended: ${words}`;
}

/** QEMU would silently replace a socket that is in use by somebody else. */
async function checkAbsent(socketPath: string): Promise<void> {
  try {
    await lstat(socketPath);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return;
  }
  throw new FleeceError(
    "ALREADY_EXISTS",
    `Expected a socket path that is free, found something at ${socketPath}`,
    {
      facts: { path: socketPath },
    },
  );
}

/** The monitor greets from the main loop, that is, when all arguments have been carried out. */
/**
 * The NBD server comes after the monitor on the command line, so its socket says that the monitor is set up. Whoever connects
 * before that may be hung up on, greeted twice, or have bytes of a command lost (seen on 7.2, under load).
 */
async function untilSetUp(
  nbdSocketPath: string,
  process: DaemonProcess,
  { deadline, signal }: { readonly deadline: number; readonly signal: AbortSignal | undefined },
): Promise<void> {
  while (process.failure() === undefined && performance.now() < deadline && signal?.aborted !== true) {
    if (await exists(nbdSocketPath)) return;
    await Promise.race([process.ended, delay(POLL_MS)]);
  }
}

async function connectWhenReady(
  { socketPath, nbdSocketPath }: { readonly socketPath: string; readonly nbdSocketPath: string },
  process: DaemonProcess,
  signal: AbortSignal | undefined,
): Promise<QmpSession> {
  let failure: string | undefined;
  void process.ended.then((reason) => (failure = reason));
  const deadline = performance.now() + START_TIMEOUT_MS;
  await untilSetUp(nbdSocketPath, process, { deadline, signal });
  for (;;) {
    try {
      return await connectQmp({ socketPath, signal, connectTimeoutMs: START_TIMEOUT_MS });
    } catch (error) {
      signal?.throwIfAborted();
      // A daemon that is just starting to listen may hang up, under load; one that has ended says why below.
      const expected = isQmpError(error, "QMP_SOCKET_ABSENT", "QMP_REFUSED", "QMP_DISCONNECTED");
      if (!expected || performance.now() > deadline) {
        // A daemon that ended while it was connected to says more than its closed socket.
        if (!expected) await Promise.race([process.ended, delay(OBITUARY_MS)]);
        const words =
          failure ??
          (expected
            ? `${DAEMON} did not answer within ${START_TIMEOUT_MS / 1000} s`
            : `${DAEMON} could not be connected to: ${errorMessage(error)}`);
        throw process.failure() ?? new FleeceError("QEMU_FAILED", words, { cause: error });
      }
    }
    await Promise.race([process.ended, delay(POLL_MS)]);
    const ending = process.failure();
    if (ending !== undefined) throw ending;
  }
}
