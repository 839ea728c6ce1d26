import { describe, expect, it } from "vitest";
import type { Job } from "../../../src/model/job.js";
import type { RunRecord } from "../../../src/model/run-record.js";
import { verifyBackup } from "../../../src/services/backup-read.js";
import type { RunStep } from "../../../src/services/jobs/run-step.js";
import { recheckStep, verifyStep } from "../../../src/services/jobs/verify-steps.js";
import { lastVerification, verifyAndRemember } from "../../../src/services/verifications.js";
import { type JobProcess, JobWorld, nightly } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const MINUTE = 60_000;

interface Nights {
  readonly at: JobWorld;
  readonly agent: JobProcess;
  readonly pruned: string[];
  night(this: void): Promise<RunRecord>;
}

/** Runs the job by hand, a minute after the last time. */
async function nights(job: Job): Promise<Nights> {
  const { path } = await temporaryDirectory();
  const at = new JobWorld(path, "2026-11-15T01:29:00Z");
  const pruned: string[] = [];
  const prune: RunStep = {
    name: "prune",
    perform: (_, { entry }) => {
      pruned.push(entry.id);
      return Promise.resolve([]);
    },
  };
  const agent = at.process([job], { steps: [verifyStep, prune, recheckStep] });
  const night = async (): Promise<RunRecord> => {
    await at.clock.advance(MINUTE);
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    return ended;
  };
  return { at, agent, pruned, night };
}

const backupOf = ({ domains }: RunRecord): string => domains[0]?.backup?.id ?? "";
const verifiedIn = ({ domains }: RunRecord): readonly string[] =>
  (domains[0]?.verifications ?? []).map(({ backup }) => backup);

describe("a job that verifies", () => {
  it("reads each new backup, tells so in its record, and remembers when", async () => {
    const { at, agent, night } = await nights(nightly({ verify: { after: true, budgetMs: 0 } }));
    const first = await night();
    const second = await night();
    expect([first.state, second.state]).toEqual(["complete", "complete"]);
    expect(verifiedIn(second)).toEqual([backupOf(second)]);
    expect((await agent.records())[0]?.domains[0]?.verifications).toEqual([
      { backup: backupOf(second), durationMs: 0 },
    ]);
    const { store } = agent.context;
    expect(await lastVerification(store, { repository: "default", id: backupOf(second) })).toEqual({
      schemaVersion: 1,
      timeMs: at.clock.now(),
    });
  });

  it("fails by damage of the new backup, lets nothing go then, and does not build on it", async () => {
    const { at, agent, pruned, night } = await nights(nightly({ verify: { after: true, budgetMs: 0 } }));
    const sound = await night();
    at.rot((id) => id !== backupOf(sound));
    const damaged = await night();
    expect(damaged).toMatchObject({
      state: "failed",
      error: {
        code: "DAMAGED",
        message: expect.stringContaining(`${backupOf(damaged)} is damaged`) as string,
      },
      domains: [{ state: "failed", attempts: 1, backup: { id: backupOf(damaged) } }],
    });
    expect(pruned).toEqual([backupOf(sound)]);
    at.rot((id) => id === backupOf(damaged));
    const next = await night();
    expect(next.state).toBe("complete");
    expect(next.domains[0]?.backup?.manifest.parent).toBe(backupOf(sound));
    // Found sound again, it counts as any other.
    const other = backupOf(next);
    at.rot((id) => id === other);
    await expect(verifyAndRemember(agent.context, other)).rejects.toMatchObject({ code: "DAMAGED" });
    await verifyAndRemember(agent.context, backupOf(damaged));
    expect((await night()).domains[0]?.backup?.manifest.parent).toBe(backupOf(damaged));
  });

  it("verifies older backups within its budget, the one first whose verification is the oldest", async () => {
    const { at, agent, night } = await nights(nightly({ verify: { after: false, budgetMs: MINUTE } }));
    const one = backupOf(await night());
    const second = await night();
    const two = backupOf(second);
    expect(verifiedIn(second)).toEqual([one]);
    const third = await night();
    expect(verifiedIn(third)).toEqual([two, one]);
    // From now on each opening of a backup takes longer than the budget.
    const repository = agent.context.repositories.get("default");
    const open = repository?.open.bind(repository);
    if (repository === undefined || open === undefined) throw new Error("There is no repository");
    repository.open = async (...args) => {
      await at.clock.advance(2 * MINUTE);
      return open(...args);
    };
    expect(verifiedIn(await night())).toEqual([backupOf(third)]);
  });

  it("fails by damage of an older backup, after it has looked at the others, too", async () => {
    const { at, night } = await nights(nightly({ verify: { after: true, budgetMs: MINUTE } }));
    const ids = [backupOf(await night()), backupOf(await night())];
    at.rot((id) => id === ids[0]);
    const found = await night();
    expect(found).toMatchObject({ state: "failed", error: { code: "DAMAGED" } });
    expect(verifiedIn(found)).toEqual([backupOf(found), ...ids]);
    expect(found.domains[0]?.verifications?.map(({ damage }) => damage !== undefined)).toEqual([
      false,
      true,
      false,
    ]);
  });

  it("forgets verifications of backups that are gone", async () => {
    const { agent, night } = await nights(nightly({ verify: { after: true, budgetMs: 0 } }));
    const { context } = agent;
    await context.store.writeNote("verifications", "gone", { schemaVersion: 1, timeMs: 1 });
    const record = await night();
    expect(await context.store.notes("verifications")).toEqual([`default.${backupOf(record)}`]);
    expect(await verifyBackup(context, backupOf(record))).toHaveLength(1);
  });
});
