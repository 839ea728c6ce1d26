import type { Command } from "@commander-js/extra-typings";
import { backupProtected, pruneReport } from "./backup-retention-view.js";
import { ONLY_REPOSITORY_OPTION } from "./repository-path-option.js";
import type { RunAction } from "./session.js";

const ID = ["<id>", "id of the backup"] as const;

/** What stays, and what goes. */
export function addBackupRetentionCommands(group: Command, run: RunAction): void {
  addProtect(group, run, {
    name: "protect",
    isProtected: true,
    summary: "say that a backup must stay",
    description:
      "Say that a backup must stay, whatever the retention rules say: neither prune nor delete takes it.",
  });
  addProtect(group, run, {
    name: "unprotect",
    isProtected: false,
    summary: "end the protection of a backup",
    description:
      "End the protection of a backup: the retention rules decide about it again, and it can be deleted.",
  });

  group
    .command("prune")
    .summary("delete and merge backups by the retention rules")
    .description(
      "Delete the backups that the retention rules of the configuration do not keep, and merge those that others are " +
        "based on. The answer says of every backup what became of it, and why. Safe to interrupt.",
    )
    .argument("[domain]", "only backups of this domain")
    .option("--repository <name>", "only backups in this repository")
    .option("--dry-run", "print what would be done, and change nothing")
    .action((domain, { repository, dryRun }) =>
      run(async ({ answer, api, progress, signal, terminal }) => {
        const request = { domain, repository, dryRun: dryRun === true };
        const message = await api.call("Backups.Prune", request, { signal, onProgress: progress.show });
        answer("PruneReport", message, (report) => pruneReport(report, terminal));
      }),
    );
}

function addProtect(
  group: Command,
  run: RunAction,
  {
    name,
    isProtected,
    summary,
    description,
  }: {
    readonly name: string;
    readonly isProtected: boolean;
    readonly summary: string;
    readonly description: string;
  },
): void {
  group
    .command(name)
    .summary(summary)
    .description(description)
    .argument(...ID)
    .addOption(ONLY_REPOSITORY_OPTION)
    .action((id, { repository }) =>
      run(async ({ answer, api, signal }) => {
        const request = { id, repository, protected: isProtected };
        const message = await api.call("Backups.Protect", request, { signal });
        answer("Backup", message, backupProtected);
      }),
    );
}
