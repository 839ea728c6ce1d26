import type { Backup, PruneReport } from "../api/messages.js";
import { formatTime, plural, table } from "./layout.js";
import { printable } from "./printable.js";

type DomainReport = PruneReport["domains"][number];
type BackupReport = DomainReport["backups"][number];

export function backupProtected(backup: Backup): string {
  return `Backup ${printable(backup.id)} is ${backup.protected ? "" : "not "}protected\n`;
}

export function pruneReport({ domains, dryRun }: PruneReport, terminal: boolean): string {
  if (domains.length === 0) return "No backups of domains with retention rules\n";
  return domains.map((report) => domainReport(report, dryRun, terminal)).join("\n");
}

function domainReport(report: DomainReport, dryRun: boolean, terminal: boolean): string {
  const { domain, repository, backups, checkpoints, notes } = report;
  const of = (action: BackupReport["action"]): number =>
    backups.filter((backup) => backup.action === action && !["KEPT", "SKIPPED"].includes(backup.outcome))
      .length;
  const [gone, merged] = [of("DELETE"), of("MERGE")];
  const verbs = dryRun ? ["would be deleted", "would be merged"] : ["deleted", "merged"];
  const stay = backups.length - gone - merged;
  const whose = `${printable(domain)} in repository ${printable(repository)}`;
  const head = `${whose}: ${plural(gone, "backup")} ${verbs[0] ?? ""}, ${merged} ${verbs[1] ?? ""}, ${stay} ${stay === 1 ? "stays" : "stay"}\n`;
  const rows = table(
    backups,
    [
      { head: "BACKUP", cell: ({ id }) => id },
      { head: "TIME", cell: ({ time }) => formatTime(time) },
      { head: "ACTION", cell: actionOf },
      { head: "WHY", cell: ({ reasons }) => reasons.join(", ") },
    ],
    terminal,
  );
  const removed = checkpoints.length === 0 ? [] : [`Checkpoints merged away: ${checkpoints.join(", ")}`];
  const skipped = backups.flatMap(({ id, note }) =>
    note === undefined ? [] : [`${id} is skipped: ${note}`],
  );
  const lines = [...removed, ...skipped, ...notes].map((line) => `${printable(line)}\n`).join("");
  return `${head}\n${rows}${lines === "" ? "" : `\n${lines}`}`;
}

function actionOf({ action, into, outcome }: BackupReport): string {
  return outcome === "SKIPPED" ? "skipped" : `${ACTIONS[action]}${into === undefined ? "" : ` into ${into}`}`;
}

const ACTIONS = {
  ACTION_UNSPECIFIED: "unknown",
  KEEP: "keep",
  DELETE: "delete",
  MERGE: "merge",
  WAIT: "keep for now",
  DAMAGED: "damaged",
} as const;
