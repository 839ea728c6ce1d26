import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

/** How long output may lag behind the exit: a grandchild may hold the pipe open for ever. */
const outputGraceMs = 1_000;

export interface ProcessEnd {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface BoundProcessOptions {
  /** A file that the output is appended to; without it, the output is collected in `stdout`. */
  readonly stdoutPath?: string;
  /** A file that the error output is appended to; without it, it is collected in `stderr`. */
  readonly stderrPath?: string;
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
}

/**
 * A child that cannot outlive this process: the kernel kills it when the thread that started it ends, also when
 * this process gets SIGKILL. `setpriv` replaces itself by the command, so the pid is the command's own.
 */
export class BoundProcess implements AsyncDisposable {
  readonly pid: number;
  /** Resolves when the process has ended, whatever the reason, and its output has been read. */
  readonly ended: Promise<ProcessEnd>;
  readonly #child: ChildProcess;
  readonly #output: CollectedOutput;

  private constructor(child: ChildProcess, pid: number, output: CollectedOutput) {
    this.#child = child;
    this.#output = output;
    this.pid = pid;
    this.ended = endOf(child);
  }

  static async start(
    command: string,
    args: readonly string[],
    options: BoundProcessOptions = {},
  ): Promise<BoundProcess> {
    exitWithParent();
    const stdout = openForAppending(options.stdoutPath);
    const stderr = openForAppending(options.stderrPath);
    try {
      const child = spawn("setpriv", ["--pdeathsig", "KILL", "--", command, ...args], {
        stdio: ["ignore", stdout ?? "pipe", stderr ?? "pipe"],
        cwd: options.cwd,
        env: options.env,
      });
      const output = collectOutput(child);
      return new BoundProcess(child, await spawned(child), output);
    } finally {
      for (const file of [stdout, stderr]) if (file !== undefined) closeSync(file);
    }
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** What has come so far, unless it goes to a file. */
  get stdout(): string {
    return this.#output.stdout;
  }

  get stderr(): string {
    return this.#output.stderr;
  }

  /** Calls `listener` after each piece of collected output. */
  onOutput(listener: () => void): void {
    this.#child.stdout?.on("data", listener);
    this.#child.stderr?.on("data", listener);
  }

  /** Sends the signal, if the process still runs, and waits for its end. */
  async stop(signal: NodeJS.Signals): Promise<ProcessEnd> {
    this.#child.kill(signal);
    return this.ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop("SIGKILL");
  }
}

interface CollectedOutput {
  stdout: string;
  stderr: string;
}

function collectOutput(child: ChildProcess): CollectedOutput {
  const output = { stdout: "", stderr: "" };
  child.stdout?.setEncoding("utf8").on("data", (text: string) => (output.stdout += text));
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (output.stderr += text));
  return output;
}

async function endOf(child: ChildProcess): Promise<ProcessEnd> {
  const closed = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const end = await new Promise<ProcessEnd>((resolve) => {
    child.once("exit", (exitCode, signal) => resolve({ exitCode, signal }));
  });
  await Promise.race([closed, delay(outputGraceMs, undefined, { ref: false })]);
  return end;
}

function openForAppending(path: string | undefined): number | undefined {
  return path === undefined ? undefined : openSync(path, "a", 0o600);
}

function spawned(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("spawn", () => {
      if (child.pid === undefined) reject(new Error("A spawned process has no pid"));
      else resolve(child.pid);
    });
  });
}

let watchesParent = false;

/** A test worker whose runner was killed would otherwise live on, and its children with it. */
function exitWithParent(): void {
  if (watchesParent || process.send === undefined) return;
  watchesParent = true;
  process.once("disconnect", () => process.exit(1));
}
