import { InvalidArgumentError } from "@commander-js/extra-typings";

const UNITS_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `90s`, `30m`, `1.5h`, `2d` in milliseconds; a number without a unit could mean any of them. */
export function parseDuration(text: string): number {
  const [, amount, unit] = /^(\d{1,9}(?:\.\d{1,3})?)([smhd])$/.exec(text) ?? [];
  if (amount === undefined || unit === undefined) {
    throw new InvalidArgumentError(
      `Expected a number with a unit, s, m, h or d (90s, 30m, 2h, 1d), got ${JSON.stringify(text)}.`,
    );
  }
  return Math.round(Number(amount) * UNITS_MS[unit as keyof typeof UNITS_MS]);
}
