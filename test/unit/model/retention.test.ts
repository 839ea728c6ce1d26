import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type BackupEntry, chainOf, type IntactEntry } from "../../../src/model/backup.js";
import { planRetention, type RetentionPlan, type RetentionPolicy } from "../../../src/model/retention.js";
import { fullEntry } from "../api/samples.js";

const UTC = { timeZone: "UTC" };
const DAY_MS = 86_400_000;

function backup(
  id: string,
  time: string,
  options: { parent?: string; protected?: boolean } = {},
): IntactEntry {
  const { parent, protected: isProtected } = options;
  const { parent: _, ...manifest } = fullEntry.manifest;
  return {
    ...fullEntry,
    id,
    ...(isProtected === true ? { protected: true } : {}),
    manifest: {
      ...manifest,
      ...{ id, time, level: parent === undefined ? "full" : "incremental" },
      ...(parent === undefined ? {} : { parent }),
    },
  };
}

/** One chain, a backup at each time. */
function chain(...times: readonly string[]): readonly IntactEntry[] {
  return times.map((time, index) =>
    backup(`b${index}`, time, index === 0 ? {} : { parent: `b${index - 1}` }),
  );
}

function days(count: number): readonly string[] {
  return Array.from({ length: count }, (_, day) => new Date(Date.UTC(2026, 10, 1 + day, 3)).toISOString());
}

function fates({ decisions }: RetentionPlan): Record<string, string> {
  return Object.fromEntries(
    decisions.map(({ entry, action, reasons, into }) => [
      entry.id,
      `${action}${into === undefined ? "" : ` ${into}`}: ${reasons.join(", ")}`,
    ]),
  );
}

