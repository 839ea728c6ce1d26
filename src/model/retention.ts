import { type BackupEntry, byTime, chainOf, type IntactEntry, isIntact } from "./backup.js";

/**
 * Which backups stay. `last` to `yearly` each keep so many, and a backup that any of them keeps stays; without any of them
 * all stay. Numbers are 1 or more.
 */
export interface RetentionPolicy {
  /** The newest ones. */
  readonly last?: number | undefined;
  /** The newest of each of the last so many days, ISO weeks, months or years that have a backup. */
  readonly daily?: number | undefined;
  readonly weekly?: number | undefined;
  readonly monthly?: number | undefined;
  readonly yearly?: number | undefined;
  /** The chain of the newest backup is not made shorter than this; what is missing are its newest. */
  readonly minimumChain?: number | undefined;
  /**
   * No chain stays longer than this: its oldest are merged, though another rule would keep them. Merging rather than a
   * new full: it costs no more than the increments, the guest is not read, and no content is stored twice.
   */
  readonly maximumChainLength?: number | undefined;
  /** An IANA name: when a day begins. */
  readonly timeZone: string;
}

export type RetentionAction =
  /** It stays. */
  | "keep"
  /** It goes, with all that is based on it. */
  | "delete"
  /** It goes, and what the only backup that is based on it needs of it goes there. */
  | "merge"
  /** It is to go, but several backups are based on it; it stays until that is one. */
  | "wait"
  /** It cannot be restored, so it counts for nothing and is left to people. */
  | "damaged";

export interface RetentionDecision {
  readonly entry: BackupEntry;
  readonly action: RetentionAction;
  /** In words, at least one: `newest`, `daily 2026-11-20`, `no rule keeps it`. */
  readonly reasons: readonly string[];
  /** Of a merge: the backup that is based on it now. */
  readonly into?: string;
}

export interface RetentionPlan {
  /** In the order of the entries. */
  readonly decisions: readonly RetentionDecision[];
  /**
   * What to do, one after the other: after each step every other backup can be restored. Deletions first, the newest
   * before what it is based on; then merges, the oldest first, so that each costs what the younger one stores.
   */
  readonly steps: readonly RetentionDecision[];
}

const CALENDAR = ["daily", "weekly", "monthly", "yearly"] as const;

/**
 * `entries` are all backups of one domain in one repository. The newest that can be restored always stays, and the last that
 * was taken on top of it.
 */
export function planRetention(entries: readonly BackupEntry[], policy: RetentionPolicy): RetentionPlan {
  const sound = entries
    .filter(isIntact)
    .filter(({ id }) => chainOf(entries, id).complete)
    .toSorted(byTime);
  const reasons = keepReasons(sound, policy);
  const dropped = dropFromLongChains(sound, reasons, policy.maximumChainLength);
  const fates = decideFates(sound, childrenById(sound), reasons);
  const decisions = entries.map((entry): RetentionDecision => {
    const fate = fates.get(entry.id);
    if (fate === undefined) return { entry, action: "damaged", reasons: [damageOf(entries, entry)] };
    const kept = reasons.get(entry.id);
    const why = kept ?? [dropped.get(entry.id) ?? "no rule keeps it"];
    if (fate.action !== "wait") return { entry, reasons: why, ...fate };
    const based = fate.children.join(", ");
    return { entry, action: "wait", reasons: [...why, `several backups are based on it: ${based}`] };
  });
  const ordered = sound.flatMap(({ id }) => decisions.filter(({ entry }) => entry.id === id));
  return {
    decisions,
    steps: [
      ...ordered.filter(({ action }) => action === "delete").toReversed(),
      ...ordered.filter(({ action }) => action === "merge"),
    ],
  };
}

/** What is based on a backup was taken after it, though a clock that was set back says otherwise. In the order in which it was taken. */
function takenAfter(newestFirst: readonly IntactEntry[], entry: IntactEntry): readonly IntactEntry[] {
  const next = newestFirst.find(({ manifest }) => manifest.parent === entry.id);
  return next === undefined ? [] : [next, ...takenAfter(newestFirst, next)];
}

