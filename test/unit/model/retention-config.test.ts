import { describe, expect, it } from "vitest";
import { parseConfig, retentionPolicy } from "../../../src/model/config.js";

function parse(retention: string) {
  return parseConfig(
    `
stateDir: /state
scratchDir: /scratch
domains:
  - { name: a, qmp: /a.qmp }
  - { name: b, qmp: /b.qmp, retention: { last: 1 } }
repositories:
  - { name: one, path: /one, retention: ${retention} }
  - { name: two, path: /two }
`,
    "fleece.yaml",
  );
}

describe("retentionPolicy", () => {
  it("is that of the repository, unless the domain has its own; none is none", () => {
    const config = parse("{ daily: 7, timeZone: Europe/Berlin }");
    expect(retentionPolicy(config, "one", "a")).toEqual({ daily: 7, timeZone: "Europe/Berlin" });
    expect(retentionPolicy(config, "two", "b")).toMatchObject({ last: 1 });
    expect(retentionPolicy(config, "one", "b")).not.toHaveProperty("daily");
    expect(retentionPolicy(config, "two", "a")).toBeUndefined();
  });

  it.each([
    ["{ last: 0 }", "retention.last"],
    ["{ daily: 1, timeZone: Mars/Olympus }", "Expected a time zone like"],
    ["{ minimumChain: 3, maximumChainLength: 2 }", "Expected at least `minimumChain`"],
  ])("refuses %s", (retention, message) => {
    expect(() => parse(retention)).toThrow(message);
  });
});
