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

/** How the runs of a table are told: what counts, per second and in CPU time. */
export interface Measures {
  readonly rateName: string;
  readonly rate: (run: Run) => number;
  readonly costName: string;
  readonly cost: (run: Run) => number;
  readonly digits: readonly [rate: number, cost: number];
}

export function gibPerSecond(run: Run): number {
  return run.bytes / GIB / run.seconds;
}

export function cpuPerGib(run: Run): number {
  return run.cpuSeconds / (run.bytes / GIB);
}

const IN_GIB: Measures = {
  rateName: "GiB/s",
  rate: gibPerSecond,
  costName: "CPU s/GiB",
  cost: cpuPerGib,
  digits: [2, 3],
};

/** For small requests of one size. */
export function inRequests(requestBytes: number): Measures {
  return {
    rateName: "requests/s",
    rate: ({ bytes, seconds }) => bytes / requestBytes / seconds,
    costName: "CPU µs/request",
    cost: ({ bytes, cpuSeconds }) => (cpuSeconds * 1e6) / (bytes / requestBytes),
    digits: [0, 1],
  };
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
export function table(rows: readonly Row[], reference: string, measures: Measures = IN_GIB): string {
  const { rateName, costName, rate, cost, digits } = measures;
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
      median(row.runs.map(rate)).toFixed(digits[0]),
      median(row.runs.map(cost)).toFixed(digits[1]),
      ratio(rate),
      ratio(cost),
      peaks.length === 0 ? "–" : (median(peaks) / 2 ** 20).toFixed(0),
      row.note ?? "",
    ];
  });
  const head = [
    "client",
    rateName,
    costName,
    `${rateName} ÷ ${reference}`,
    `CPU ÷ ${reference}`,
    "RSS MiB",
    "",
  ];
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
