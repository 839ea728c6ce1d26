/** The calendar of Berlin in 2027, without the help of anything that the product uses. Dates are `YYYY-MM-DD`. */

const HOUR_MS = 3_600_000;
export const DAY_MS = 24 * HOUR_MS;

export const YEAR = 2027;
const SUMMER_BEGINS_MS = Date.UTC(YEAR, 2, 28, 1);
const SUMMER_ENDS_MS = Date.UTC(YEAR, 9, 31, 1);

function midnightMs(date: string): number {
  return Date.parse(`${date}T00:00:00Z`);
}

export function plusDays(date: string, days: number): string {
  return new Date(midnightMs(date) + days * DAY_MS).toISOString().slice(0, 10);
}

export function daysBetween(from: string, to: string): number {
  return (midnightMs(to) - midnightMs(from)) / DAY_MS;
}

/** When half past two comes: on the day of the gap at its end, three o'clock; on the day with two of them the first. */
export function halfPastTwo(date: string): number {
  const asIfUtc = midnightMs(date) + 2.5 * HOUR_MS;
  if (date === `${YEAR}-03-28`) return SUMMER_BEGINS_MS;
  const isSummer = date > `${YEAR}-03-28` && date <= `${YEAR}-10-31`;
  return asIfUtc - (isSummer ? 2 : 1) * HOUR_MS;
}

export function localDate(timeMs: number): string {
  const isSummer = timeMs >= SUMMER_BEGINS_MS && timeMs < SUMMER_ENDS_MS;
  return new Date(timeMs + (isSummer ? 2 : 1) * HOUR_MS).toISOString().slice(0, 10);
}

/** The Monday that it begins with. */
export function weekOf(date: string): string {
  return plusDays(date, -((new Date(midnightMs(date)).getUTCDay() + 6) % 7));
}
