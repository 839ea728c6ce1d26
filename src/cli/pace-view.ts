import type { BackupLimits, BackupProgress, BackupWaits } from "../api/messages.js";
import { formatBytes, formatDuration } from "../shared/units.js";

type Pace = NonNullable<BackupProgress["pace"]>;

/** Why a backup was slow; undefined if it did not wait. */
export function waitsInWords(waits: BackupWaits | null): string | undefined {
  if (waits === null) return undefined;
  const { readLimitMs, writeLimitMs, guestLatencyMs } = waits;
  const parts = [
    [readLimitMs, "the read limit"],
    [writeLimitMs, "the write limit"],
    [guestLatencyMs, "the guest's writes"],
  ] as const;
  const waited = parts.filter(([ms]) => ms > 0).map(([ms, what]) => `${formatDuration(ms)} for ${what}`);
  return waited.length === 0 ? undefined : waited.join(", ");
}

export function paceInWords({ waits, ...rates }: Pace): string {
  const limits = [
    ...ratesInWords(rates),
    ...(rates.guestBytesPerSecond === undefined
      ? []
      : [`read ${perSecond(rates.guestBytesPerSecond)} for the guest's writes`]),
  ];
  const waited = waitsInWords(waits);
  const waiting = waited === undefined ? [] : [`waited ${waited}`];
  return [...(limits.length === 0 ? ["no limit now"] : limits), ...waiting].join(", ");
}

/** Such as `read 100 MiB/s, from 08:00 until 18:00 read 20 MiB/s (Europe/Berlin), guest's writes within 20 ms`. */
export function limitsInWords({ hours, timeZone, guestLatencyMs, ...rates }: BackupLimits): string {
  const hourly = hours.map(
    ({ from, until, ...present }) =>
      `from ${from} until ${until} ${ratesInWords(present).join(" and ")} (${timeZone})`,
  );
  const latency = guestLatencyMs === undefined ? [] : [`guest's writes within ${guestLatencyMs} ms`];
  return [...ratesInWords(rates), ...hourly, ...latency].join(", ");
}

function ratesInWords({
  readBytesPerSecond: read,
  writeBytesPerSecond: write,
}: Pick<BackupLimits, "readBytesPerSecond" | "writeBytesPerSecond">): readonly string[] {
  return [
    ...(read === undefined ? [] : [`read ${perSecond(read)}`]),
    ...(write === undefined ? [] : [`write ${perSecond(write)}`]),
  ];
}

function perSecond(bytes: number): string {
  return `${formatBytes(bytes)}/s`;
}
