import { expect } from "vitest";
import { forEachLimited } from "../../../src/shared/async.js";
import type { Fault, Scenario } from "./fault-scenario.js";
import { play } from "./fault-scenario.js";
import { ALL_FAULTS } from "../../support/sample.js";

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

/** All points with FLEECE_FAULTS=all, else every ninth, which others in each scenario; odd, for points come in pairs. */
const STRIDE = ALL_FAULTS ? 1 : 9;

/** Strikes at every point that an undisturbed backup passes, and at the cleaning up after it, or at a sample of them. */
export async function strikeEverywhere(scenario: Omit<Scenario, "at">): Promise<string[]> {
  const { points, problems } = await play({ ...scenario, fault: "none", at: 0 });
  expect(problems).toEqual([]);
  expect(points.length).toBeGreaterThan(80);
  const found: string[] = [];
  const first = JSON.stringify(scenario).length % STRIDE;
  const struck = [...points.entries()].filter(([at]) => at % STRIDE === first);
  await forEachLimited(struck, WORLDS, async ([at, point]) => {
    if (!isWorthwhile(scenario.fault, point)) return;
    const result = await play({ ...scenario, at }).catch((error: unknown) => ({ problems: [String(error)] }));
    found.push(...result.problems.map((problem) => `${scenario.fault} at ${at} (${point}): ${problem}`));
  });
  return found;
}

/** Of a test that strikes everywhere. */
export const DEADLINE = { timeout: 180_000 };
