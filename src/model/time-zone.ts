/**
 * Wall clock times are milliseconds as `Date.UTC` would count them. Rules of zones are those of the host's ICU, through Intl.
 */

const DAY_MS = 86_400_000;

const formats = new Map<string, Intl.DateTimeFormat>();

/** That of this host, as `TZ` or /etc/localtime has it. */
export function hostZone(): string {
  const { timeZone } = new Intl.DateTimeFormat().resolvedOptions();
  return isTimeZone(timeZone) ? timeZone : "UTC";
}

export function isTimeZone(name: string): boolean {
  try {
    formatOf(name);
    return true;
  } catch {
    return false;
  }
}

/** What clocks in the zone show at an instant, in whole seconds. */
export function wallClock(timeZone: string, instantMs: number): number {
  const seconds = Math.floor(instantMs / 1000) * 1000;
  const part: Record<string, number> = {};
  for (const { type, value } of formatOf(timeZone).formatToParts(seconds)) part[type] = Number(value);
  const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = part;
  return Date.UTC(year, month - 1, day, hour, minute, second);
}

/** How the wall clock of a zone maps to instants around one day: at most one change of its offset is looked for. */
export interface ZoneDay {
  /** The first instant at which clocks show `wallMs`; for a time that is skipped, the first instant after the gap. */
  instantOf(wallMs: number): number;
}

export function zoneDay(timeZone: string, wallDayMs: number): ZoneDay {
  // Offsets are -12 to +14 hours: these instants are surely before and after the day.
  const fromMs = wallDayMs - DAY_MS;
  const untilMs = wallDayMs + 2 * DAY_MS;
  const before = offsetAt(timeZone, fromMs);
  const after = offsetAt(timeZone, untilMs);
  if (before === after) return { instantOf: (wallMs) => wallMs - before };
  const changeMs = changeOfOffset(timeZone, fromMs, untilMs);
  return {
    instantOf(wallMs) {
      const early = wallMs - before;
      return early < changeMs ? early : Math.max(changeMs, wallMs - after);
    },
  };
}

function offsetAt(timeZone: string, instantMs: number): number {
  return wallClock(timeZone, instantMs) - Math.floor(instantMs / 1000) * 1000;
}

/** The first instant with the later offset, to the second. */
function changeOfOffset(timeZone: string, fromMs: number, untilMs: number): number {
  const before = offsetAt(timeZone, fromMs);
  let low = fromMs / 1000;
  let high = untilMs / 1000;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (offsetAt(timeZone, middle * 1000) === before) low = middle;
    else high = middle;
  }
  return high * 1000;
}

function formatOf(timeZone: string): Intl.DateTimeFormat {
  const known = formats.get(timeZone);
  if (known !== undefined) return known;
  const format = new Intl.DateTimeFormat("en-US", {
    ...{ timeZone, calendar: "iso8601", numberingSystem: "latn", hourCycle: "h23" },
    ...{ year: "numeric", month: "numeric", day: "numeric" },
    ...{ hour: "numeric", minute: "numeric", second: "numeric" },
  });
  formats.set(timeZone, format);
  return format;
}
