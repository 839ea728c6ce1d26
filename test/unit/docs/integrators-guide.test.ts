import { access, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import type { CallName } from "../../../src/api/call-types.js";
import { CALLS } from "../../../src/api/calls.js";
import { protoRoot } from "../../../src/api/proto.js";
import { ERROR_CODES } from "../../../src/shared/errors.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const guide = (): Promise<string> => readFile(`${root}proto/README.md`, "utf8");

async function section(title: string): Promise<string> {
  const [, text] = (await guide()).split(`\n## ${title}\n`);
  return text?.split("\n## ")[0] ?? "";
}

function streams(name: CallName): boolean {
  const [service, method] = name.split(".");
  return protoRoot().lookupService(`fleece.v1.${service}`).methods[method ?? ""]?.responseStream === true;
}

describe("proto/README.md", () => {
  it("lists each call with its role, whether it changes something, and its answer, and no other", async () => {
    const rows = [...(await section("Calls")).matchAll(/^\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \|$/gm)].map(
      ([, ...cells]) => cells,
    );
    const expected = (Object.keys(CALLS) as CallName[]).map((name) => {
      const { role, mutates } = CALLS[name];
      return [name, role, mutates ? "yes" : "no", streams(name) ? "stream" : "one"];
    });
    expect(rows).toEqual(expected);
  });

  it("names only reasons that there are", async () => {
    const cells = [...(await section("Errors")).matchAll(/^\| (`.+?) \|/gm)].map(([, cell]) => cell ?? "");
    const named = cells.flatMap((cell) => [...cell.matchAll(/`([A-Z_]+)`/g)].map(([, code]) => code));
    expect(named.length).toBeGreaterThan(10);
    // The status of gRPC itself, which has no reason.
    expect(named.filter((code) => code !== "UNAVAILABLE" && !Object.hasOwn(ERROR_CODES, code ?? ""))).toEqual(
      [],
    );
  });

  it("links to files that exist", async () => {
    for (const [, link] of (await guide()).matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
      await expect(access(`${root}proto/${link ?? ""}`), link).resolves.toBeUndefined();
    }
  });
});
