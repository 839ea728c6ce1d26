export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

/** Binary units, as every size of this program is read and written (`1.5 GiB`). */
export function formatBytes(bytes: number): string {
  for (const [unit, factor] of [
    ["TiB", TIB],
    ["GiB", GIB],
    ["MiB", MIB],
    ["KiB", KIB],
  ] as const) {
    // What would round to 1024 of the unit below is 1 of this one.
    if (bytes >= factor - factor / KIB / 20) return `${trimZero((bytes / factor).toFixed(1))} ${unit}`;
  }
  return `${bytes} B`;
}

/** `10G`, `1.5T`, `512M`, `4096`: binary units, as everywhere. Undefined if it is no size, or not a whole number of bytes. */
export function parseBytes(text: string): number | undefined {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)$/.exec(text) ?? [];
  if (number === undefined) return undefined;
  const bytes =
    Number(number) * { K: KIB, M: MIB, G: GIB, T: TIB, "": 1 }[unit as "K" | "M" | "G" | "T" | ""];
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

const DURATION_UNITS_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `90s`, `30m`, `1.5h`, `2d` in milliseconds. Undefined without a unit: a mere number could mean any of them. */
export function parseDuration(text: string): number | undefined {
  const [, amount, unit] = /^(\d{1,9}(?:\.\d{1,3})?)([smhd])$/.exec(text) ?? [];
  if (amount === undefined || unit === undefined) return undefined;
  return Math.round(Number(amount) * DURATION_UNITS_MS[unit as keyof typeof DURATION_UNITS_MS]);
}

export function formatDuration(ms: number): string {
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${trimZero((ms / 1000).toFixed(1))} s`;
  const totalSeconds = Math.round(ms / 1000);
  const minutes = Math.floor(totalSeconds / 60);
  if (minutes < 60) return `${minutes} min ${totalSeconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function trimZero(text: string): string {
  return text.endsWith(".0") ? text.slice(0, -2) : text;
}
