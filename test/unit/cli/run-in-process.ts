import type { startAgent } from "../../../src/agent.js";
import { runCommandLine } from "../../../src/cli/command-line.js";
import { writeConfig } from "../../support/config-file.js";
import { temporaryDirectory } from "../../support/lifetime.js";

export interface Outcome {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line inside the test, on the agent that is given. */
export async function fleece(
  args: readonly string[],
  options: {
    readonly startAgent?: typeof startAgent;
    readonly env?: Record<string, string>;
    readonly cwd?: string;
  } = {},
): Promise<Outcome> {
  let stdout = "";
  let stderr = "";
  const exitCode = await runCommandLine(args, {
    stdout: { write: (text) => (stdout += text) },
    stderr: { write: (text) => (stderr += text) },
    env: options.env ?? {},
    cwd: options.cwd ?? "/",
    startAgent: options.startAgent ?? (() => Promise.reject(new Error("This test has no agent"))),
  });
  return { exitCode, stdout, stderr };
}

/** A configuration that is valid, and whose domains and directories nobody looks at. */
export async function someConfig(): Promise<string> {
  const { path } = await temporaryDirectory();
  return writeConfig(path, { domains: [{ name: "vm", qmp: "vm.qmp" }] });
}