/** Why each backup stays, by id; those that are to go are not in it. `sound` is sorted, oldest first. */
function keepReasons(sound: readonly IntactEntry[], policy: RetentionPolicy): Map<string, string[]> {
  const reasons = new Map<string, string[]>();
  const keep = (entry: IntactEntry, reason: string): void => {
    reasons.set(entry.id, [...(reasons.get(entry.id) ?? []), reason]);
  };
  const newestFirst = sound.toReversed();
  const [newest] = newestFirst;
  if (newest !== undefined) {
    keep(newest, "newest");
    for (const entry of takenAfter(newestFirst, newest).slice(-1)) keep(entry, "taken last");
  }
  for (const entry of newestFirst) if (entry.protected === true) keep(entry, "protected");
  const { last } = policy;
  if (last !== undefined) for (const entry of newestFirst.slice(0, last)) keep(entry, `last ${last}`);
  for (const rule of CALENDAR) {
    const count = policy[rule];
    if (count === undefined) continue;
    for (const [bucket, entry] of newestOfBuckets(newestFirst, BUCKETS[rule], policy.timeZone, count)) {
      keep(entry, `${rule} ${bucket}`);
    }
  }
  const keepsSome = last !== undefined || CALENDAR.some((rule) => policy[rule] !== undefined);
  if (!keepsSome) {
    for (const entry of newestFirst) if (!reasons.has(entry.id)) keep(entry, "no rule lets it go");
  }
  const { minimumChain } = policy;
  if (newest !== undefined && minimumChain !== undefined) {
    const chain = chainOf(sound, newest.id);
    const members = chain.complete ? chain.entries.toReversed() : [];
    const missing = minimumChain - members.filter(({ id }) => reasons.has(id)).length;
    const others = members.filter(({ id }) => !reasons.has(id));
    for (const entry of others.slice(0, Math.max(0, missing)))
      keep(entry, `minimum chain of ${minimumChain}`);
  }
  return reasons;
}

/**
 * Takes the oldest of chains that are too long out of `reasons`, and says why. Not a protected one, not one that several are
 * based on, and never the end of a chain.
 */
function dropFromLongChains(
  sound: readonly IntactEntry[],
  reasons: Map<string, string[]>,
  maximum: number | undefined,
): ReadonlyMap<string, string> {
  const dropped = new Map<string, string>();
  if (maximum === undefined) return dropped;
  const children = childrenById(sound);
  let fates = decideFates(sound, children, reasons);
  const mayGo = ({ id, protected: isProtected }: IntactEntry): boolean =>
    reasons.has(id) && isProtected !== true && survivors(children, fates, id).length === 1;
  for (const entry of sound.toReversed()) {
    const chain = chainOf(sound, entry.id);
    if (!reasons.has(entry.id) || !chain.complete) continue;
    const staying = chain.entries.filter(({ id }) => ["keep", "wait"].includes(fates.get(id)?.action ?? ""));
    const excess = staying.length - maximum;
    if (excess <= 0) continue;
    for (const { id } of staying.slice(0, -1).filter(mayGo).slice(0, excess)) {
      reasons.delete(id);
      dropped.set(id, `its chain is longer than ${maximum}`);
    }
    fates = decideFates(sound, children, reasons);
  }
  return dropped;
}

type Fate =
  | { readonly action: "keep" | "delete" }
  | { readonly action: "merge"; readonly into: string }
  | { readonly action: "wait"; readonly children: readonly string[] };

type Children = ReadonlyMap<string, readonly string[]>;

