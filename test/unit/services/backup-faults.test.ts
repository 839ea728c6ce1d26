import { describe, expect, it } from "vitest";
import { forEachLimited } from "../../../src/shared/async.js";
import type { Fault, Scenario } from "./fault-scenario.js";
import { play } from "./fault-scenario.js";

/** Worlds side by side: they wait for the journal's files most of the time. */
const WORLDS = 8;

/**
 * Failures that the ports rule out: what a process cannot say itself any more (a lock it got, but was not told), what is
 * defined to do nothing or to have done all (`publish`, and `discard` after it).
 */
const IMPOSSIBLE_FAILURE =
  /lock: after|lockDomain: after|^lock\.|^open: after|publish: after|^draft\.discard/;

function isWorthwhile(fault: Fault, point: string): boolean {
  if (fault === "fail") return !IMPOSSIBLE_FAILURE.test(point);
  // Between the end of one call and the beginning of the next nothing happens that these could tell apart.
  return fault === "disconnect" || point.endsWith("before");
}

/** Strikes at every point that an undisturbed backup passes, and at the cleaning up after it. */
async function strikeEverywhere(scenario: Omit<Scenario, "at">): Promise<string[]> {
  const { points, problems } = await play({ ...scenario, fault: "none", at: 0 });
  expect(problems).toEqual([]);
  expect(points.length).toBeGreaterThan(80);
  const found: string[] = [];
  await forEachLimited([...points.entries()], WORLDS, async ([at, point]) => {
    if (!isWorthwhile(scenario.fault, point)) return;
    const result = await play({ ...scenario, at }).catch((error: unknown) => ({ problems: [String(error)] }));
    found.push(...result.problems.map((problem) => `${scenario.fault} at ${at} (${point}): ${problem}`));
  });
  return found;
}

const DEADLINE = { timeout: 180_000 };

describe("runBackup of a running domain with a fault at any point leaves nothing behind and loses nothing", () => {
  for (const fault of ["fail", "disconnect", "stop", "crash", "abort", "kill"] as const) {
    it(`in an incremental of two disks: ${fault}`, DEADLINE, async () => {
      expect(await strikeEverywhere({ fault, level: "incremental", running: true })).toEqual([]);
    });
  }

  for (const fault of ["fail", "disconnect", "kill"] as const) {
    it(`in a full of two disks with the guest frozen: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "full", running: true, quiesce: true });
      expect(found).toEqual([]);
    });
  }

  for (const fault of ["fail", "disconnect", "crash", "abort", "kill"] as const) {
    it(`in an incremental of two disks that QEMU pushes: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "incremental", running: true, staged: true });
      expect(found).toEqual([]);
    });
  }

  for (const fault of ["fail", "kill"] as const) {
    it(`in a first full of two disks that QEMU pushes: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "full", running: true, staged: true });
      expect(found).toEqual([]);
    });

    it(`in a first full of one disk: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "full", running: true, disks: ["vda"] });
      expect(found).toEqual([]);
    });

    it(`in an incremental of one disk whose checkpoint was lost: ${fault}`, DEADLINE, async () => {
      const scenario = { fault, level: "incremental", running: true, disks: ["vda"], lost: true } as const;
      expect(await strikeEverywhere(scenario)).toEqual([]);
    });

    it(`in an incremental of one disk, without holding the guest: ${fault}`, DEADLINE, async () => {
      const found = await strikeEverywhere({ fault, level: "incremental", running: true, disks: ["sdb"] });
      expect(found).toEqual([]);
    });
  }
});

describe("runBackup of an inactive domain with a fault at any point leaves nothing behind and loses nothing", () => {
  for (const fault of ["fail", "abort", "kill", "start"] as const) {
    it(`in an incremental of two disks: ${fault}`, DEADLINE, async () => {
      expect(await strikeEverywhere({ fault, level: "incremental", running: false })).toEqual([]);
    });
  }
});
