import { type ChildProcess, spawn } from "node:child_process";
import { constants, open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { isMainThread } from "node:worker_threads";
import { errnoOf, FleeceError } from "../shared/errors.js";
import { monitorArgument, nbdServerArgument } from "./end-daemon.js";
import { type ProcessOwner, processOwner } from "./process-owner.js";
import { cleanOutput, toolFailure } from "./tool-failure.js";

export const DAEMON = "qemu-storage-daemon";

export type DaemonLifetime = "process" | "detached";

/** What is kept of the output: the last words say why a process ended. */
const MAX_OUTPUT_CHARACTERS = 8192;

export interface DaemonProcess {
  readonly owner: ProcessOwner;
  /** Resolves with the reason, in a sentence, whatever it was. */
  readonly ended: Promise<string>;
  /** The coded error, once the process has ended. */
  failure(): FleeceError | undefined;
}

/**
 * Requests of 1 MiB and more would make glibc map and unmap memory for each; keeping it made the daemon 20 to 45 %
 * faster (measured).
 */
const ALLOCATOR = { MALLOC_MMAP_THRESHOLD_: "67108864", MALLOC_TRIM_THRESHOLD_: "268435456" };

export async function spawnDaemon(
  directory: string,
  nbdSocketPath: string,
  lifetime: DaemonLifetime,
): Promise<DaemonProcess> {
  const daemon = [
    DAEMON,
    ...["--chardev", monitorArgument(directory), "--monitor", "chardev=qmp"],
    ...["--nbd-server", nbdServerArgument(nbdSocketPath)],
  ];
  const log = lifetime === "detached" ? await createLog(directory) : undefined;
  // The kernel then kills the daemon with us, also when we get SIGKILL (prctl(2), PR_SET_PDEATHSIG).
  const bound = ["setpriv", "--pdeathsig", "KILL", "--", ...daemon];
  try {
    const child = spawnPrivately(log === undefined ? bound : daemon, log?.fd ?? "pipe");
    return await watch(child, log === undefined ? collectOutput(child) : () => readLog(directory), lifetime);
  } finally {
    await log?.close();
  }
}

/** In a session of its own, so that Ctrl+C in our terminal is ours to handle, and with sockets for this user alone. */
function spawnPrivately(command: readonly string[], output: number | "pipe"): ChildProcess {
  const [program = "", ...args] = command;
  const start = (): ChildProcess =>
    spawn(program, args, {
      cwd: "/",
      detached: true,
      stdio: ["ignore", output, output],
      env: { ...process.env, ...ALLOCATOR, LC_ALL: "C" },
    });
  // Only the main thread may set the umask; a worker relies on the directory, which is 0700.
  if (!isMainThread) return start();
  const umask = process.umask(0o077);
  try {
    return start();
  } finally {
    process.umask(umask);
  }
}

async function watch(
  child: ChildProcess,
  output: () => string | Promise<string>,
  lifetime: DaemonLifetime,
): Promise<DaemonProcess> {
  let failure: FleeceError | undefined;
  const ended = new Promise<string>((resolve) => {
    child.once("close", (code, signal) => {
      void Promise.resolve(output()).then((words) => {
        failure = ending(code, signal, words);
        resolve(failure.message);
      });
    });
  });
  // Before anything is awaited, so that even a process that ended at once is still there as a zombie.
  const owner = child.pid === undefined ? undefined : processOwner(child.pid);
  await new Promise((resolve, reject) => {
    child.once("spawn", resolve);
    child.once("error", (error) =>
      reject(
        toolFailure(child.spawnfile, {
          errno: errnoOf(error),
          output: "",
          ending: "did not start",
          cause: error,
        }),
      ),
    );
  });
  if (owner === undefined) throw new FleeceError("INTERNAL", `A started ${DAEMON} has no pid`);
  if (lifetime === "detached") child.unref();
  return { owner, ended, failure: () => failure };
}

function ending(code: number | null, signal: NodeJS.Signals | null, words: string): FleeceError {
  const output = cleanOutput(words, DAEMON);
  if (code === 127 && output.startsWith("setpriv: failed to execute")) {
    return toolFailure(DAEMON, { errno: "ENOENT", output, ending: "did not start" });
  }
  return toolFailure(DAEMON, {
    output,
    ending: signal === null ? `ended with exit code ${code ?? "unknown"}` : `was ended by ${signal}`,
  });
}

function collectOutput(child: ChildProcess): () => string {
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding("utf8").on("data", (chunk: string) => {
      text = (text + chunk).slice(-MAX_OUTPUT_CHARACTERS);
    });
  }
  return () => text;
}

const logPath = (directory: string): string => join(directory, "log");

async function createLog(directory: string): Promise<Awaited<ReturnType<typeof open>>> {
  const { O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants;
  return open(logPath(directory), O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
}

/** The last words of a detached daemon; empty when its directory is gone. */
export async function readLog(directory: string): Promise<string> {
  const text = await readFile(logPath(directory), "utf8").catch(() => "");
  return text.slice(-MAX_OUTPUT_CHARACTERS);
}
