import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { configuredJobs, parseConfig } from "../../../src/model/config.js";
import { PASSING_ERRORS } from "../../../src/model/retry.js";

const readme = fileURLToPath(new URL("../../../config/README.md", import.meta.url));

describe("config/README.md on jobs", () => {
  it("shows an example that is valid, and names each error that may pass", async () => {
    const section = /\n## Jobs\n([\s\S]*?)\n## /.exec(await readFile(readme, "utf8"))?.[1] ?? "";
    const [, example] = /```yaml\n([\s\S]*?)```/.exec(section) ?? [];
    const rest =
      "stateDir: s\nscratchDir: s\ndomains: [{ name: a, qmp: q }]\nrepositories: [{ name: r, path: p }]\n";
    const config = parseConfig(`${rest}${example ?? ""}`, "/c.yaml");
    expect(configuredJobs(config)[0]).toMatchObject({ name: "nightly", domains: ["a"], repository: "r" });
    const [, errors] = /errors that may pass\*\*([\s\S]*?)\n- /i.exec(section) ?? [];
    const named = [...(errors ?? "").matchAll(/`([A-Z_]+)`/g)].map(([, code]) => code);
    expect(named).toEqual(Object.keys(PASSING_ERRORS));
  });
});
