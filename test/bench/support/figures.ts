const GIB = 2 ** 30;

/** One run of one client. */
export interface Run {
  readonly bytes: number;
  readonly seconds: number;
  /** User and system time of the client alone, not of its server. */
  readonly cpuSeconds: number;
  /** Largest resident size of the client, where it is known. */
  readonly peakRssBytes?: number;
}

export interface Row {
  readonly name: string;
  /** Empty when the client could not be had; then `note` says why. */
  readonly runs: readonly Run[];
  readonly note?: string;
}

export function gibPerSecond(run: Run): number {
  return run.bytes / GIB / run.seconds;
}

export function cpuPerGib(run: Run): number {
  return run.cpuSeconds / (run.bytes / GIB);
}

export function describeRun(run: Run): string {
  const rss =
    run.peakRssBytes === undefined ? "" : `, peak RSS ${(run.peakRssBytes / 2 ** 20).toFixed(0)} MiB`;
  return `${gibPerSecond(run).toFixed(2)} GiB/s, ${cpuPerGib(run).toFixed(3)} client CPU s/GiB${rss}`;
}

/**
 * Medians, and the ratios to the reference of the same round, since rounds on a busy machine differ more than clients:
 * `reference` is the name of the row that the others are held against.
 */
export function table(rows: readonly Row[], reference: string): string {
  const base = rows.find(({ name }) => name === reference);
  const lines = rows.map((row) => {
    if (row.runs.length === 0) return [row.name, "–", "–", "–", "–", "–", row.note ?? ""];
    const ratio = (of: (run: Run) => number) =>
      base === undefined || base.runs.length === 0
        ? "–"
        : median(row.runs.map((run, round) => of(run) / of(base.runs[round] ?? run))).toFixed(2);
    const peaks = row.runs.flatMap(({ peakRssBytes }) => (peakRssBytes === undefined ? [] : [peakRssBytes]));
    return [
      row.name,
      median(row.runs.map(gibPerSecond)).toFixed(2),
      median(row.runs.map(cpuPerGib)).toFixed(3),
      ratio(gibPerSecond),
      ratio(cpuPerGib),
      peaks.length === 0 ? "–" : (median(peaks) / 2 ** 20).toFixed(0),
      row.note ?? "",
    ];
  });
  const head = ["client", "GiB/s", "CPU s/GiB", `GiB/s ÷ ${reference}`, `CPU ÷ ${reference}`, "RSS MiB", ""];
  return format([head, ...lines]);
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}

export function format(cells: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of cells) {
    for (const [column, text] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, text.length);
  }
  return cells
    .map((row) =>
      row
        .map((text, column) => text.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