/** What becomes of each backup, by what stays of those that are based on it. */
function decideFates(
  sound: readonly IntactEntry[],
  children: Children,
  kept: ReadonlyMap<string, unknown>,
): ReadonlyMap<string, Fate> {
  const fates = new Map<string, Fate>();
  const decide = (id: string): Fate => {
    const known = fates.get(id);
    if (known !== undefined) return known;
    // Decides those first, if a clock that was set back made them look older.
    for (const child of children.get(id) ?? []) decide(child);
    const fate = fateOf(kept.has(id), survivors(children, fates, id));
    fates.set(id, fate);
    return fate;
  };
  for (const { id } of sound.toReversed()) decide(id);
  return fates;
}

function fateOf(isKept: boolean, surviving: readonly string[]): Fate {
  if (isKept) return { action: "keep" };
  const [only] = surviving;
  if (only === undefined) return { action: "delete" };
  return surviving.length > 1 ? { action: "wait", children: surviving } : { action: "merge", into: only };
}

function survivors(children: Children, fates: ReadonlyMap<string, Fate>, id: string): readonly string[] {
  return (children.get(id) ?? []).filter((child) => fates.get(child)?.action !== "delete");
}

function childrenById(sound: readonly IntactEntry[]): Children {
  const children = new Map<string, string[]>();
  for (const { id, manifest } of sound) {
    if (manifest.parent === undefined) continue;
    children.set(manifest.parent, [...(children.get(manifest.parent) ?? []), id]);
  }
  return children;
}

function damageOf(entries: readonly BackupEntry[], entry: BackupEntry): string {
  if (!isIntact(entry)) return `damaged: ${entry.damage}`;
  const chain = chainOf(entries, entry.id);
  return `cannot be restored: ${chain.complete ? "unknown" : chain.reason}`;
}

/** Names the days, weeks, months or years by their dates. */
const BUCKETS: Readonly<Record<(typeof CALENDAR)[number], (date: CalendarDate) => string>> = {
  daily: ({ year, month, day }) => `${year}-${two(month)}-${two(day)}`,
  weekly: isoWeek,
  monthly: ({ year, month }) => `${year}-${two(month)}`,
  yearly: ({ year }) => String(year),
};

interface CalendarDate {
  readonly year: number;
  /** From 1. */
  readonly month: number;
  readonly day: number;
}

function newestOfBuckets(
  newestFirst: readonly IntactEntry[],
  nameOf: (date: CalendarDate) => string,
  timeZone: string,
  count: number,
): ReadonlyMap<string, IntactEntry> {
  const dates = calendar(timeZone);
  const found = new Map<string, IntactEntry>();
  for (const entry of newestFirst) {
    if (found.size === count) break;
    const bucket = nameOf(dates(Date.parse(entry.manifest.time)));
    if (!found.has(bucket)) found.set(bucket, entry);
  }
  return found;
}

/** The date that calendars of the zone show at a moment. */
function calendar(timeZone: string): (timeMs: number) => CalendarDate {
  const format = new Intl.DateTimeFormat("en-US", {
    ...{ timeZone, calendar: "iso8601", numberingSystem: "latn" },
    ...{ year: "numeric", month: "numeric", day: "numeric" },
  });
  return (timeMs) => {
    const parts = format.formatToParts(timeMs);
    const part = (type: string): number => Number(parts.find((found) => found.type === type)?.value);
    return { year: part("year"), month: part("month"), day: part("day") };
  };
}

const DAY_MS = 86_400_000;

/** A week begins on Monday and belongs to the year of its Thursday (ISO 8601). */
function isoWeek({ year, month, day }: CalendarDate): string {
  const date = Date.UTC(year, month - 1, day);
  const weekday = (new Date(date).getUTCDay() + 6) % 7;
  const thursday = new Date(date + (3 - weekday) * DAY_MS);
  const weekYear = thursday.getUTCFullYear();
  const week = 1 + Math.floor((thursday.getTime() - Date.UTC(weekYear, 0, 1)) / (7 * DAY_MS));
  return `${weekYear}-W${two(week)}`;
}

function two(value: number): string {
  return String(value).padStart(2, "0");
}
