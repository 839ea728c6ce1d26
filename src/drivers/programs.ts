import { spawn } from "node:child_process";
import type { Readable } from "node:stream";
import type { Program, ProgramEnd, ProgramRunner } from "../ports/program-runner.js";
import { errnoOf, errorMessage } from "../shared/errors.js";

/** In characters. */
const KEPT_OUTPUT = 4096;
/** What a program has started may hold its output open for ever. */
const OUTPUT_WAIT_MS = 1000;
const PASSED_ON = ["PATH", "HOME", "LANG", "TZ"];

/** Runs programs in process groups of their own. They die with us. */
export const programs: ProgramRunner = {
  run(program, signal) {
    return signal.aborted
      ? Promise.resolve({ failure: "it was not started", output: "" })
      : run(program, signal);
  },
};

function run({ command, env = {}, input = "", keeps }: Program, signal: AbortSignal): Promise<ProgramEnd> {
  const own = Object.fromEntries(PASSED_ON.map((name) => [name, process.env[name]]));
  const child = spawn("setpriv", ["--pdeathsig", "KILL", "--", ...command], {
    cwd: "/",
    detached: true,
    stdio: "pipe",
    env: { ...own, ...env },
  });
  const output = keepLast(keeps === "stdout" ? [child.stdout] : [child.stdout, child.stderr]);
  if (keeps === "stdout") child.stderr.resume();
  // A program that does not read its input is none of our business.
  child.stdin.on("error", () => undefined);
  child.stdin.end(input);
  return new Promise((resolve) => {
    const kill = (): void => killGroup(child.pid);
    signal.addEventListener("abort", kill, { once: true });
    const end = (failure: string | undefined): void => {
      resolve({ failure, output: output().trim() });
    };
    child.once("error", (error) => end(`it did not start: ${errorMessage(error)}`));
    child.once("exit", (code, killedBy) => {
      signal.removeEventListener("abort", kill);
      const wasKilled = signal.aborted && killedBy === "SIGKILL";
      const failure = wasKilled ? "it was killed, as it had not ended in time" : endingOf(code, killedBy);
      const late = setTimeout(() => {
        child.stdout.destroy();
        child.stderr.destroy();
      }, OUTPUT_WAIT_MS);
      child.once("close", () => {
        clearTimeout(late);
        end(failure);
      });
    });
  });
}

function keepLast(streams: readonly Readable[]): () => string {
  let kept = "";
  for (const stream of streams) {
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => {
      kept = (kept + text).slice(-KEPT_OUTPUT);
    });
  }
  return () => kept;
}

function endingOf(code: number | null, killedBy: NodeJS.Signals | null): string | undefined {
  if (code === 0) return undefined;
  return code === null ? `it was ended by ${killedBy ?? "a signal"}` : `it ended with exit code ${code}`;
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch (error) {
    if (errnoOf(error) !== "ESRCH") throw error;
  }
}
