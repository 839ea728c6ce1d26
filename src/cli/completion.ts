import type { CommandUnknownOpts } from "@commander-js/extra-typings";

type Command = CommandUnknownOpts;
type Option = Command["options"][number];
type Argument = Command["registeredArguments"][number];

/** What the shell may put in place of the word that is being typed. */
export interface Completion {
  readonly values: readonly { readonly value: string; readonly description: string }[];
  /** Names of files, which the shell knows best. */
  readonly files: boolean;
}

/** Names that the configuration has, by the argument or option that takes them. */
export type KnownNames = (kind: "domain" | "repository" | "job") => Promise<readonly string[]>;

const NOTHING: Completion = { values: [], files: false };

/**
 * Completes the last of the words after the program's name, from the same description that commands are parsed by.
 * A word `=` of its own stands between an option and its value: bash takes them apart.
 */
export async function completeWords(
  program: Command,
  words: readonly string[],
  names: KnownNames,
): Promise<Completion> {
  const current = words.at(-1) ?? "";
  const { command, args, option, isOver } = readWords(program, words.slice(0, -1));
  const all = await candidates();
  return { ...all, values: all.values.filter(({ value }) => value.startsWith(current)) };

  async function candidates(): Promise<Completion> {
    if (option !== undefined) return valuesOf(option, option.long?.slice(2) ?? "", names);
    if (current.startsWith("-") && !isOver) return { ...NOTHING, values: optionsOf(command) };
    if (command.commands.length > 0) {
      const visible = command.createHelp().visibleCommands(command);
      return {
        ...NOTHING,
        values: visible.map((each) => ({
          value: each.name(),
          description: each.summary() || each.description(),
        })),
      };
    }
    const expected = command.registeredArguments;
    const argument = expected[args] ?? expected.find(({ variadic }) => variadic);
    return argument === undefined ? NOTHING : valuesOf(argument, argument.name(), names);
  }
}

interface Reading {
  readonly command: Command;
  /** How many arguments the command has already. */
  readonly args: number;
  /** Whose value comes next. */
  readonly option: Option | undefined;
  /** After `--` no word is an option. */
  readonly isOver: boolean;
}

function readWords(program: Command, words: readonly string[]): Reading {
  let reading: Reading = { command: program, args: 0, option: undefined, isOver: false };
  for (const word of words) reading = readWord(reading, word);
  return reading;
}

function readWord(reading: Reading, word: string): Reading {
  const { command, args, option, isOver } = reading;
  if (word === "=") return reading;
  if (option !== undefined) return { ...reading, option: undefined };
  if (word === "--") return { ...reading, isOver: true };
  if (word.startsWith("-") && !isOver) {
    const named = lineage(command)
      .flatMap(({ options }) => options)
      .find(({ long, short }) => word === long || word === short);
    return named?.required === true ? { ...reading, option: named } : reading;
  }
  const verb = command.commands.find((each) => each.name() === word);
  return verb === undefined ? { ...reading, args: args + 1 } : { ...reading, command: verb, args: 0 };
}

/** A command and those above it, whose options are its, too. */
function lineage(command: Command): readonly Command[] {
  return command.parent === null ? [command] : [command, ...lineage(command.parent)];
}

function optionsOf(command: Command): Completion["values"] {
  return lineage(command).flatMap((each) =>
    each
      .createHelp()
      .visibleOptions(each)
      .flatMap(({ long, description }) =>
        long === undefined || (each !== command && long === "--help") ? [] : [{ value: long, description }],
      ),
  );
}

async function valuesOf(of: Argument | Option, name: string, names: KnownNames): Promise<Completion> {
  const told = (values: readonly string[]): Completion => ({
    ...NOTHING,
    values: values.map((value) => ({ value, description: "" })),
  });
  if (of.argChoices !== undefined) return told(of.argChoices);
  if (name === "domain" || name === "repository" || name === "job") return told(await names(name));
  if ("flags" in of && of.flags.includes("<repository>")) return told(await names("repository"));
  // By how help calls the value.
  const isPath = "flags" in of && /<(file|directory|path)>/.test(of.flags);
  return { ...NOTHING, files: isPath };
}
