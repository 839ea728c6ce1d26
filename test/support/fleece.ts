import { fileURLToPath } from "node:url";
import { BoundProcess, type ProcessEnd } from "./bound-process.js";

/** The built command: what users run, not the sources. */
const mainPath = fileURLToPath(new URL("../../dist/bin/fleece.js", import.meta.url));

export interface FleeceOptions {
  /** Given as `--config`, before the arguments. */
  readonly configPath?: string;
  readonly cwd?: string;
  /** Added to the environment of this process. */
  readonly env?: Readonly<Record<string, string>>;
  /** Kills the command when it fires. */
  readonly signal?: AbortSignal;
  /** A script to run in place of the command, with the same arguments. */
  readonly script?: string;
}

export interface FleeceResult extends ProcessEnd {
  readonly stdout: string;
  readonly stderr: string;
  /** The standard output as JSON; throws with both outputs when it is none. */
  json(): unknown;
}

/** A fleece command that is under way. */
export class FleeceProcess implements AsyncDisposable {
  readonly pid: number;
  readonly #process: BoundProcess;

  constructor(process: BoundProcess) {
    this.#process = process;
    this.pid = process.pid;
  }

  get stdout(): string {
    return this.#process.stdout;
  }

  get stderr(): string {
    return this.#process.stderr;
  }

  get running(): boolean {
    return this.#process.running;
  }

  /** Waits until the command's stdout or stderr matches; rejects when it ends or the time is up before that. */
  async waitForOutput(pattern: RegExp, options: { timeoutMs: number }): Promise<RegExpMatchArray> {
    const started = this.#process;
    return new Promise((resolve, reject) => {
      const give = (problem: string) =>
        reject(
          new Error(`Expected output like ${pattern.source}, ${problem}:\n${this.stdout}${this.stderr}`),
        );
      const timer = setTimeout(() => give(`none in ${options.timeoutMs} ms`), options.timeoutMs);
      const look = (): void => {
        const match = pattern.exec(started.stdout) ?? pattern.exec(started.stderr);
        if (match === null) return;
        clearTimeout(timer);
        resolve(match);
      };
      started.onOutput(look);
      look();
      void started.ended.then(() => {
        clearTimeout(timer);
        look();
        give("the command ended");
      });
    });
  }

  async result(): Promise<FleeceResult> {
    const end = await this.#process.ended;
    return toResult(end, this.#process.stdout, this.#process.stderr);
  }

  /** Sends the signal (default SIGKILL: no chance to clean up) and waits for the end. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<FleeceResult> {
    await this.#process.stop(signal);
    return this.result();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop("SIGKILL");
  }
}

/** Starts `fleece …`; it needs a build (`npm run build`). */
export async function startFleece(
  args: readonly string[],
  options: FleeceOptions = {},
): Promise<FleeceProcess> {
  const config = options.configPath === undefined ? [] : ["--config", options.configPath];
  const bound = await BoundProcess.start(process.execPath, [options.script ?? mainPath, ...config, ...args], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: { ...process.env, NO_COLOR: "1", ...options.env },
  });
  const kill = (): void => void bound.stop("SIGKILL");
  options.signal?.addEventListener("abort", kill);
  void bound.ended.then(() => options.signal?.removeEventListener("abort", kill));
  if (options.signal?.aborted === true) kill();
  return new FleeceProcess(bound);
}

/** Runs `fleece …` to its end. A failure is a result, not an exception. */
export async function runFleece(args: readonly string[], options: FleeceOptions = {}): Promise<FleeceResult> {
  const started = await startFleece(args, options);
  return started.result();
}

function toResult(end: ProcessEnd, stdout: string, stderr: string): FleeceResult {
  return {
    ...end,
    stdout,
    stderr,
    json: () => {
      try {
        return JSON.parse(stdout) as unknown;
      } catch (cause) {
        const facts = `exit code ${String(end.exitCode)}, stdout:\n${stdout}\nstderr:\n${stderr}`;
        throw new Error(`Expected JSON from fleece, got ${facts}`, { cause });
      }
    },
  };
}
