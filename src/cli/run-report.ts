import type { BackupDisk, JobRun, JobRunDomain } from "../api/messages.js";
import { formatBytes, formatDuration } from "../shared/units.js";
import { notesOf, stateOf, tookOf } from "./job-view.js";
import { formatTime, plural } from "./layout.js";
import { waitsInWords } from "./pace-view.js";
import { printable } from "./printable.js";

/** In characters, as everything here. */
const WIDTH = 80;
const LONGEST_TARGET = 20;
const BYTES = 9;
const DURATION = 7;

/** One run on 80 columns: each domain with its disks, and bars for what was read and stored on one scale. */
export function runReport(run: JobRun): string {
  const most = Math.max(
    1,
    ...run.domains.flatMap(disksOf).map(({ readBytes, storedBytes }) => Math.max(readBytes, storedBytes)),
  );
  const done = run.domains.filter(({ backup }) => backup !== null).length;
  const took = tookOf(run);
  const notes = notesOf(run).flatMap((note) => wrapped(`- ${note}`, "  "));
  return [
    ...wrapped(`Run ${run.id} of job ${run.job}: ${stateOf(run)}`),
    ...wrapped(
      [
        formatTime(run.startTime),
        ...(took === undefined ? [] : [`took ${took}`]),
        `${done} of ${plural(run.domains.length, "domain")} backed up to ${run.repository}`,
      ].join(", "),
    ),
    ...run.domains.flatMap((domain) => ["", ...domainLines(domain, most)]),
    ...(notes.length === 0 ? [] : ["", ...notes]),
    "",
  ].join("\n");
}

function domainLines(domain: JobRunDomain, most: number): readonly string[] {
  const { backup, verifications, bootTest } = domain;
  const took = tookOf(domain);
  const waited = waitsInWords(backup?.waits ?? null);
  const damaged = verifications.filter(({ damage }) => damage !== undefined).length;
  const head = [
    `${domain.domain}: ${stateOf(domain)}`,
    ...(backup === null ? [] : [backup.level.toLowerCase(), backup.id]),
    ...(took === undefined ? [] : [took]),
    ...(verifications.length === 0 ? [] : [`${plural(verifications.length, "backup")} verified`]),
    ...(damaged === 0 ? [] : [`${damaged} damaged`]),
    ...(bootTest === null ? [] : [bootTest.failure === undefined ? "booted" : "did not boot"]),
    ...(waited === undefined ? [] : [`waited ${waited}`]),
  ];
  const disks = disksOf(domain);
  const targets = Math.min(LONGEST_TARGET, Math.max(0, ...disks.map(({ target }) => target.length)));
  return [...wrapped(head.join(", ")), ...disks.map((disk) => diskLine(disk, most, targets))];
}

function diskLine(disk: BackupDisk, most: number, targetWidth: number): string {
  const fixed = `  ${" ".repeat(targetWidth)}  read   stored   `.length + 2 * BYTES + 2 + DURATION;
  const barWidth = Math.floor((WIDTH - fixed) / 2);
  const amount = (bytes: number): string =>
    `${bar(bytes / most, barWidth)} ${formatBytes(bytes).padStart(BYTES)}`;
  const target = cut(printable(disk.target), targetWidth).padEnd(targetWidth);
  const took = formatDuration(disk.durationMs).padStart(DURATION);
  return `  ${target}  read ${amount(disk.readBytes)}  stored ${amount(disk.storedBytes)}  ${took}`;
}

/** What is not nothing shows. */
function bar(share: number, width: number): string {
  const filled = share === 0 ? 0 : Math.max(1, Math.round(share * width));
  return "█".repeat(filled).padEnd(width, "·");
}

function disksOf({ backup }: JobRunDomain): readonly BackupDisk[] {
  return backup?.disks ?? [];
}

function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 1)}…`;
}

/** At spaces; a word that is longer than a line is cut into pieces. */
function wrapped(text: string, indent = ""): readonly string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of printable(text).split(" ")) {
    if (line !== "" && line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = "";
    }
    line = line === "" ? `${lines.length === 0 ? "" : indent}${word}` : `${line} ${word}`;
    for (; line.length > WIDTH; line = `${indent}${line.slice(WIDTH)}`) lines.push(line.slice(0, WIDTH));
  }
  return [...lines, line];
}
