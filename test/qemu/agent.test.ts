import { describe, expect, it } from "vitest";
import { startFleece, runFleece, type FleeceProcess, type FleeceResult } from "../support/fleece.js";
import { untilTestEnds } from "../support/lifetime.js";
import { startSite, type Site } from "../support/site.js";

const SOON = { timeoutMs: 60_000 };

/** The agent of a site, ready to be called. */
async function startAgent(site: Site): Promise<FleeceProcess> {
  const agent = untilTestEnds(await startFleece(["serve"], { configPath: site.configPath }));
  await agent.waitForOutput(/The agent answers on/, SOON);
  return agent;
}

type Run = (...args: string[]) => Promise<FleeceResult>;

/** A command without --embedded. */
const remote =
  (site: Site): Run =>
  (...args) =>
    runFleece(args, { configPath: site.configPath });

/** What a command tells, without what differs from run to run: ids, times, amounts of time, and where the test has its files. */
function told({ exitCode, stdout, stderr }: FleeceResult, site: Site) {
  const same = (text: string): string =>
    text
      .replaceAll(site.directory.path, "DIR")
      .replaceAll(/\d{8}T\d{6}Z-[0-9a-z]{6}/g, "ID")
      .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)/g, "TIME")
      .replaceAll(
        /"(heldMs|durationMs|scratchUsedBytes|scratchPeakBytes|qemuVersion)": "[^"]*"/g,
        '"$1": "N"',
      )
      .replaceAll(/\b\d+(\.\d+)? (ms|s|min|KiB|B)\b/g, "N $2")
      .replaceAll(/\b[0-9a-hjkmnp-tv-z]{8}-(?=vd[ab]\b)/g, "RANDOM-")
      .replaceAll(/\bd-[\w-]+\//g, "SOCKETS/")
      .replaceAll(/(fleece:1:\d+):\d+:/g, "$1:MS:")
      .replaceAll(/[\d.]+ GiB free/g, "N GiB free")
      .replaceAll(/ {2,}/g, "  ");
  return { exitCode, stdout: same(stdout), stderr: same(stderr) };
}

/** The main verbs, one after the other, each with what it told. */
async function story(site: Site, run: Run) {
  const told_: unknown[] = [];
  const tell = async (...args: string[]): Promise<FleeceResult> => {
    const result = await run(...args);
    told_.push({
      args: told({ ...result, stdout: args.join(" "), stderr: "" }, site).stdout,
      ...told(result, site),
    });
    return result;
  };
  const idOf = (result: FleeceResult): string => (result.json() as { id: string }).id;
  const both = async (...args: string[]): Promise<void> => {
    await tell(...args);
    await tell(...args, "--json");
  };
  await both("domain", "list");
  await both("domain", "show", "vm");
  await both("doctor", "vm");
  await both("backup", "list");
  const full = idOf(await tell("backup", "run", "vm", "--json"));
  await tell("backup", "run", "vm", "--disk", "vda");
  await both("backup", "list", "vm");
  await both("backup", "show", full);
  await both("backup", "verify", full);
  await tell("backup", "restore", full, "--to", site.directory.file("out"), "--format", "raw");
  await tell("backup", "restore", full, "--to", site.directory.file("out"));
  await tell("backup", "delete", full);
  await both("checkpoint", "list", "vm");
  await tell("checkpoint", "list", "vm", "--tree");
  await both("checkpoint", "show", "vm", full);
  await tell(
    "block-snapshot",
    "create",
    "vm",
    "--name",
    "night",
    "--checkpoint=cp",
    "--lease",
    "2h",
    "--json",
  );
  await tell("block-snapshot", "create", "vm", "--name", "night");
  await both("block-snapshot", "list", "vm");
  await both("block-snapshot", "show", "vm", "night");
  await tell("block-snapshot", "renew", "vm", "night", "--lease", "1h");
  await tell("export", "start", "vm", "--snapshot", "night", "--since", full);
  await both("export", "list");
  // Busy, and why.
  await both("backup", "run", "vm");
  await both("doctor", "vm");
  await tell("export", "stop", "vm", "--snapshot", "night");
  await tell("block-snapshot", "delete", "vm", "night");
  await tell("checkpoint", "delete", "vm", "cp");
  // Not found, and names that cannot be.
  await both("checkpoint", "show", "vm", "cp");
  await both("domain", "show", "other");
  await both("domain", "show", "");
  await both("backup", "show", "../x");
  await both("backup", "show", "b1");
  await both("block-snapshot", "renew", "vm", "night", "--lease", "0s");
  await both("backup", "run", "vm", "--disk", "vdz");
  await both("backup", "list", "--repository", "nowhere");
  return told_;
}

describe("a command without --embedded", () => {
  it("tells the same, word for word, as one with it", async () => {
    const embedded = await startSite();
    const served = await startSite();
    await startAgent(served);
    const expected = await story(embedded, embedded.run);
    expect(await story(served, remote(served))).toEqual(expected);
    expect(expected.length).toBeGreaterThan(50);
  });

  it("says how to start an agent when none answers", async () => {
    const site = await startSite();
    const result = await remote(site)("domain", "list");
    expect(result).toMatchObject({ exitCode: 5, stdout: "" });
    expect(result.stderr).toMatch(
      /No agent answers on \S+; start one with `fleece serve`, or add --embedded .*\(AGENT_UNREACHABLE\)\n$/,
    );
  });
});