describe("planRetention", () => {
  it("keeps all without a rule that lets backups go", () => {
    const plan = planRetention(chain(...days(3)), UTC);
    expect(plan.steps).toEqual([]);
    expect(fates(plan)).toMatchObject({ b0: "keep: no rule lets it go", b2: "keep: newest" });
  });

  it("keeps what was taken last also if the clock had been set back before it", () => {
    const entries = chain("2026-11-02T03:00:00Z", "2026-11-01T03:00:00Z", "2026-11-01T02:00:00Z");
    expect(fates(planRetention(entries, { ...UTC, last: 1 }))).toEqual({
      b0: "keep: newest, last 1",
      b1: "merge b2: no rule keeps it",
      b2: "keep: taken last",
    });
  });

  it("keeps the newest of each day, week, month and year, and says which", () => {
    const times = [
      "2025-12-28T03:00:00Z",
      "2025-12-29T03:00:00Z",
      "2026-01-04T03:00:00Z",
      "2026-01-04T09:00:00Z",
    ];
    const plan = planRetention(chain(...times), { ...UTC, daily: 1, weekly: 2, monthly: 2, yearly: 5 });
    expect(fates(plan)).toEqual({
      b0: "keep: weekly 2025-W52",
      b1: "keep: monthly 2025-12, yearly 2025",
      b2: "merge b3: no rule keeps it",
      b3: "keep: newest, daily 2026-01-04, weekly 2026-W01, monthly 2026-01, yearly 2026",
    });
  });

  it("counts days by the calendar of the zone, through a change of its clocks", () => {
    const times = [
      "2026-10-24T21:30:00Z",
      "2026-10-24T22:30:00Z",
      "2026-10-25T22:30:00Z",
      "2026-10-25T23:30:00Z",
    ];
    const berlin = planRetention(chain(...times), { daily: 3, timeZone: "Europe/Berlin" });
    expect(fates(berlin)).toEqual({
      b0: "keep: daily 2026-10-24",
      b1: "merge b2: no rule keeps it",
      b2: "keep: daily 2026-10-25",
      b3: "keep: newest, daily 2026-10-26",
    });
  });

  it("deletes the end of a chain, and merges only what another is based on", () => {
    const [one, two, three] = chain(...days(3)) as [IntactEntry, IntactEntry, IntactEntry];
    const next = backup("next", "2026-12-01T03:00:00Z");
    const plan = planRetention([one, two, three, next], { ...UTC, last: 1 });
    expect(plan.steps.map(({ entry, action }) => `${action} ${entry.id}`)).toEqual([
      "delete b2",
      "delete b1",
      "delete b0",
    ]);
  });

  it("lets a backup wait on which several are based", () => {
    const entries = [
      backup("a", "2026-11-01T00:00:00Z"),
      backup("b", "2026-11-02T00:00:00Z", { parent: "a" }),
      backup("c", "2026-11-03T00:00:00Z", { parent: "a" }),
    ];
    expect(fates(planRetention(entries, { ...UTC, last: 2 }))["a"]).toBe(
      "wait: no rule keeps it, several backups are based on it: b, c",
    );
  });

  it("counts no damaged backup and none with a gap in its chain, and leaves them alone", () => {
    const entries: readonly BackupEntry[] = [
      { repository: "default", domain: "web01", id: "torn", damage: "it has no manifest" },
      backup("good", "2026-11-01T00:00:00Z"),
      backup("gap", "2026-11-02T00:00:00Z", { parent: "gone" }),
    ];
    const plan = planRetention(entries, { ...UTC, last: 1 });
    expect(plan.steps).toEqual([]);
    expect(fates(plan)).toEqual({
      torn: "damaged: damaged: it has no manifest",
      good: "keep: newest, last 1",
      gap: "damaged: cannot be restored: backup gone is missing",
    });
  });

  it("leaves the newest chain its minimum, and no chain more than its maximum", () => {
    const kept = (policy: Omit<RetentionPolicy, "timeZone">): string[] =>
      planRetention(chain(...days(6)), { ...policy, ...UTC })
        .decisions.filter(({ action }) => action === "keep")
        .map(({ entry }) => entry.id);
    expect(kept({ yearly: 1, minimumChain: 3 })).toEqual(["b3", "b4", "b5"]);
    expect(kept({ maximumChainLength: 2 })).toEqual(["b4", "b5"]);
    expect(kept({ last: 5, maximumChainLength: 3 })).toEqual(["b3", "b4", "b5"]);
  });
});

interface History {
  readonly entries: readonly IntactEntry[];
  readonly policy: RetentionPolicy;
}

const count = fc.option(fc.integer({ min: 1, max: 5 }), { nil: undefined });

const history: fc.Arbitrary<History> = fc.record({
  entries: fc
    .array(
      fc.record({
        hours: fc.integer({ min: 1, max: 24 * 40 }),
        back: fc.integer({ min: 0, max: 4 }),
        isProtected: fc.nat(5).map((value) => value === 0),
      }),
      { maxLength: 16 },
    )
    .map((steps) => {
      let time = Date.UTC(2025, 11, 20);
      return steps.map(({ hours, back, isProtected }, index) => {
        time += hours * 3_600_000;
        const parent = back === 0 || index - back < 0 ? {} : { parent: `b${index - back}` };
        return backup(`b${index}`, new Date(time).toISOString(), { ...parent, protected: isProtected });
      });
    }),
  policy: fc.record({
    ...{ last: count, daily: count, weekly: count, monthly: count, yearly: count },
    ...{ minimumChain: count, maximumChainLength: count, timeZone: fc.constant("UTC") },
  }),
});

/** The calendar rules again, by other means: names of buckets that only tell equal ones from others. */
const BUCKETS = {
  last: ({ id }: IntactEntry) => id,
  daily: ({ manifest }: IntactEntry) => manifest.time.slice(0, 10),
  weekly: ({ manifest }: IntactEntry) => String(Math.floor((Date.parse(manifest.time) / DAY_MS + 3) / 7)),
  monthly: ({ manifest }: IntactEntry) => manifest.time.slice(0, 7),
  yearly: ({ manifest }: IntactEntry) => manifest.time.slice(0, 4),
} as const;

