import { expect } from "vitest";
import type { Site } from "./site.js";

/** A command that fails with this exit code and these words, and answers nothing. */
export async function expectRefusal(
  at: Pick<Site, "run">,
  args: readonly string[],
  exitCode: number,
  stderr: RegExp,
): Promise<void> {
  const result = await at.run(...args);
  expect(result.stderr).toMatch(stderr);
  expect(result.exitCode).toBe(exitCode);
  expect(result.stdout).toBe("");
}
