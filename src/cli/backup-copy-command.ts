import { type Command, Option } from "@commander-js/extra-typings";
import type { CopyReport } from "../api/messages.js";
import { backupList } from "./backup-view.js";
import { plural } from "./layout.js";
import { printable } from "./printable.js";
import type { RunAction } from "./session.js";

/** A second place for backups. */
export function addBackupCopyCommand(group: Command, run: RunAction): void {
  group
    .command("copy")
    .summary("copy backups of a domain to another repository")
    .description(
      "Copy backups of a domain to another repository, where they are backups as any others: what is newer than the newest " +
        "copy there, and nothing twice. Every block is compared with its digest on the way. Safe to interrupt.",
    )
    .argument("<domain>", "copy backups of this domain")
    .requiredOption("--to <repository>", "where to copy them")
    .option("--repository <name>", "where they are (default: the first of the configuration)")
    .addOption(
      new Option("--id <id>", "copy this one, also if the retention there has let it go (may be repeated)")
        .default([] as string[], "all that are missing")
        .argParser((id: string, before: string[]) => [...before, id]),
    )
    .addOption(new Option("--latest", "copy the newest alone").conflicts("id"))
    .action((domain, { to, repository, id: ids, latest }) =>
      run(async ({ answer, api, progress, signal, terminal }) => {
        const request = { domain, to, repository, ids, latest: latest === true };
        const message = await api.call("Backups.Copy", request, { signal, onProgress: progress.show });
        answer("CopyReport", message, (report) => copyReport(report, terminal));
      }),
    );
}

export function copyReport(
  { domain, repository, to, backups, notes }: CopyReport,
  terminal: boolean,
): string {
  const places = `from repository ${printable(repository)} to ${printable(to)}`;
  const head = `${plural(backups.length, "backup")} of ${printable(domain)} copied ${places}\n`;
  const marked = notes.map((note) => `note: ${printable(note)}\n`).join("");
  return backups.length === 0 ? head : `${head}${marked}\n${backupList({ backups }, terminal)}`;
}
