import { createTask, validateDetailed } from "node-cron";
import { wallClock, zoneDay } from "./time-zone.js";

/**
 * When a job runs. node-cron reads expressions and says which wall clock times they match; which instants those are is decided
 * here, because node-cron leaves out times that the change to summer time skips, and knows no time but that of the system.
 *
 * - A time that does not exist on a day means the first instant after the gap; several of them are one run.
 * - A time that exists twice on a day means the first of the two. What comes around every few minutes pauses in the second hour.
 */

const DAY_MS = 86_400_000;

/** How far is looked for a matching day. 29 February falls on a Sunday every 28 years, or every 40. */
const HORIZON_DAYS = 41 * 366;

/** More missed moments are not counted. */
const MOST_MISSED = 1000;

/** A moment at which a job should run now. */
export interface Due {
  readonly scheduledMs: number;
  /** Moments before it that nobody handled, and nobody will; at most 1000 are counted. */
  readonly missedCount: number;
}

export interface DueQuery {
  /** Moments up to here are handled. */
  readonly handledMs: number;
  readonly nowMs: number;
  /** Moments after `handledMs` that are handled too: the clock has been set back. */
  readonly handled?: ReadonlySet<number>;
  /** How long after its moment a run begins; left out: at once. */
  readonly delayOf?: (scheduledMs: number) => number;
}

/** Undefined for an expression that can be used, else what is wrong with it. */
export function scheduleProblem(expression: string): string | undefined {
  const { valid, errors } = validateDetailed(expression);
  if (!valid) return errors.map(({ field, message }) => `${field}: ${message}`).join("; ");
  // Of a time that has whole weeks and years ahead of it like any other.
  if (new Schedule(expression, "UTC").next(Date.UTC(2026, 0, 1), 1).length === 0) return "it never comes";
  return undefined;
}

/** A cron expression in a time zone. Both must be sound: see `scheduleProblem` and `isTimeZone`. */
export class Schedule {
  readonly expression: string;
  readonly timeZone: string;
  /** Milliseconds from midnight, ascending. */
  readonly #timesOfDay: readonly number[];
  readonly #matches: (wallMs: number) => boolean;

  constructor(expression: string, timeZone: string) {
    this.expression = expression;
    this.timeZone = timeZone;
    const { fields } = validateDetailed(expression);
    if (fields === undefined) throw new RangeError(`Expected a cron expression, got ${expression}`);
    const { hour, minute, second } = fields;
    this.#timesOfDay = hour
      .flatMap((h) => minute.flatMap((m) => second.map((s) => (h * 3600 + m * 60 + s) * 1000)))
      .toSorted((a, b) => a - b);
    // Never started: it only matches. Its zone is UTC, so that every wall clock time exists.
    const task = createTask(expression, () => undefined, { timezone: "UTC" });
    // node-cron keeps a list of all tasks, and would keep this one for ever.
    void task.destroy();
    this.#matches = (wallMs) => task.match(new Date(wallMs));
  }

  /** The next moments after an instant, at most `count`; fewer if the expression has no more within some 40 years. */
  next(afterMs: number, count: number): readonly number[] {
    const found: number[] = [];
    for (const moment of this.#after(afterMs)) {
      if (found.push(moment) >= count) break;
    }
    return found;
  }

  /** The moments after `afterMs` and up to `untilMs`. */
  between(afterMs: number, untilMs: number): readonly number[] {
    return [...this.#before(untilMs, afterMs)].toReversed();
  }

  /** The newest moment whose run may begin now. */
  due({ handledMs, nowMs, handled = new Set(), delayOf = () => 0 }: DueQuery): Due | undefined {
    for (const scheduledMs of this.#before(nowMs, handledMs)) {
      // What was missed before that one has been given up with it.
      if (handled.has(scheduledMs)) return undefined;
      if (scheduledMs + delayOf(scheduledMs) > nowMs) continue;
      let missedCount = 0;
      for (const missedMs of this.#before(scheduledMs - 1, handledMs)) {
        if (handled.has(missedMs) || missedCount >= MOST_MISSED) break;
        missedCount++;
      }
      return { scheduledMs, missedCount };
    }
    return undefined;
  }

  *#after(afterMs: number): Generator<number> {
    // A day earlier: what a gap skips comes later than its wall clock time.
    const firstDay = dayOf(wallClock(this.timeZone, afterMs)) - DAY_MS;
    let last = afterMs;
    for (let index = 0; index < HORIZON_DAYS; index++) {
      for (const moment of this.#ofDay(firstDay + index * DAY_MS)) {
        if (moment <= last) continue;
        yield moment;
        last = moment;
      }
    }
  }

  /** Those up to `untilMs` and after `downToMs`, newest first. */
  *#before(untilMs: number, downToMs: number): Generator<number> {
    if (untilMs <= downToMs) return;
    const lastDay = dayOf(wallClock(this.timeZone, untilMs)) + DAY_MS;
    const firstDay = dayOf(wallClock(this.timeZone, downToMs)) - DAY_MS;
    let last = untilMs + 1;
    for (let day = lastDay; day >= firstDay; day -= DAY_MS) {
      for (const moment of this.#ofDay(day).toReversed()) {
        if (moment <= downToMs) return;
        if (moment >= last) continue;
        yield moment;
        last = moment;
      }
    }
  }

  /** In order, repeats included. */
  #ofDay(wallDayMs: number): readonly number[] {
    const [first] = this.#timesOfDay;
    if (first === undefined || !this.#matches(wallDayMs + first)) return [];
    const day = zoneDay(this.timeZone, wallDayMs);
    return this.#timesOfDay.map((time) => day.instantOf(wallDayMs + time));
  }
}

/** The first time of day `HH:MM` in the zone after an instant. */
export function nextTimeOfDay(time: string, timeZone: string, afterMs: number): number {
  const [hour, minute] = time.split(":").map(Number);
  const [next] = new Schedule(`${minute ?? 0} ${hour ?? 0} * * *`, timeZone).next(afterMs, 1);
  // There is one every day.
  return next ?? Infinity;
}

/** How long after its moment a run begins: less than `jitterMs`, the same whenever it is asked, different between jobs. */
export function jitterOf(job: string, scheduledMs: number, jitterMs: number): number {
  return jitterMs === 0 ? 0 : hash(`${job} ${scheduledMs}`) % jitterMs;
}

/** FNV-1a, 32 bits, with a final mix: neighbouring moments are to differ in all bits. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const byte of Buffer.from(text)) value = Math.imul(value ^ byte, 0x01000193);
  value = Math.imul(value ^ (value >>> 16), 0x45d9f3b);
  return (value ^ (value >>> 16)) >>> 0;
}

function dayOf(wallMs: number): number {
  return Math.floor(wallMs / DAY_MS) * DAY_MS;
}
