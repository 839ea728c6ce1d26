import { CommanderError } from "@commander-js/extra-typings";
import { describeFailure, EXIT_CODES, toFailure } from "./failure.js";
import { Interruption } from "./interruption.js";
import { createProgram } from "./program.js";
import { ProgressView } from "./progress-view.js";
import type { RunAction, Surroundings } from "./session.js";
import { serveAgent, type ServeAgent } from "./serve-command.js";
import { runSession } from "./session.js";

/** Runs one command to its end and resolves with the exit code; never rejects. `args` are without node and script. */
export async function runCommandLine(args: readonly string[], surroundings: Surroundings): Promise<number> {
  const { stderr } = surroundings;
  const progress = new ProgressView(stderr);
  // Asked before the options are parsed, too: an error in them must come in the right form.
  const json = args.includes("--json");
  let serving = false;
  using interruption = new Interruption((line) => {
    // The agent says it in its log.
    if (serving) return;
    progress.stop();
    // A terminal has just echoed `^C`.
    if (!json) stderr.write(`${stderr.isTTY === true ? "\n" : ""}fleece: ${line}\n`);
  });
  const session = { ...surroundings, progress, signal: interruption.signal };
  const run: RunAction = (action, runOptions) => runSession(session, program.options(), action, runOptions);
  const serve: ServeAgent = () => {
    serving = true;
    return serveAgent(session, program.options());
  };
  const program = createProgram(surroundings, run, serve);
  try {
    await program.parse(args);
    return 0;
  } catch (error) {
    progress.stop();
    if (error instanceof CommanderError && isHelpOrVersion(error)) {
      return error.exitCode === 0 ? 0 : EXIT_CODES.usage;
    }
    const failure = toFailure(error, interruption.signal);
    const { logLevel } = program.options();
    const debug = logLevel === "debug" || logLevel === "trace";
    stderr.write(describeFailure(failure, { json, debug }));
    if (error instanceof CommanderError && !json) stderr.write("  --help after a command prints its usage\n");
    return EXIT_CODES[failure.category];
  }
}

/** Whatever was to be said has been printed. Help for want of a verb has exit code 1 here. */
function isHelpOrVersion({ code }: CommanderError): boolean {
  return ["commander.help", "commander.helpDisplayed", "commander.version"].includes(code);
}
