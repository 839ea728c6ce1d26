import { type ChildProcess, spawn } from "node:child_process";
import { constants, open, type FileHandle, readFile } from "node:fs/promises";
import { basename } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { UndoEntry } from "../../model/undo.js";
import type { MachineProcess, MachineStart } from "../../model/machine-start.js";
import { connectQmp, isQmpError, type QmpSession } from "../../qmp/index.js";
import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { openExisting } from "../durable-files.js";
import { endProcess } from "../end-daemon.js";
import { cleanOutput, toolFailure } from "../tool-failure.js";
import { describeProcess, findByArguments } from "./machine-process.js";
import { takeBack } from "./moved-paths.js";

/** QEMU listens within tens of milliseconds; one with much preallocated memory takes longer. */
const START_TIMEOUT_MS = 60_000;
const POLL_MS = 10;
/** How long after its exit the end of a QEMU may take to become known here. */
const OBITUARY_MS = 2_000;
/** QEMU's words are short; what a broken one repeats for ever is not of interest. */
const MAX_LOG_BYTES = 65_536;

/** The descriptor by which a QEMU of ours has the memory image that it is to load: the first after the standard ones. */
export const MEMORY_DESCRIPTOR = 3;

export interface StartedMachine {
  readonly process: MachineProcess;
  readonly qmp: QmpSession;
  /** Its last words, once it has ended; undefined if it does not within a moment. */
  obituary(): Promise<string | undefined>;
}

/**
 * Starts a QEMU in a session of its own, so that it outlives us: with standard output thrown away, for a serial port may write there
 * without end, and error output in a file that begins anew. Working directory, environment and user are those of the QEMU whose place
 * it takes, if there is one. Ends it if its monitor does not answer.
 */
export async function startMachine(
  start: MachineStart,
  {
    monitor,
    logPath,
    signal,
    prefix = [],
  }: { monitor: string; logPath: string; signal: AbortSignal | undefined; prefix?: readonly string[] },
): Promise<StartedMachine> {
  const log = await openLog(logPath);
  let memory: FileHandle | undefined;
  let child: ChildProcess;
  try {
    memory = start.memory === undefined ? undefined : await openExisting(start.memory);
    child = spawnMachine(start, prefix, log.fd, memory?.fd);
    await spawned(child);
  } finally {
    await log.close();
    await memory?.close();
  }
  child.unref();
  const program = basename(start.arguments[0] ?? "");
  const ended = new Promise<string>((resolve) => {
    child.once("exit", (code, killer) => {
      const how = killer === null ? `ended with exit code ${code ?? "unknown"}` : `was ended by ${killer}`;
      void readLog(logPath).then((words) => {
        resolve([how, cleanOutput(words, program)].filter(Boolean).join(": "));
      });
    });
  });
  const { pid } = child;
  try {
    const qmp = await connect(monitor, ended, signal);
    // Only now: before `exec` it is still a copy of us.
    const process = pid === undefined ? undefined : await describeProcess(pid);
    if (process !== undefined) {
      const obituary = () => Promise.race([ended, delay(OBITUARY_MS, undefined, { ref: false })]);
      return { process, qmp, obituary };
    }
    await qmp.close();
    throw new FleeceError("QEMU_FAILED", `${program} ${await ended}`);
  } catch (error) {
    child.kill("SIGKILL");
    await ended;
    throw error;
  }
}

function spawnMachine(
  { arguments: list, like }: MachineStart,
  prefix: readonly string[],
  log: number,
  memory: number | undefined,
): ChildProcess {
  const command = [...prefix, ...asUser(like), ...list];
  const [program = "", ...args] = command;
  const environment = like === undefined || like.environment.length === 0 ? undefined : like.environment;
  return spawn(program, args, {
    cwd: like?.cwd ?? "/",
    detached: true,
    stdio: ["ignore", "ignore", log, ...(memory === undefined ? [] : [memory])],
    env: environment === undefined ? process.env : Object.fromEntries(environment.map(splitEntry)),
  });
}

function splitEntry(entry: string): [string, string] {
  const at = entry.indexOf("=");
  return [entry.slice(0, at), entry.slice(at + 1)];
}

/** A QEMU that has changed its user by itself (`-runas`) does so again. */
function asUser(like: MachineProcess | undefined): string[] {
  if (like === undefined || like.uid === process.geteuid?.() || like.arguments.includes("-runas")) return [];
  const groups = like.groups.length === 0 ? ["--clear-groups"] : ["--groups", like.groups.join(",")];
  return ["setpriv", "--reuid", String(like.uid), "--regid", String(like.gid), ...groups, "--"];
}

async function spawned(child: ChildProcess): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    child.once("spawn", resolve);
    child.once("error", (cause) =>
      reject(
        toolFailure(child.spawnfile, { errno: errnoOf(cause), output: "", ending: "did not start", cause }),
      ),
    );
  });
}

async function connect(
  monitor: string,
  ended: Promise<string>,
  signal: AbortSignal | undefined,
): Promise<QmpSession> {
  const deadline = AbortSignal.timeout(START_TIMEOUT_MS);
  const ending = ended.then((words) => new FleeceError("QEMU_FAILED", `The new QEMU ${words}`));
  for (;;) {
    const attempt = connectQmp({ socketPath: monitor, signal }).catch((error: unknown) => {
      const isEarly =
        isQmpError(error, "QMP_SOCKET_ABSENT", "QMP_REFUSED", "QMP_DISCONNECTED") && !deadline.aborted;
      if (!isEarly) throw error;
      return undefined;
    });
    const first = await Promise.race([attempt, ending]);
    if (first instanceof FleeceError) {
      void attempt.then((qmp) => qmp?.close()).catch(() => undefined);
      throw first;
    }
    if (first !== undefined) return first;
    const words = await Promise.race([ending, delay(POLL_MS, undefined)]);
    if (words !== undefined) throw words;
  }
}

async function openLog(path: string): Promise<FileHandle> {
  const { O_APPEND, O_CREAT, O_NOFOLLOW, O_TRUNC, O_WRONLY } = constants;
  try {
    return await open(path, O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600);
  } catch (error) {
    throw fileError(error, "write", path);
  }
}

async function readLog(path: string): Promise<string> {
  return (await readFile(path, "utf8").catch(() => "")).slice(-MAX_LOG_BYTES);
}

/** Of a QEMU that has not run yet: nothing that it holds is wanted. */
export async function undoStart({ arguments: list, moved }: UndoEntry & { kind: "machine" }): Promise<void> {
  for (const process of await findByArguments(list)) await endProcess(process, { atOnce: true });
  await takeBack(moved);
}
