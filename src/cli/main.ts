#!/usr/bin/env node
import { startAgent } from "../agent.js";
import { errorMessage } from "../shared/errors.js";
import { runCommandLine } from "./command-line.js";
import { EXIT_CODES } from "./failure.js";
import { tolerateClosedPipes } from "./streams.js";

tolerateClosedPipes((error) => {
  process.stderr.write(`fleece: Cannot write the answer: ${errorMessage(error)}\n`);
  process.exitCode = EXIT_CODES.failed;
});

/** Whoever loads this file waits for it. */
export const finished = main();

async function main(): Promise<void> {
  const { stdout, stderr, env } = process;
  const exitCode = await runCommandLine(process.argv.slice(2), {
    stdout,
    stderr,
    env,
    cwd: process.cwd(),
    startAgent,
  });
  // Set rather than exit: what is still being written must be written.
  process.exitCode = Number(process.exitCode ?? 0) || exitCode;
}
