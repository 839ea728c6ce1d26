import { type ChildProcess, spawn } from "node:child_process";
import { errnoOf } from "../../shared/errors.js";
import { cleanOutput, toolFailure } from "../tool-failure.js";

/** What is kept of a stream: in characters. */
const MOST_KEPT = 65_536;

/** A QEMU that dies with us, also by SIGKILL, and with what it has printed last. */
export class BootProcess implements AsyncDisposable {
  /** Resolves with how it has ended, in words. Never rejects. */
  readonly ended: Promise<string>;
  readonly #child: ChildProcess;
  readonly #output = { stdout: "", stderr: "" };
  #onOutput: () => void = () => undefined;

  private constructor(child: ChildProcess) {
    this.#child = child;
    for (const name of ["stdout", "stderr"] as const) {
      child[name]?.setEncoding("latin1").on("data", (chunk: string) => {
        this.#output[name] = (this.#output[name] + chunk).slice(-MOST_KEPT);
        if (name === "stdout") this.#onOutput();
      });
    }
    this.ended = new Promise((resolve) => {
      child.once("close", (code, killer) => {
        const how = killer === null ? `ended with exit code ${code ?? "unknown"}` : `was ended by ${killer}`;
        const words = cleanOutput(this.#output.stderr, child.spawnargs.at(0) ?? "");
        resolve([`QEMU ${how}`, words].filter(Boolean).join(": "));
      });
    });
  }

  /** Fails with TOOL_MISSING. */
  static async start(command: readonly string[], cwd: string): Promise<BootProcess> {
    // prctl(2), PR_SET_PDEATHSIG. In a session of its own, so that Ctrl-C in our terminal is ours to handle.
    const args = ["--pdeathsig", "KILL", "--", ...command];
    const child = spawn("setpriv", args, {
      cwd,
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, LC_ALL: "C" },
    });
    const started = new BootProcess(child);
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", (cause) => {
        const how = { errno: errnoOf(cause), output: "", ending: "did not start", cause };
        reject(toolFailure("setpriv", how));
      });
    });
    return started;
  }

  /** The serial console as text, without what moves a cursor. */
  get console(): string {
    // Escape sequences (ECMA-48), then all control characters but line feeds.
    const text = this.#output.stdout.replaceAll(
      /\u001b(\[[0-?]*[ -/]*[@-~]|[()][A-Z0-9]|[@-Z\\-_=>78c])/g,
      "",
    );
    return text.replaceAll(/[^\n\u0020-\u007e\u00a0-\u00ff]/g, "");
  }

  /** Called whenever there is more of it. */
  set onOutput(listener: () => void) {
    this.#onOutput = listener;
  }

  /** At once: nothing that it holds is wanted. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.ended;
  }
}
