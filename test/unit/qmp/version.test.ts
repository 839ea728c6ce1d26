import { describe, expect, it } from "vitest";
import { isVersionAtLeast, QmpError, qmpErrorCodes, isQmpError } from "../../../src/qmp/index.js";
import { RunState } from "../../../src/qmp/run-state.js";

describe("isVersionAtLeast", () => {
  it.each([
    [{ major: 7, minor: 2 }, 7, 2, true],
    [{ major: 7, minor: 10 }, 7, 2, true],
    [{ major: 8, minor: 0 }, 7, 2, true],
    [{ major: 7, minor: 1 }, 7, 2, false],
    [{ major: 6, minor: 9 }, 7, 2, false],
    [{ major: 9, minor: 0 }, 9, 1, false],
  ])("compares %j with %i.%i", (version, major, minor, expected) => {
    expect(isVersionAtLeast(version, major, minor)).toBe(expected);
  });
});

describe("isQmpError", () => {
  it("tells QMP errors from others, and codes apart", () => {
    const error = new QmpError("QMP_TIMEOUT", "Late");
    expect(isQmpError(error)).toBe(true);
    expect(isQmpError(error, "QMP_CLOSED", "QMP_TIMEOUT")).toBe(true);
    expect(isQmpError(error, "QMP_CLOSED")).toBe(false);
    expect(isQmpError(new Error("QMP_TIMEOUT"))).toBe(false);
  });

  it("has a sentence for each code", () => {
    for (const sentence of Object.values(qmpErrorCodes)) expect(sentence).toMatch(/^[A-Z].*[^.]$/);
  });
});

describe("RunState", () => {
  it("refuses a move that is not in its table", () => {
    const state = new RunState();
    expect(() => state.move("running", "skipped a step")).toThrow("Illegal move");
    state.move("closing", "test");
    expect(() => state.move("running", "came back")).toThrow("Illegal move");
    expect(state.isOver).toBe(true);
  });
});
