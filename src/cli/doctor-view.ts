import type { DoctorReport, Finding } from "../api/messages.js";
import { printable } from "./printable.js";

const WIDTH = 80;

const GROUPS = [
  ["BLOCKER", "Blockers"],
  ["WARNING", "Warnings"],
  ["NOTE", "Notes"],
  ["OK", "As it should be"],
] as const satisfies readonly (readonly [Finding["severity"], string])[];

/** The verdict, then the findings, worst first: each with its code, what was found, and what it means. */
export function doctorReport(report: DoctorReport): string {
  const groups = GROUPS.map(([severity, title]) => ({
    title,
    findings: report.findings.filter((finding) => finding.severity === severity),
  })).filter(({ findings }) => findings.length > 0);
  const sections = groups.map(({ title, findings }) => `\n${title}\n${findings.map(entry).join("")}`);
  return `${verdict(report)}${sections.join("")}`;
}

function verdict({ domain, repository, ready, nextLevel, nextReason }: DoctorReport): string {
  const level = nextLevel === undefined ? "" : `, ${nextLevel.toLowerCase()}: ${nextReason ?? ""}`;
  const text = ready
    ? `The next backup of domain ${domain} to repository ${repository} will run${level}`
    : `The next backup of domain ${domain} to repository ${repository} would be refused`;
  return wrapped(text, "");
}

function entry({ code, severity, disk, found, advice }: Finding): string {
  if (severity === "OK") return wrapped(found, "    ", "  - ");
  const head = disk === undefined ? code : `${code} (disk ${disk})`;
  return `  ${printable(head)}\n${wrapped(found, "    ")}${wrapped(advice, "      ", "    > ")}`;
}

/** Words that are longer than a line, paths for example, stay whole so that they can be copied. */
function wrapped(text: string, indent: string, first = indent): string {
  const lines: string[] = [];
  let line = first;
  let isEmpty = true;
  for (const word of printable(text).split(" ")) {
    if (!isEmpty && line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = indent;
      isEmpty = true;
    }
    line += isEmpty ? word : ` ${word}`;
    isEmpty = false;
  }
  return [...lines, line].map((full) => `${full}\n`).join("");
}
