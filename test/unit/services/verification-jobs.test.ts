import { describe, expect, it } from "vitest";
import { Schedule } from "../../../src/model/schedule.js";
import type { RunRecord } from "../../../src/model/run-record.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { domainStatuses } from "../../../src/services/jobs/job-status.js";
import { type JobProcess, JobWorld, nightly, until } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

/** Saturdays at noon. */
const proof = (changes: Parameters<typeof nightly>[0] = {}) =>
  nightly({
    name: "proof",
    kind: "verify",
    schedule: new Schedule("0 12 * * 6", "Europe/Berlin"),
    verify: { after: true, budgetMs: 10 * MINUTE },
    ...changes,
  });

/** A domain with three backups, and an agent an hour before the job. */
async function begin(
  job = proof(),
): Promise<{ readonly at: JobWorld; readonly agent: JobProcess; readonly ids: readonly string[] }> {
  const { path } = await temporaryDirectory();
  const at = new JobWorld(path, "2026-11-14T09:57:00Z");
  const agent = at.process([job]);
  const ids: string[] = [];
  for (let count = 0; count < 3; count++) {
    at.domain().write("vda", 0, 512, count + 1);
    ids.push((await runBackup(agent.context, { domain: "web01" })).id);
    await at.clock.advance(MINUTE);
  }
  await agent.schedule();
  return { at, agent, ids };
}

/** From now on each opening of a backup takes so long. */
function slow({ at, agent }: { readonly at: JobWorld; readonly agent: JobProcess }, ms: number): void {
  const repository = agent.context.repositories.get("default");
  const open = repository?.open.bind(repository);
  if (repository === undefined || open === undefined) throw new Error("There is no repository");
  repository.open = async (...args) => {
    await at.clock.advance(ms);
    return open(...args);
  };
}

async function saturday({ agent }: { readonly agent: JobProcess }): Promise<RunRecord> {
  const before = (await agent.records("proof")).length;
  for (;;) {
    await agent.pass(HOUR);
    await agent.idle();
    const [newest] = await agent.records("proof");
    if (newest !== undefined && (await agent.records("proof")).length > before) return newest;
  }
}

const verifiedIn = ({ domains }: RunRecord): readonly string[] =>
  (domains[0]?.verifications ?? []).map(({ backup }) => backup);

describe("a job that verifies", () => {
  it("reads all backups when its moment comes, takes none, and is recorded as any other", async () => {
    const { at, agent, ids } = await begin();
    const record = await saturday({ agent });
    expect(record).toMatchObject({
      kind: "verify",
      trigger: "schedule",
      scheduledMs: Date.parse("2026-11-14T11:00:00Z"),
      state: "complete",
      domains: [{ domain: "web01", state: "complete", notes: [] }],
    });
    expect(verifiedIn(record)).toEqual(ids);
    expect(record.domains[0]?.backup).toBeUndefined();
    expect(await at.backups()).toBe(3);
    expect((await domainStatuses(agent.context))[0]).toMatchObject({
      next: undefined,
      last: { job: "proof" },
    });
  });

  it("goes on in the next run with the one whose verification is the oldest", async () => {
    const { at, agent, ids } = await begin();
    slow({ at, agent }, 6 * MINUTE);
    expect(verifiedIn(await saturday({ agent }))).toEqual(ids.slice(0, 2));
    expect(verifiedIn(await saturday({ agent }))).toEqual([ids[2], ids[0]]);
  });

  it("fails by damage, after it has looked at the others, and is not tried again", async () => {
    const { at, agent, ids } = await begin();
    at.rot((id) => id === ids[0]);
    const record = await saturday({ agent });
    expect(record).toMatchObject({ state: "failed", error: { code: "DAMAGED" }, domains: [{ attempts: 1 }] });
    expect(verifiedIn(record)).toEqual(ids);
    expect(record.domains[0]?.verifications?.map(({ damage }) => damage !== undefined)).toEqual([
      true,
      false,
      false,
    ]);
  });

  it("ends with its window, and says that there is a rest", async () => {
    const { at, agent, ids } = await begin(proof({ notAfter: "12:05" }));
    const repository = agent.context.repositories.get("default");
    const open = repository?.open.bind(repository);
    if (repository === undefined || open === undefined) throw new Error("There is no repository");
    let opened = 0;
    let isHeld = false;
    repository.open = async (entry, how) => {
      if (++opened === 2) {
        isHeld = true;
        await new Promise((_resolve, reject) => {
          how?.signal?.addEventListener("abort", () => reject(new Error("Aborted")), { once: true });
        });
      }
      return open(entry, how);
    };
    await agent.pass(HOUR);
    await until(() => isHeld);
    await at.clock.advance(6 * MINUTE);
    await agent.idle();
    const [record] = await agent.records("proof");
    expect(record).toMatchObject({
      state: "complete-with-notes",
      domains: [{ notes: [expect.stringContaining("window ended")] }],
    });
    expect(verifiedIn(record as RunRecord)).toEqual(ids.slice(0, 1));
  });
});
