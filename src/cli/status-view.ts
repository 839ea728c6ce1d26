import type { Status, StatusDomain } from "../api/messages.js";
import { timestampToMs } from "../api/timestamp.js";
import { stateOf } from "./job-view.js";
import { formatTime, table } from "./layout.js";
import { printable } from "./printable.js";

/** `nowMs`: by which the ages of backups are told. */
export function statusTable({ domains }: Status, nowMs: number, terminal: boolean): string {
  const overview = table(
    domains,
    [
      { head: "DOMAIN", cell: ({ domain }) => domain },
      { head: "LAST BACKUP", cell: (domain) => ageOf(domain, nowMs) },
      { head: "NEXT RUN", cell: ({ nextRun }) => formatTime(nextRun) },
      { head: "JOB", cell: ({ nextJob }) => (nextJob === "" ? "-" : nextJob) },
      { head: "LAST RUN", cell: lastRun },
    ],
    terminal,
  );
  const notes = domains.flatMap(({ domain, trouble }) =>
    trouble === undefined ? [] : [`${printable(domain)}: ${printable(trouble)}\n`],
  );
  return notes.length === 0 ? overview : `${overview}\n${notes.join("")}`;
}

function lastRun({ lastState, lastTime }: StatusDomain): string {
  if (lastState === "STATE_UNSPECIFIED") return "-";
  return `${stateOf({ state: lastState })}${lastTime === null ? "" : `, ${formatTime(lastTime)}`}`;
}

function ageOf({ lastBackup }: StatusDomain, nowMs: number): string {
  const time = lastBackup?.time ?? null;
  if (time === null) return "none";
  const minutes = Math.floor((nowMs - timestampToMs(time)) / 60_000);
  if (minutes < 1) return "now";
  if (minutes < 60) return `${minutes} min ago`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ago` : `${Math.floor(hours / 24)} days ago`;
}