function keptByRules({ entries, policy }: History): ReadonlySet<string> {
  const rules = Object.entries(BUCKETS).flatMap(([rule, bucketOf]) => {
    const limit = policy[rule as keyof typeof BUCKETS];
    return limit === undefined ? [] : [{ limit, bucketOf }];
  });
  const newestFirst = entries.toReversed();
  const always = newestFirst.filter((entry, index) => index === 0 || entry.protected === true);
  const kept = new Set((rules.length === 0 ? entries : always).map(({ id }) => id));
  for (const { limit, bucketOf } of rules) {
    const buckets = [...new Set(newestFirst.map(bucketOf))].slice(0, limit);
    for (const bucket of buckets) kept.add(newestFirst.find((entry) => bucketOf(entry) === bucket)?.id ?? "");
  }
  return kept;
}

describe("planRetention, against a naive model", () => {
  it("keeps exactly what a rule names, when chains have no bounds", () => {
    fc.assert(
      fc.property(history, ({ entries, policy: { minimumChain: _, maximumChainLength: __, ...policy } }) => {
        const { decisions } = planRetention(entries, policy);
        const kept = decisions.filter(({ action }) => action === "keep").map(({ entry }) => entry.id);
        expect(new Set(kept)).toEqual(keptByRules({ entries, policy }));
        expect(decisions.every(({ reasons }) => reasons.length > 0)).toBe(true);
      }),
      { numRuns: 300 },
    );
  });

  it("has steps that each leave every other backup restorable, and the newest and the protected in place", () => {
    fc.assert(
      fc.property(history, ({ entries, policy }) => {
        const { decisions, steps } = planRetention(entries, policy);
        let left = entries;
        for (const { entry, action, into } of steps) {
          const children = left.filter(({ manifest }) => manifest.parent === entry.id).map(({ id }) => id);
          expect(children).toEqual(action === "merge" ? [into] : []);
          const parent = left.find(({ id }) => id === entry.id)?.manifest.parent;
          left = left
            .filter(({ id }) => id !== entry.id)
            .map((other) =>
              other.id === into
                ? backup(other.id, other.manifest.time, parent === undefined ? {} : { parent })
                : other,
            );
          for (const { id } of left) expect(chainOf(left, id).complete).toBe(true);
        }
        const staying = decisions.filter(({ action }) => action === "keep" || action === "wait");
        expect(left.map(({ id }) => id)).toEqual(staying.map(({ entry }) => entry.id));
        const must = entries.filter(
          (entry, index) => entry.protected === true || index === entries.length - 1,
        );
        for (const { id } of must) expect(left.map((entry) => entry.id)).toContain(id);
      }),
      { numRuns: 300 },
    );
  });

  it("bounds chains as far as protected backups and forks let it", () => {
    fc.assert(
      fc.property(history, fc.integer({ min: 1, max: 5 }), ({ entries, policy }, maximumChainLength) => {
        const { decisions } = planRetention(entries, {
          ...policy,
          minimumChain: undefined,
          maximumChainLength,
        });
        const stays = new Set(
          decisions.flatMap(({ entry, action }) =>
            action === "keep" || action === "wait" ? [entry.id] : [],
          ),
        );
        for (const { id } of entries.filter((entry) => stays.has(entry.id))) {
          const whole = chainOf(entries, id);
          const members = whole.complete ? whole.entries.filter((entry) => stays.has(entry.id)) : [];
          const forks = entries.filter(
            (entry) => decisions.filter((other) => other.entry.manifest?.parent === entry.id).length > 1,
          );
          const free = members.every((entry) => entry.protected !== true && !forks.includes(entry));
          if (free) expect(members.length).toBeLessThanOrEqual(maximumChainLength);
        }
      }),
      { numRuns: 300 },
    );
  });
});
