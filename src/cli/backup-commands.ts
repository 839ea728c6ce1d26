import { Option, type Command } from "@commander-js/extra-typings";
import { backupDeleted, backupDetails, backupDone, backupList } from "./backup-view.js";
import { diskOption } from "./disk-option.js";
import { everyPage } from "./every-page.js";
import { NO_QUIESCE_OPTION, QUIESCE_OPTION } from "./quiesce-option.js";
import {
  ONLY_REPOSITORY_OPTION,
  REPOSITORY_OPTION,
  REPOSITORY_PATH_OPTION,
} from "./repository-path-option.js";
import type { RunAction } from "./session.js";

/** Taking, finding and deleting; what reads the content is in backup-read-commands.ts. */
export function addBackupCommands(group: Command, run: RunAction): void {
  addRun(group, run);

  group
    .command("list")
    .summary("list the backups")
    .description("List the backups in all repositories, oldest first in each.")
    .argument("[domain]", "only backups of this domain")
    .option("--repository <name>", "only backups in this repository")
    .addOption(REPOSITORY_PATH_OPTION)
    .action((domain, { repository, repositoryPath }) =>
      run(
        async ({ answer, api, signal, terminal }) => {
          const backups = await everyPage(
            (paging) => api.call("Backups.List", { domain, repository, ...paging }, { signal }),
            (page) => page.backups,
          );
          answer("ListBackupsResponse", { backups }, (list) => backupList(list, terminal));
        },
        { repositoryPath },
      ),
    );

  group
    .command("show")
    .summary("show a backup")
    .description("Show what is known of a backup: level, moment, consistency, and what each disk took.")
    .argument("<id>", "id of the backup")
    .addOption(REPOSITORY_OPTION)
    .addOption(REPOSITORY_PATH_OPTION)
    .action((id, { repository, repositoryPath }) =>
      run(
        async ({ answer, api, signal, terminal }) => {
          const message = await api.call("Backups.Get", { id, repository }, { signal });
          answer("Backup", message, (found) => backupDetails(found, terminal));
        },
        { repositoryPath },
      ),
    );

  group
    .command("delete")
    .summary("delete a backup; one that another is based on is merged into that")
    .description(
      "Delete a backup. If one other is based on it, it is merged into that, which costs no more than what that one " +
        "stores. If several are, or if it is protected, it is refused.",
    )
    .argument("<id>", "id of the backup")
    .addOption(ONLY_REPOSITORY_OPTION)
    .action((id, { repository }) =>
      run(async ({ answer, api, signal }) => {
        const message = await api.call("Backups.Delete", { id, repository }, { signal });
        answer("Backup", message, backupDeleted);
      }),
    );
}

function addRun(group: Command, run: RunAction): void {
  group
    .command("run")
    .summary("back a domain up")
    .description(
      "Back a domain up, running or not. Without a level, an incremental is taken where the chain allows it, " +
        "else a full; the answer says which, and why.",
    )
    .argument("<domain>", "name of the domain in the configuration")
    .addOption(new Option("--full", "store all content").conflicts("incremental"))
    .addOption(
      new Option("--incremental", "store what differs from an earlier backup, or fail").conflicts("full"),
    )
    .addOption(diskOption("back up this disk"))
    .addOption(QUIESCE_OPTION)
    .addOption(NO_QUIESCE_OPTION)
    .option("--repository <name>", "where to store it (default: the first of the configuration)")
    .action((domain, { full, incremental, disk: disks, repository, quiesce }) =>
      run(async ({ answer, api, progress, signal, terminal }) => {
        const level = full === true ? "FULL" : incremental === true ? "INCREMENTAL" : "LEVEL_UNSPECIFIED";
        const request = { domain, level, disks, repository, quiesce } as const;
        const message = await api.call("Backups.Run", request, { signal, onProgress: progress.show });
        answer("Backup", message, (backup) => backupDone(backup, terminal));
      }),
    );
}
