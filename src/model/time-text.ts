import { FleeceError } from "../shared/errors.js";

const SYNTAX =
  /^(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(?: ?([Zz]|[+-]\d\d:\d\d))?)?$/;
const EXPECTED = "RFC 3339 (2026-11-20T03:00:00Z) or YYYY-MM-DD[ HH:MM[:SS]] in local time";

/**
 * Unix milliseconds of a moment that a person writes: RFC 3339 with its zone, or a date with or without a time in the zone of
 * this process. What is left out is zero, so that a date alone is its midnight. Of a local time that comes twice when clocks are
 * put back it is the first. Fails with INVALID_ARGUMENT.
 */
export function parseTimeText(text: string): number {
  const parts = SYNTAX.exec(text.trim());
  if (parts === null) throw invalid(`Expected a moment as ${EXPECTED}, got ${JSON.stringify(text)}`);
  const [, year, month, day, hour, minute, second, fraction = "", zone] = parts;
  const fields = [year, month, day, hour, minute, second].map((digits) => Number(digits ?? 0));
  const [y = 0, mo = 0, d = 0, h = 0, mi = 0, s = 0] = fields;
  const ms = Number(fraction.slice(0, 3).padEnd(3, "0"));
  // What does not exist, such as February 30, rolls over to something else.
  const asUtc = new Date(Date.UTC(y, mo - 1, d, h, mi, s, ms));
  const utcFields = [asUtc.getUTCFullYear(), asUtc.getUTCMonth() + 1, asUtc.getUTCDate()];
  const utcTime = [asUtc.getUTCHours(), asUtc.getUTCMinutes(), asUtc.getUTCSeconds()];
  if (![...utcFields, ...utcTime].every((value, index) => value === fields[index])) {
    throw invalid(`Expected a date and time that exist, got ${JSON.stringify(text)}`);
  }
  if (zone !== undefined) return asUtc.getTime() - zoneMs(zone, text);
  const local = new Date(y, mo - 1, d, h, mi, s, ms);
  if (local.getHours() === h && local.getMinutes() === mi) return local.getTime();
  const zoneName = new Intl.DateTimeFormat().resolvedOptions().timeZone;
  throw invalid(
    `Expected a time that exists in ${zoneName}, got ${JSON.stringify(text)}: clocks are put forward over it`,
  );
}

function zoneMs(zone: string, text: string): number {
  if (zone.toUpperCase() === "Z") return 0;
  const [hours = 0, minutes = 0] = zone.slice(1).split(":").map(Number);
  if (hours > 23 || minutes > 59) {
    throw invalid(`Expected an offset from UTC up to 23:59, got ${JSON.stringify(text)}`);
  }
  return (zone.startsWith("-") ? -1 : 1) * (hours * 60 + minutes) * 60_000;
}

function invalid(message: string): FleeceError {
  return new FleeceError("INVALID_ARGUMENT", message, { facts: { field: "at" } });
}
