import type {
  BlockExport,
  ListBlockExportsResponse,
  StartBlockExportsResponse,
  StopBlockExportsResponse,
} from "../api/messages.js";
import { formatBytes } from "../shared/units.js";
import { plural, table, type Column } from "./layout.js";
import { printable } from "./printable.js";

const COLUMNS: readonly Column<BlockExport>[] = [
  { head: "DISK", cell: ({ target }) => target },
  { head: "SIZE", cell: ({ sizeBytes }) => formatBytes(sizeBytes), align: "right" },
  { head: "EXPORT", cell: ({ exportName }) => exportName },
  { head: "CHANGES", cell: ({ changesContext }) => changesContext ?? "-" },
  { head: "STAGED", cell: ({ staged }) => (staged ? "yes" : "no") },
  { head: "URI", cell: ({ uri }) => uri },
];

export function exportTable(exports: readonly BlockExport[], terminal: boolean): string {
  return table(exports, COLUMNS, terminal);
}

export function exportList({ exports }: ListBlockExportsResponse, terminal: boolean): string {
  if (exports.length === 0) return "No exports\n";
  const place: readonly Column<BlockExport>[] = [
    { head: "DOMAIN", cell: ({ domain }) => domain },
    { head: "SNAPSHOT", cell: ({ snapshot }) => snapshot },
    { head: "STATE", cell: ({ broken }) => (broken === undefined ? "open" : "broken") },
  ];
  return table(exports, [...place, ...COLUMNS], terminal);
}

export function exportsStarted({ exports }: StartBlockExportsResponse, terminal: boolean): string {
  const [first] = exports;
  const whose = first === undefined ? "" : ` of block snapshot ${printable(first.snapshot)}`;
  const until = "until they are stopped or the snapshot ends";
  return `Exporting ${plural(exports.length, "disk")}${whose} read-only ${until}\n\n${exportTable(exports, terminal)}`;
}

export function exportsStopped({ exports }: StopBlockExportsResponse, snapshot: string): string {
  const whose = `block snapshot ${printable(snapshot)}`;
  if (exports.length === 0) return `There were no exports of ${whose}\n`;
  return `Stopped ${plural(exports.length, "export")} of ${whose}\n`;
}
