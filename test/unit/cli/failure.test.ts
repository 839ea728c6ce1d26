import { describe, expect, it } from "vitest";
import { EXIT_CODES, toFailure } from "../../../src/cli/failure.js";
import { printable } from "../../../src/cli/printable.js";
import { ERROR_CODES, FleeceError } from "../../../src/shared/errors.js";

const interruption = new FleeceError("INTERRUPTED", "Interrupted by SIGINT");

describe("EXIT_CODES", () => {
  it("are what the documentation promises, for every category", () => {
    expect(EXIT_CODES).toEqual({
      failed: 1,
      usage: 2,
      "not-found": 3,
      conflict: 4,
      unreachable: 5,
      damage: 6,
    });
    for (const [category] of Object.values(ERROR_CODES)) expect(EXIT_CODES[category]).toBeGreaterThan(0);
  });
});

describe("toFailure", () => {
  const aborted = AbortSignal.abort(interruption);

  it.each([
    ["an AbortError", new DOMException("aborted", "AbortError")],
    ["a tool that got the signal too", new FleeceError("QEMU_FAILED", "qemu-img ended by SIGINT")],
    ["a connection that was closed", new FleeceError("NBD_FAILED", "closed")],
  ])("takes %s after an interruption for the interruption", (_, error) => {
    expect(toFailure(error, aborted)).toBe(interruption);
  });

  it.each(["CLEANUP_INCOMPLETE", "DAMAGED", "BACKUP_NOT_FOUND"] as const)(
    "keeps %s after an interruption",
    (code) => {
      expect(toFailure(new FleeceError(code, "x"), aborted).code).toBe(code);
    },
  );

  it("keeps every coded error while nothing was interrupted", () => {
    const error = new FleeceError("QEMU_FAILED", "x");
    expect(toFailure(error, new AbortController().signal)).toBe(error);
  });
});

describe("printable", () => {
  it("escapes what could move, split, colour or turn a line, and nothing else", () => {
    expect(printable("Größe 1 – “x”, 日本")).toBe("Größe 1 – “x”, 日本");
    expect(printable("a\r\n\t\u0007\u001b[0m\u009b\u2028\u202e")).toBe(
      "a\\r\\n\\t\\u0007\\u001b[0m\\u009b\\u2028\\u202e",
    );
  });
});
