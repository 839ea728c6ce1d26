import { formatBytes, formatDuration } from "../shared/units.js";
import type { JobKind, JobMail } from "./job.js";
import type { DomainRun, RunRecord } from "./run-record.js";

/** RFC 5322 allows 998 bytes in a line, and a character may take four. */
const LONGEST_LINE = 240;

/** What a run came to, as a mail with its head. */
export function runMail(record: RunRecord, { to, from }: Pick<JobMail, "to" | "from">): string {
  const { id, job, kind = "backup", state, startedAtMs, finishedAtMs, error, domains } = record;
  const took = finishedAtMs === undefined ? "unknown" : formatDuration(finishedAtMs - startedAtMs);
  const head = [
    `From: ${from}`,
    `To: ${to.join(", ")}`,
    `Subject: fleece: job ${job}: ${state}`,
    `Date: ${new Date(startedAtMs).toUTCString().replace("GMT", "+0000")}`,
    "MIME-Version: 1.0",
    "Content-Type: text/plain; charset=utf-8",
    "Content-Transfer-Encoding: 8bit",
    "Auto-Submitted: auto-generated",
  ];
  const body = [
    `Job ${job}, run ${id}: ${state}`,
    ...(error === undefined ? [] : [`${error.message} (${error.code})`]),
    `Started ${new Date(startedAtMs).toISOString()}, took ${took}`,
    "",
    ...domains.flatMap((part) => domainLines(part, kind)),
  ];
  return [...head, "", ...body.flatMap(folded), ""].join("\n");
}

function domainLines(part: DomainRun, kind: JobKind): readonly string[] {
  const { domain, state, backup, error, notes, verifications = [] } = part;
  const disks = backup?.manifest.disks ?? [];
  const sum = (key: "readBytes" | "storedBytes"): string =>
    formatBytes(disks.reduce((total, disk) => total + disk[key], 0));
  const verified = `${verifications.length} backups verified`;
  const what =
    backup === undefined
      ? kind === "verify"
        ? verified
        : "no backup"
      : `${backup.manifest.level} ${backup.id}, read ${sum("readBytes")}, stored ${sum("storedBytes")}`;
  return [
    `${domain}: ${state}, ${what}`,
    ...(error === undefined ? [] : [`  ${error.message} (${error.code})`]),
    ...notes.map((note) => `  ${note}`),
  ];
}

/** Without control characters, which could end a line. */
function folded(line: string): readonly string[] {
  const clean = line.replace(/\p{Cc}/gu, " ");
  return clean.match(new RegExp(`.{1,${LONGEST_LINE}}`, "gu")) ?? [""];
}
