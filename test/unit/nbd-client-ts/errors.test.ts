import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { NBD_ERROR_CODES, NbdError } from "nbd-client-ts";

describe("NBD_ERROR_CODES", () => {
  it("is the table of codes in README.md, with the same scopes", async () => {
    const readme = await readFile(new URL("../../../src/nbd-client-ts/README.md", import.meta.url), "utf8");
    const documented = [...readme.matchAll(/^\| `(\w+)` +\| (\w+) +\|/gm)].map(([, code, scope]) => [
      code,
      scope,
    ]);
    expect(documented).toEqual(Object.entries(NBD_ERROR_CODES));
  });
});

describe("NbdError", () => {
  it("carries code, scope, cause and facts", () => {
    const cause = new Error("why");
    const error = new NbdError("REQUEST_FAILED", "It failed", { cause, errno: "EIO", offset: 1, length: 2 });
    expect(error).toMatchObject({
      name: "NbdError",
      code: "REQUEST_FAILED",
      scope: "request",
      errno: "EIO",
      offset: 1,
      length: 2,
    });
    expect(error.cause).toBe(cause);
  });
});
