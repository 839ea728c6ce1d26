import { describe, expect, it } from "vitest";
import { checkName, isName } from "../../../src/model/names.js";

describe("checkName", () => {
  it.each(["a", "web01", "_x", "9", "A.b:c+d@e=f-g", "a".repeat(128)])("accepts %j", (name) => {
    expect(checkName("domain", name)).toBe(name);
    expect(isName("domain", name)).toBe(true);
  });

  it.each([
    "",
    ".",
    "..",
    ".a",
    "-a",
    "a/b",
    "a b",
    "a\n",
    "a\0b",
    "ä",
    "a,b",
    'a"',
    "a'b",
    "a<b",
    "a".repeat(129),
  ])("refuses %j", (name) => {
    expect(isName("domain", name)).toBe(false);
    expect(() => checkName("domain", name)).toThrow(/^Expected a domain name of 1 to 128 letters.*, got "/);
  });

  it("says how long a long name is instead of repeating it", () => {
    expect(() => checkName("disk", "x".repeat(5000))).toThrow(/^.{0,250}\(5000 characters\)"$/);
  });

  it("has the code INVALID_NAME and the kind among its facts", () => {
    expect(() => checkName("backup", "a/b")).toThrow(
      expect.objectContaining({ code: "INVALID_NAME", facts: { kind: "backup" } }),
    );
  });
});
