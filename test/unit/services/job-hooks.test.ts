import { readFile, stat } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { Job, JobHook } from "../../../src/model/job.js";
import type { RunRecord } from "../../../src/model/run-record.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { JobWorld, nightly, until } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const MINUTE = 60_000;

function hook(when: JobHook["when"], script: string, changes: Partial<JobHook> = {}): JobHook {
  return { when, command: ["/bin/sh", "-c", script], timeoutMs: MINUTE, onFailure: "continue", ...changes };
}

async function world(): Promise<{
  readonly at: JobWorld;
  readonly path: string;
  readonly said: () => Promise<readonly string[]>;
  run(this: void, hooks: readonly JobHook[], changes?: Partial<Job>): Promise<RunRecord>;
}> {
  const { path } = await temporaryDirectory();
  const at = new JobWorld(path, "2026-11-15T01:29:00Z");
  const said = async (): Promise<readonly string[]> =>
    (await readFile(`${path}/said`, "utf8").catch(() => "")).split("\n").filter((line) => line !== "");
  const run = async (hooks: readonly JobHook[], changes: Partial<Job> = {}): Promise<RunRecord> => {
    const job = nightly({ hooks, ...changes });
    const agent = at.process([job]);
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    return ended;
  };
  return { at, path, said, run };
}

function say(path: string, ...names: readonly string[]): string {
  return `echo "${names.map((name) => `$${name}`).join(" ")}" >>${path}/said`;
}

const isThere = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

describe("hooks of a job", () => {
  it("run before and after the backup, with the facts in the environment, and without a shell", async () => {
    const { path, said, run } = await world();
    const facts = [
      "FLEECE_HOOK",
      "FLEECE_JOB",
      "FLEECE_DOMAIN",
      "FLEECE_REPOSITORY",
      "FLEECE_RESULT",
      "FLEECE_BACKUP",
    ];
    const record = await run([
      hook("before", say(path, ...facts)),
      hook("after", say(path, ...facts, "FLEECE_LEVEL")),
      hook("failed", say(path, "FLEECE_HOOK")),
      hook("after", "", { command: ["/usr/bin/touch", `${path}/$HOME;x`] }),
    ]);
    expect(record).toMatchObject({ state: "complete", domains: [{ notes: [] }] });
    const backup = record.domains[0]?.backup?.id ?? "no backup";
    expect((await said()).map((line) => line.trim())).toEqual([
      "before nightly web01 default",
      `after nightly web01 default complete ${backup} full`,
    ]);
    expect(await isThere(`${path}/$HOME;x`)).toBe(true);
  });

  it("that fail are notes, and what they print is in the log", async () => {
    const { at, run } = await world();
    const record = await run([
      hook("before", "echo first; echo second >&2; exit 3"),
      hook("after", "kill -TERM $$"),
    ]);
    expect(record).toMatchObject({
      state: "complete-with-notes",
      domains: [
        {
          notes: [
            "hook before the backup failed (/bin/sh): it ended with exit code 3",
            "hook after the backup failed (/bin/sh): it was ended by SIGTERM",
          ],
        },
      ],
    });
    expect(at.log).toContain("Hook before the backup has failed: it ended with exit code 3");
    expect((await run([hook("before", "", { command: ["/nowhere/at/all"] })])).domains[0]?.notes).toEqual([
      "hook before the backup failed (/nowhere/at/all): it ended with exit code 127",
    ]);
  });

  it("stop the backup if they are to, and those after them", async () => {
    const { at, path, said, run } = await world();
    const record = await run([
      hook("before", "exit 1", { onFailure: "stop" }),
      hook("before", say(path, "FLEECE_HOOK")),
      hook("after", say(path, "FLEECE_HOOK")),
      hook("failed", say(path, "FLEECE_HOOK", "FLEECE_RESULT", "FLEECE_ERROR_CODE")),
    ]);
    const error = { code: "HOOK_FAILED", message: expect.stringContaining("exit code 1") as string };
    expect(record).toMatchObject({ state: "failed", error, domains: [{ state: "failed", attempts: 1 }] });
    expect(await said()).toEqual(["failed failed HOOK_FAILED"]);
    expect(await at.backups()).toBe(0);
  });

  it("run once for all tries, and those for failure after the last", async () => {
    const { at, path, said } = await world();
    const hooks = [hook("before", say(path, "FLEECE_HOOK")), hook("failed", say(path, "FLEECE_HOOK"))];
    const job = nightly({ hooks, retries: 1 });
    at.domain().gate = (point) => {
      if (point === "open: before") throw new FleeceError("DOMAIN_UNREACHABLE", "Made to fail");
    };
    const agent = at.process([job]);
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 1 });
    const isPausing = async (): Promise<boolean> => (await agent.records())[0]?.domains[0]?.phase === "pause";
    await until(isPausing);
    await until(() => at.clock.sleepers > 0);
    await at.clock.advance(MINUTE);
    expect((await ended).domains[0]).toMatchObject({ state: "failed", attempts: 2 });
    expect(await said()).toEqual(["before", "failed"]);
  });

  it("are killed at their limit, with what they have started", async () => {
    const { at, path, run } = await world();
    const started = `${path}/started`;
    const ending = run([hook("after", `sleep 600 & echo $! >${path}/pid; touch ${started}; wait`)]);
    await until(() => isThere(started));
    await at.clock.advance(MINUTE);
    expect((await ending).domains[0]?.notes).toEqual([
      "hook after the backup failed (/bin/sh): it was killed, as it had not ended in time",
    ]);
    const pid = Number(await readFile(`${path}/pid`, "utf8"));
    await until(async () => {
      const status = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => ") Z");
      return /\) [ZX]/.test(status);
    });
  });

  it("do not wait for what they leave running with their output open", async () => {
    const { path, run } = await world();
    const record = await run([hook("after", `sleep 60 & echo $! >${path}/pid`)]);
    expect(record.state).toBe("complete");
    // Fails if it has ended.
    process.kill(Number(await readFile(`${path}/pid`, "utf8")), "SIGKILL");
  });

  it("for failure are run when the run is cancelled, for 10 s at most", async () => {
    const { at, path, said } = await world();
    const job = nightly({
      hooks: [
        hook("before", "exec sleep 600"),
        hook("failed", `${say(path, "FLEECE_RESULT")}; exec sleep 600`),
      ],
    });
    const agent = at.process([job]);
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    await until(() => at.clock.sleepers > 0);
    const cancelled = agent.runner.cancel("nightly", "somebody");
    await until(async () => (await said()).length > 0);
    await at.clock.advance(10_000);
    expect((await cancelled).state).toBe("interrupted");
    expect(await ended).toMatchObject({ state: "interrupted" });
    expect(await said()).toEqual(["interrupted"]);
  });
});
