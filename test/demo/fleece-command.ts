import { fileURLToPath } from "node:url";
import { type FleeceResult, startFleece } from "../support/fleece.js";
import type { Scene } from "./scene.js";

/** The built command. */
export const mainPath = fileURLToPath(new URL("../../dist/bin/fleece.js", import.meta.url));
/** Ends a command that hangs. */
const commandTimeoutMs = 120_000;

/** Ends the demo with a message for its reader, without a stack trace. */
export class DemoFailure extends Error {}

/** Runs the built command in the demo's folder, shown as it would be typed. */
export async function fleece(scene: Scene, ...args: string[]): Promise<void> {
  const { exitCode, signal } = await tryFleece(scene, ...args);
  if (exitCode === 0) return;
  const line = commandLine(...args);
  throw new DemoFailure(`Expected exit code 0 from \`${line}\`, got ${String(exitCode ?? signal)}`);
}

/** The same for a command that may fail. */
export async function tryFleece(scene: Scene, ...args: string[]): Promise<FleeceResult> {
  scene.screen.command("$", commandLine(...args));
  const result = await run(scene, args);
  const output = `${result.stderr}${result.stdout}`;
  if (output !== "") scene.screen.output(output);
  return result;
}

/** What a script would read. */
export async function fleeceJson(scene: Scene, ...args: string[]): Promise<unknown> {
  return (await run(scene, ["--json", ...args])).json();
}

export function commandLine(...args: string[]): string {
  return ["fleece", ...globalArguments, ...args].join(" ");
}

const globalArguments = ["--config", "fleece.yaml", "--embedded"];

async function run({ workplace }: Scene, args: readonly string[]): Promise<FleeceResult> {
  const signal = AbortSignal.timeout(commandTimeoutMs);
  const options = { cwd: workplace.folder, signal };
  const started = await workplace.own(await startFleece([...globalArguments, ...args], options));
  return started.result();
}
