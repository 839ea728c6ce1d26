import { execFile } from "node:child_process";
import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { describe, expect, it, vi } from "vitest";
import { startFleece, runFleece, type FleeceProcess, type FleeceResult } from "../support/fleece.js";
import { untilTestEnds } from "../support/lifetime.js";
import { startSite, type Site } from "../support/site.js";

const exec = promisify(execFile);
const tick = () => sleep(10);
const MIB = 1024 * 1024;
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
      .replaceAll(/\b\d+(\.\d+)? (ms|s|min)\b/g, "DURATION")
      .replaceAll(/\b\d+(\.\d+)? (KiB|B)\b/g, "SMALL")
      .replaceAll(/\b[0-9a-hjkmnp-tv-z]{8}-(?=vd[ab]\b)/g, "RANDOM-")
      .replaceAll(/\bd-[\w-]+\//g, "SOCKETS/")
      .replaceAll(/(fleece:1:\d+):\d+:/g, "$1:MS:")
      .replaceAll(/[\d.]+ GiB free/g, "N GiB free")
      .replaceAll(/ {2,}/g, "  ");
  return { exitCode, stdout: same(stdout), stderr: same(stderr) };
}

/** The main verbs, one after the other, each with what it told. */
async function story(site: Site, run: Run) {
  const lines: (ReturnType<typeof told> & { readonly args: string })[] = [];
  const tell = async (...args: string[]): Promise<FleeceResult> => {
    const result = await run(...args);
    lines.push({
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
  await tell("domain", "list");
  await tell("domain", "show", "vm");
  await tell("doctor", "vm");
  const full = idOf(await tell("backup", "run", "vm", "--json"));
  await tell("backup", "run", "vm", "--disk", "vda");
  await both("backup", "list", "vm");
  await tell("backup", "show", full);
  await tell("backup", "verify", full);
  await tell("backup", "restore", full, "--to", site.directory.file("out"), "--format", "raw");
  await tell("backup", "restore", full, "--to", site.directory.file("out"));
  await tell("backup", "protect", full);
  // Refused, and why.
  await tell("backup", "delete", full);
  await tell("backup", "prune", "--dry-run", "--json");
  await tell("checkpoint", "list", "vm");
  await tell("checkpoint", "show", "vm", full, "--json");
  await tell("block-snapshot", "create", "vm", "--name", "night", "--checkpoint=cp", "--lease", "2h");
  await tell("block-snapshot", "create", "vm", "--name", "night");
  await tell("block-snapshot", "list", "vm");
  await tell("block-snapshot", "renew", "vm", "night", "--lease", "1h");
  await tell("export", "start", "vm", "--snapshot", "night", "--since", full);
  await tell("export", "list", "--json");
  await tell("block-snapshot", "show", "vm", "night", "--json");
  // Busy, and why.
  await both("backup", "run", "vm");
  await tell("doctor", "vm", "--json");
  await tell("export", "stop", "vm", "--snapshot", "night");
  await tell("block-snapshot", "delete", "vm", "night");
  await tell("checkpoint", "delete", "vm", "cp");
  // Not found, and names that cannot be.
  await both("checkpoint", "show", "vm", "cp");
  await tell("domain", "show", "");
  await tell("backup", "show", "../x", "--json");
  await tell("block-snapshot", "renew", "vm", "night", "--lease", "0s");
  await tell("backup", "run", "vm", "--disk", "vdz", "--json");
  return lines;
}

describe("a command without --embedded", () => {
  it("tells the same, word for word, as one with it", async () => {
    const embedded = await startSite();
    const served = await startSite();
    await startAgent(served);
    const [expected, actual] = await Promise.all([
      story(embedded, (...args) => embedded.run(...args)),
      story(served, remote(served)),
    ]);
    expect(actual).toEqual(expected);
    expect(expected.map(({ exitCode }) => exitCode)).toEqual(expect.arrayContaining([0, 1, 2, 3, 4]));
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

describe("fleece serve", () => {
  it("undoes what a command had it make, when that is interrupted", async () => {
    const site = await startSite({
      disks: [{ target: "vda", format: "qcow2", sizeBytes: 1024 * MIB, filledBytes: 600 * MIB }],
    });
    await startAgent(site);
    const before = await site.state();
    const command = await startFleece(["backup", "run", "vm"], { configPath: site.configPath });
    untilTestEnds(command);
    while (command.running && !(await site.files()).some((name) => name.includes(".partial-"))) await tick();
    const result = await command.kill("SIGINT");
    expect(result.stderr).toContain("Interrupted by SIGINT (INTERRUPTED)");
    expect(result.exitCode).toBe(1);
    await vi.waitFor(async () => expect(await site.state()).toEqual(before), { timeout: 60_000 });
  });

  it("offers a backup for as long as the command runs that asked for it", async () => {
    const site = await startSite();
    await startAgent(site);
    const { id } = (await remote(site)("backup", "run", "vm", "--json")).json() as { id: string };
    const socket = site.directory.file("s.sock");
    const command = await startFleece(["backup", "serve", id, "--socket", socket, "--json"], {
      configPath: site.configPath,
    });
    untilTestEnds(command);
    await command.waitForOutput(/\}\s*$/, SOON);
    const { disks } = JSON.parse(command.stdout) as { disks: { uri: string }[] };
    const { stdout } = await exec("nbdinfo", ["--size", disks[1]?.uri ?? ""]);
    expect(stdout).toBe(`${8 * MIB}\n`);
    expect((await command.kill("SIGTERM")).exitCode).toBe(0);
    await vi.waitFor(() => expect(stat(socket)).rejects.toMatchObject({ code: "ENOENT" }), {
      timeout: 60_000,
    });
  });

  it("is one per state directory, replaces what a killed one left, and removes its socket in the end", async () => {
    const site = await startSite();
    const socket = site.directory.file("run/agent.sock");
    const first = await startAgent(site);
    const second = await remote(site)("serve");
    expect(second.stderr).toMatch(
      new RegExp(`fleece serve \\(process ${first.pid} .*\\(AGENT_RUNNING\\)\\n$`),
    );
    expect(second.exitCode).toBe(4);
    await first.kill("SIGKILL");
    expect((await stat(socket)).isSocket()).toBe(true);
    expect((await remote(site)("domain", "list")).exitCode).toBe(5);
    const third = await startAgent(site);
    expect((await stat(socket)).mode & 0o777).toBe(0o600);
    expect((await remote(site)("domain", "list")).exitCode).toBe(0);
    expect((await third.kill("SIGTERM")).exitCode).toBe(0);
    await expect(stat(socket)).rejects.toMatchObject({ code: "ENOENT" });
  });
});
