import { access, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { configSchema, parseConfig } from "../../../src/model/config.js";
import { FINDING_CODES } from "../../../src/model/finding.js";
import { ERROR_CODES } from "../../../src/shared/errors.js";
import type { ErrorCategory } from "../../../src/shared/errors.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const read = (name: string): Promise<string> => readFile(`${root}${name}`, "utf8");

const EXIT_CODES: Readonly<Record<ErrorCategory, number>> = {
  failed: 1,
  usage: 2,
  "not-found": 3,
  conflict: 4,
  unreachable: 5,
  damage: 6,
};

describe("src/README.md", () => {
  it("lists each error code with its exit code and meaning, and no other", async () => {
    const table = (await read("src/README.md")).split("## Error codes")[1] ?? "";
    const rows = [...table.matchAll(/^\| `([A-Z_]+)` +\| (\d) +\| (.+?) +\|$/gm)].map(
      ([, ...cells]) => cells,
    );
    const expected = Object.entries(ERROR_CODES).map(([code, [category, meaning]]) => [
      code,
      String(EXIT_CODES[category]),
      meaning,
    ]);
    expect(rows).toEqual(expected);
  });
});

describe("src/README.md on findings", () => {
  it("lists each finding with its severity and meaning, and no other", async () => {
    const table = (await read("src/README.md")).split("## Findings")[1]?.split("## Error codes")[0] ?? "";
    const rows = [...table.matchAll(/^\| `([A-Z_]+)` +\| ([a-z]+) +\| (.+?) +\|$/gm)].map(
      ([, ...cells]) => cells,
    );
    const expected = Object.entries(FINDING_CODES).map(([code, [severity, meaning]]) => [
      code,
      severity,
      meaning,
    ]);
    expect(rows).toEqual(expected);
  });
});

describe("config/README.md", () => {
  it("documents every key that the configuration knows, and none that it does not", async () => {
    const table = await read("config/README.md");
    const documented = [...table.matchAll(/^\| `([^`]+)` +\|/gm)].map(([, key]) => key);
    const known = keysOf(z.toJSONSchema(configSchema, { unrepresentable: "any" }) as Schema);
    expect(documented.toSorted()).toEqual(known.toSorted());
  });

  it("shows an example that is valid", async () => {
    const [, example] = /```yaml\n([\s\S]*?)```/.exec(await read("config/README.md")) ?? [];
    expect(parseConfig(example ?? "", "/etc/fleece.yaml").stateDir).toBe("/etc/var/state");
  });
});

describe("README.md", () => {
  it("shows a configuration that is valid", async () => {
    const [, example] = /```yaml\n([\s\S]*?)```/.exec(await read("README.md")) ?? [];
    expect(parseConfig(example ?? "", "/etc/fleece.yaml").domains[0]?.name).toBe("web01");
  });

  it("links to files that exist", async () => {
    for (const name of ["README.md", "src/README.md", "config/README.md", "test/README.md"]) {
      const folder = name.replace(/[^/]*$/, "");
      for (const [, link] of (await read(name)).matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
        await expect(
          access(`${root}${folder}${link ?? ""}`),
          `${name}: ${link ?? ""}`,
        ).resolves.toBeUndefined();
      }
    }
  });
});

interface Schema {
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly items?: Schema;
}

function keysOf({ properties, items }: Schema, prefix = ""): string[] {
  if (items !== undefined) return keysOf(items, `${prefix}[]`);
  return Object.entries(properties ?? {}).flatMap(([key, inner]) => {
    const path = prefix === "" ? key : `${prefix}.${key}`;
    return [path, ...keysOf(inner, path)];
  });
}
