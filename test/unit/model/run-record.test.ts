import { describe, expect, it } from "vitest";
import type { DomainRunState, KeptRecord, RunRecord, RunState } from "../../../src/model/run-record.js";
import { endedRun, OWNER_GONE, recordsToForget, runStateOf } from "../../../src/model/run-record.js";

const kept = (id: number, job: string, state: RunState, bytes = 10): KeptRecord => ({
  id: String(id).padStart(3, "0"),
  job,
  state,
  bytes,
  startedAtMs: id,
});

describe("runStateOf", () => {
  it.each<[readonly DomainRunState[], RunState]>([
    [["complete", "waiting", "failed"], "running"],
    [["complete", "running"], "running"],
    [["failed", "interrupted", "complete"], "interrupted"],
    [["complete", "failed", "complete-with-notes"], "failed"],
    [["complete", "complete-with-notes"], "complete-with-notes"],
    [["complete", "complete"], "complete"],
  ])("is for %j %s", (states, expected) => {
    expect(runStateOf(states.map((state) => ({ state })))).toBe(expected);
  });
});

describe("endedRun", () => {
  const record: RunRecord = {
    schemaVersion: 1,
    id: "a",
    job: "nightly",
    repository: "default",
    trigger: "schedule",
    missedCount: 0,
    startedAtMs: 1,
    state: "running",
    owner: { pid: 1, startTicks: 1, hostStart: "boot" },
    domains: [
      { domain: "a", state: "complete", attempts: 1, notes: [], finishedAtMs: 7 },
      { domain: "b", state: "running", phase: "pause", attempts: 2, notes: ["try 1 failed"] },
      { domain: "c", state: "waiting", attempts: 0, notes: [] },
    ],
  };

  it("ends what has not ended, keeps what has, and says why", () => {
    const ended = endedRun(record, { state: "interrupted", error: OWNER_GONE });
    expect(ended.domains.map(({ state, phase }) => [state, phase])).toEqual([
      ["complete", undefined],
      ["interrupted", undefined],
      ["interrupted", undefined],
    ]);
    expect(ended).toMatchObject({ state: "interrupted", error: OWNER_GONE });
    expect(ended.finishedAtMs).toBeUndefined();
    expect(ended.domains[1]?.notes).toEqual(["try 1 failed"]);
  });

  it("has the end of its last domain where nobody saw its own, if all are complete", () => {
    const done = { ...record, domains: record.domains.slice(0, 1) };
    expect(endedRun(done, { state: "interrupted", error: OWNER_GONE })).toMatchObject({
      state: "complete",
      finishedAtMs: 7,
    });
  });
});

describe("recordsToForget", () => {
  const ids = (records: readonly KeptRecord[]): readonly string[] => records.map(({ id }) => id).toSorted();

  it("keeps so many of each job, and its newest good one besides", () => {
    const failed = Array.from({ length: 5 }, (_, index) => kept(index + 10, "a", "failed"));
    const records = [kept(1, "a", "complete"), kept(2, "a", "complete"), ...failed, kept(3, "b", "failed")];
    expect(ids(recordsToForget(records, { perJob: 3, bytes: 1000 }))).toEqual(["001", "010", "011"]);
  });

  it("keeps to the bytes of all, the oldest first, but for what runs", () => {
    const records = [kept(1, "a", "running", 40), ...[2, 3, 4, 5].map((id) => kept(id, "a", "failed", 30))];
    expect(ids(recordsToForget(records, { perJob: 100, bytes: 100 }))).toEqual(["002", "003"]);
  });

  it("forgets nothing within the bounds", () => {
    expect(recordsToForget([kept(1, "a", "failed"), kept(2, "b", "complete")])).toEqual([]);
  });
});
