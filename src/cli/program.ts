import { Command, Option } from "@commander-js/extra-typings";
import { addBackupCommands } from "./backup-commands.js";
import { addBackupReadCommands } from "./backup-read-commands.js";
import { addBackupCopyCommand } from "./backup-copy-command.js";
import { addBootTestCommand } from "./boot-test-command.js";
import { addBackupRetentionCommands } from "./backup-retention-commands.js";
import { addCheckpointCommands } from "./checkpoint-commands.js";
import { addBlockSnapshotCommands } from "./block-snapshot-commands.js";
import { addCompletionCommands, type CompletionSurroundings } from "./completion-command.js";
import { SYSTEM_CONFIG } from "./configuration-file.js";
import { addDomainSnapshotCommands } from "./domain-snapshot-commands.js";
import { addDomainCommands } from "./domain-commands.js";
import { describeDoctorCommand } from "./doctor-command.js";
import { addExportCommands } from "./export-commands.js";
import { addJobCommands, describeStatusCommand } from "./job-commands.js";
import { LOG_LEVELS } from "./logger.js";
import { packageVersion } from "./package-version.js";
import { describeServeCommand, type ServeAgent } from "./serve-command.js";
import type { GlobalOptions, RunAction } from "./session.js";
import type { TextStream } from "./streams.js";

const EXIT_CODES_HELP = `
Exit codes:
  0 done    1 failed    2 wrong usage or configuration    3 not found
  4 conflict (exists, busy)    5 agent or domain unreachable
  6 verification found damage`;

export interface Program {
  /** Rejects with a CommanderError for wrong usage, and also after help or version, or as the action does. */
  parse(args: readonly string[]): Promise<unknown>;
  readonly options: () => GlobalOptions;
}

/** Global options may stand before or after the verb, which is commander's default. */
export function createProgram(
  surroundings: CompletionSurroundings & { readonly stderr: TextStream },
  run: RunAction,
  serve: ServeAgent,
): Program {
  const { stdout, stderr } = surroundings;
  const program = new Command("fleece")
    .description("Back up virtual machines on QEMU: full and incremental, running or not.")
    .version(packageVersion(), "--version", "print the version")
    .helpOption("-h, --help", "print help for a command")
    .helpCommand(false)
    .option(
      "--config <file>",
      `the configuration (default: $FLEECE_CONFIG, else ./fleece.yaml, else ${SYSTEM_CONFIG})`,
    )
    .option("--json", "print one JSON message on stdout, and errors as JSON on stderr")
    .option("--embedded", "run without an agent, inside this command")
    .option(
      "--agent <host:port>",
      "talk to the agent on another host by mutual TLS (default: $FLEECE_AGENT, if set)",
    )
    .option("--certificate <file>", "with --agent: this client's certificate (default: $FLEECE_CERTIFICATE)")
    .option("--key <file>", "with --agent: its key, which others may not read (default: $FLEECE_KEY)")
    .option("--ca <file>", "with --agent: the authority of the agent's certificate (default: $FLEECE_CA)")
    .addOption(new Option("--log-level <level>", "what to log on stderr").choices(LOG_LEVELS))
    .addHelpText("after", EXIT_CODES_HELP)
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({
      writeOut: (text) => void stdout.write(text),
      writeErr: (text) => void stderr.write(text),
      // Errors are thrown, and told by the caller in the form that was asked for.
      outputError: () => undefined,
    })
    .exitOverride();
  const group = (name: string, summary: string): Command => {
    const description = `${summary.charAt(0).toUpperCase()}${summary.slice(1)}.`;
    return program.command(name).summary(summary).description(description).helpCommand(false);
  };
  describeServeCommand(program.command("serve"), serve);
  addDomainCommands(group("domain", "list and show domains"), run);
  addBlockSnapshotCommands(
    group("block-snapshot", "create, list, show, renew and delete block snapshots"),
    run,
  );
  addExportCommands(group("export", "start, list and stop NBD exports of block snapshots"), run);
  addCheckpointCommands(group("checkpoint", "list, show and delete checkpoints"), run);
  describeDoctorCommand(program.command("doctor"), run);
  const backup = group("backup", "run, list, prove, restore, serve, copy, protect and delete backups");
  addBackupCommands(backup, run);
  addBackupReadCommands(backup, run);
  addBootTestCommand(backup, run);
  addDomainSnapshotCommands(
    group("domain-snapshot", "create, list, show, revert, delete and clone snapshots of memory and disks"),
    run,
  );
  addBackupRetentionCommands(backup, run);
  addBackupCopyCommand(backup, run);
  addJobCommands(group("job", "list, run and cancel jobs, and show their history"), run);
  describeStatusCommand(program.command("status"), run);
  addCompletionCommands(program, surroundings);
  return {
    parse: (args) => program.parseAsync(args, { from: "user" }),
    options: () => program.opts(),
  };
}
