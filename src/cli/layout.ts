import Table from "cli-table3";
import { useColours } from "./logger.js";
import { printable } from "./printable.js";
import { timestampToMs, type Timestamp } from "../api/timestamp.js";

const NO_LINES = Object.fromEntries(
  [
    ...["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left", "bottom-right"],
    ...["left", "left-mid", "mid", "mid-mid", "right", "right-mid", "middle"],
  ].map((name) => [name, ""]),
);

export interface Column<Row> {
  readonly head: string;
  readonly cell: (row: Row) => string;
  readonly align?: "left" | "right";
}

/** Columns without lines, so that `awk` and `cut` have no trouble with them. */
export function table<Row>(rows: readonly Row[], columns: readonly Column<Row>[], terminal: boolean): string {
  const grid = new Table({
    head: columns.map(({ head }) => head),
    colAligns: columns.map(({ align }) => align ?? "left"),
    chars: NO_LINES,
    style: {
      head: terminal && useColours() ? ["bold"] : [],
      border: [],
      "padding-left": 0,
      "padding-right": 2,
    },
  });
  for (const row of rows) grid.push(columns.map(({ cell }) => printable(cell(row))));
  return withoutTrailingSpace(grid.toString());
}

/** Names and values below each other; those without a value are left out. */
export function facts(entries: readonly (readonly [string, string | undefined])[]): string {
  const known = entries.filter((entry): entry is readonly [string, string] => entry[1] !== undefined);
  const width = Math.max(...known.map(([name]) => name.length));
  return known.map(([name, value]) => `${name.padEnd(width)}  ${printable(value)}\n`).join("");
}

/** RFC 3339 in the zone of the reader, to the second. */
export function formatTime(timestamp: Timestamp | null): string {
  if (timestamp === null) return "-";
  const date = new Date(timestampToMs(timestamp));
  const offset = -date.getTimezoneOffset();
  const local = new Date(date.getTime() + offset * 60_000).toISOString().slice(0, 19);
  if (offset === 0) return `${local}Z`;
  const two = (value: number): string => String(Math.floor(Math.abs(value))).padStart(2, "0");
  return `${local}${offset < 0 ? "-" : "+"}${two(offset / 60)}:${two(offset % 60)}`;
}

export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function withoutTrailingSpace(text: string): string {
  return text
    .split("\n")
    .map((line) => `${line.trimEnd()}\n`)
    .join("");
}
