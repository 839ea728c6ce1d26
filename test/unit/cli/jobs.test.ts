import { describe, expect, it } from "vitest";
import type { Job } from "../../../src/model/job.js";
import { JobWorld, nightly } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";
import { fleece, someConfig, type Outcome } from "./run-in-process.js";

/** The command line over the real services and domains in memory, with these jobs. */
async function world(
  jobs: readonly Job[],
): Promise<{ readonly at: JobWorld; run(this: void, ...args: string[]): Promise<Outcome> }> {
  const { path } = await temporaryDirectory();
  const at = new JobWorld(path, "2026-11-15T01:29:00Z", ["web01", "db01"]);
  const config = await someConfig();
  const run = (...args: string[]): Promise<Outcome> =>
    fleece(["--embedded", "--config", config, ...args], {
      startAgent: () => Promise.resolve(at.process(jobs).context),
    });
  return { at, run };
}

const both = nightly({ domains: ["web01", "db01"] });

describe("fleece job", () => {
  it("lists jobs with their next five runs", async () => {
    const { run } = await world([both]);
    const { stdout, exitCode } = await run("job", "list", "--json");
    expect(exitCode).toBe(0);
    const nextRuns = [15, 16, 17, 18, 19].map((day) => `2026-11-${day}T01:30:00Z`);
    expect(JSON.parse(stdout)).toMatchObject({
      jobs: [{ name: "nightly", schedule: "30 2 * * *", timeZone: "Europe/Berlin", nextRuns }],
    });
    expect((await run("job", "list")).stdout).toMatch(
      /^nightly +backup +30 2 \* \* \* \(Europe\/Berlin\) +2 +- +- +-$/m,
    );
    expect((await (await world([])).run("job", "list")).stdout).toBe("No jobs in the configuration\n");
  });

  it("runs one, tells what was read and stored, and remembers it", async () => {
    const { run } = await world([both]);
    const done = await run("job", "run", "nightly");
    expect(done).toMatchObject({ exitCode: 0, stderr: "" });
    expect(done.stdout).toMatch(/^State +complete$/m);
    expect(done.stdout).toMatch(/^web01 +complete +\S+ +full +crash +- +64 KiB +64 KiB$/m);
    const history = await run("job", "history");
    expect(history.stdout).toMatch(/^\S+ +nightly +complete +request +\S+ +0 ms +2 of 2 +128 KiB +128 KiB$/m);
    const { stdout } = await run("job", "history", "nightly", "--json");
    expect(JSON.parse(stdout)).toMatchObject({
      runs: [{ state: "COMPLETE", domains: [{ backup: { disks: [{ readBytes: "65536" }] } }, {}] }],
    });
    expect((await run("job", "history", "other")).stdout).toBe("No runs\n");
  });

  it("shows the newest run on 80 columns, with its disks on one scale", async () => {
    const { at, run } = await world([both]);
    expect((await run("job", "history", "--last")).stdout).toBe("No runs\n");
    at.domain("db01").write("vda", 0, 3 * 65_536, 9);
    await run("job", "run", "nightly");
    const first = (await run("job", "history", "--last")).stdout;
    expect(first).toMatch(/^ {2}vda {2}read █{5}·{10} {4}64 KiB {2}stored █{5}·{10} {4}64 KiB {5}0 ms$/m);
    expect(first).toMatch(/^ {2}vda {2}read █{15} {3}192 KiB {2}stored █{15} {3}192 KiB {5}0 ms$/m);
    at.domain("db01").gate = () => {
      throw new Error(`It broke: ${"long words ".repeat(20)}${"x".repeat(100)}`);
    };
    at.clock.offsetMs += 1000;
    await run("job", "run", "nightly");
    const { stdout, exitCode } = await run("job", "history", "nightly", "--last");
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(
      /^Run \S+ of job nightly: failed\n\S+, took 0 ms, 1 of 2 domains backed up to default\n/,
    );
    expect(stdout).toMatch(/^web01: complete, incremental, \S+, 0 ms\n {2}vda {2}read ·{15} +0 B /m);
    expect(stdout).toMatch(/^db01: failed, 0 ms$/m);
    expect(stdout).toMatch(/^- db01: It broke: long words .*\n {2}/m);
    expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
    const { stdout: json } = await run("job", "history", "nightly", "--last", "--json");
    expect(JSON.parse(json)).toMatchObject({ runs: [{ state: "FAILED" }] });
  });

  it("prints the record of a run that fails, and fails with exit code 1", async () => {
    const { at, run } = await world([both]);
    at.domain("db01").gate = () => {
      throw new Error("It broke");
    };
    const { exitCode, stdout, stderr } = await run("job", "run", "nightly", "--json");
    expect(exitCode).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      state: "FAILED",
      error: { code: "INTERNAL", message: "It broke" },
      domains: [{ state: "COMPLETE" }, { state: "FAILED" }],
    });
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: "JOB_FAILED" } });
  });

  it("does not know others, and cancels none that runs elsewhere", async () => {
    const { run } = await world([both]);
    expect(await run("job", "run", "weekly")).toMatchObject({
      exitCode: 3,
      stderr: expect.stringContaining("has no job weekly; it has nightly") as string,
    });
    expect((await run("job", "cancel", "nightly")).stderr).toContain("(RUN_NOT_FOUND)");
  });
});

describe("fleece status", () => {
  it("shows each domain with its last backup, its next run, and what the last one came to", async () => {
    const { at, run } = await world([nightly()]);
    expect((await run("status")).stdout).toMatch(/^web01 +none +2026-11-15T\S+ +nightly +-$/m);
    await run("job", "run", "nightly");
    const { stdout, exitCode } = await run("status", "--json");
    expect(exitCode).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      domains: [
        { domain: "web01", lastBackup: { level: "FULL" }, nextJob: "nightly", lastState: "COMPLETE" },
        { domain: "db01", nextJob: "", lastState: "STATE_UNSPECIFIED" },
      ],
    });
    at.domain().gate = () => {
      throw new Error("It broke");
    };
    await at.clock.advance(1000);
    await run("job", "run", "nightly");
    const troubled = await run("status");
    expect(troubled.exitCode).toBe(0);
    expect(troubled.stdout).toMatch(/^web01 .* failed, \S+$/m);
    expect(troubled.stdout).toMatch(/^web01: It broke$/m);
  });
});
