import { Argument, type Command } from "@commander-js/extra-typings";
import { loadConfig } from "../agent.js";
import { findConfiguration } from "./configuration-file.js";
import type { KnownNames } from "./completion.js";
import { SCRIPTS, SHELLS } from "./completion-scripts.js";
import type { Surroundings } from "./session.js";

export type CompletionSurroundings = Pick<Surroundings, "stdout" | "env" | "cwd">;

/** `completion SHELL` for people, and `complete -- WORDS` for what that prints. */
export function addCompletionCommands(program: Command, { stdout, ...place }: CompletionSurroundings): void {
  program
    .command("completion")
    .summary("print what makes a shell complete commands")
    .description(
      'Print a script that makes the shell complete commands, options, and names of domains, repositories and jobs. For bash: eval "$(fleece completion bash)"',
    )
    .addArgument(new Argument("<shell>", "which shell").choices(SHELLS))
    .action((shell) => void stdout.write(SCRIPTS[shell]));
  program
    .command("complete", { hidden: true })
    .argument("[words...]")
    .action(async (words) => {
      const { completeWords } = await import("./completion.js");
      const { values, files } = await completeWords(program, words, namesOf(words, place));
      const lines = values.map(({ value, description }) => `${value}\t${description}`);
      stdout.write([...lines, ...(files ? [":files"] : [])].map((line) => `${line}\n`).join(""));
    });
}

/** Of the configuration that the words name, or the usual one; none if it cannot be read. */
function namesOf(words: readonly string[], place: Pick<Surroundings, "env" | "cwd">): KnownNames {
  const at = words.indexOf("--config");
  const named = at < 0 ? undefined : words.slice(at + 1).find((word) => word !== "=");
  return async (kind) => {
    try {
      const config = await loadConfig(findConfiguration(named, place));
      const { domains: domain, repositories: repository, jobs: job } = config;
      return { domain, repository, job }[kind].map(({ name }) => name);
    } catch {
      return [];
    }
  };
}
