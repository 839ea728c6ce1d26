import { wallClock } from "./time-zone.js";

/** What backups may take of disks and storage. In bytes per second; left out: as much as they can. */
export interface Rates {
  /** Of the domains' disks. */
  readonly readBytesPerSecond?: number | undefined;
  /** Of data, into the repository. */
  readonly writeBytesPerSecond?: number | undefined;
}

/** Rates that hold for a part of each day, in minutes from midnight. One that ends before it begins goes over midnight. */
export interface HourlyRates extends Rates {
  readonly fromMinute: number;
  readonly untilMinute: number;
}

/** Of one run of a job, or of one backup that somebody has asked for: of all of its disks, and domains, together. */
export interface BackupLimits extends Rates {
  /** The first that has begun, and has the rate, wins over the rate of the rest of the day. */
  readonly hours: readonly HourlyRates[];
  /** By whose clocks `hours` go. */
  readonly timeZone: string;
  /** How long the guest's writes may take before reads are slowed; undefined: nobody looks. */
  readonly guestLatencyMs?: number | undefined;
}

export const NO_LIMITS: BackupLimits = { hours: [], timeZone: "UTC" };

export function isLimited({
  readBytesPerSecond,
  writeBytesPerSecond,
  hours,
  guestLatencyMs,
}: BackupLimits): boolean {
  const always = [readBytesPerSecond, writeBytesPerSecond, guestLatencyMs];
  return hours.length > 0 || always.some((value) => value !== undefined);
}

/** Both are `Infinity` where nothing limits them. */
export interface PresentRates {
  readonly readBytesPerSecond: number;
  readonly writeBytesPerSecond: number;
}

const MINUTE_MS = 60_000;
const DAY_MINUTES = 1440;

export function ratesAt(limits: BackupLimits, instantMs: number): PresentRates {
  const minute = Math.floor(wallClock(limits.timeZone, instantMs) / MINUTE_MS) % DAY_MINUTES;
  const present = [...limits.hours.filter((hours) => hasBegun(hours, minute)), limits];
  const rate = (key: keyof Rates): number =>
    present.find((rates) => rates[key] !== undefined)?.[key] ?? Infinity;
  return {
    readBytesPerSecond: rate("readBytesPerSecond"),
    writeBytesPerSecond: rate("writeBytesPerSecond"),
  };
}

function hasBegun({ fromMinute, untilMinute }: HourlyRates, minute: number): boolean {
  if (fromMinute < untilMinute) return fromMinute <= minute && minute < untilMinute;
  return fromMinute <= minute || minute < untilMinute;
}

/** What a backup may have to wait for. */
export const WAIT_REASONS = ["readLimit", "writeLimit", "guestLatency"] as const;
export type WaitReason = (typeof WAIT_REASONS)[number];

/** For how long, in milliseconds; each counts by itself, and time in which several disks waited counts once. */
export type BackupWaits = Readonly<Record<WaitReason, number>>;

export function hasWaited(waits: BackupWaits): boolean {
  return WAIT_REASONS.some((reason) => waits[reason] > 0);
}
