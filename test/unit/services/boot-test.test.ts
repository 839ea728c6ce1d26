import { describe, expect, it } from "vitest";
import { consoleSign } from "../../../src/model/boot-test.js";
import type { Job } from "../../../src/model/job.js";
import type { BootMachines, BootOrder } from "../../../src/ports/boot-machines.js";
import { bootTest, lastBootTest } from "../../../src/services/boot-test.js";
import { bootStep } from "../../../src/services/jobs/boot-step.js";
import type { RunStep } from "../../../src/services/jobs/run-step.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { type JobProcess, JobWorld, nightly, until } from "../../support/job-world.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const MINUTE = 60_000;
const SETTINGS = {
  ...{ launch: undefined, files: new Map([["vda", "/vm/vda.qcow2"]]), memoryBytes: undefined },
  ...{ sign: consoleSign("login:"), timeoutMs: MINUTE, accelerator: "tcg" as const },
};

interface Scene {
  readonly at: JobWorld;
  readonly agent: JobProcess;
  readonly orders: readonly BootOrder[];
  readonly pruned: readonly string[];
}

/** A job whose machines come up as `boot` says. */
async function scene(job: Job, boot: BootMachines["boot"]): Promise<Scene> {
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
  const agent = at.process([job], { steps: [bootStep, prune] });
  const orders: BootOrder[] = [];
  const bootMachines: BootMachines = {
    running: () => Promise.resolve({ arguments: ["qemu"], cwd: "/vm" }),
    boot: (order) => {
      orders.push(order);
      return boot(order);
    },
  };
  agent.context = { ...agent.context, bootMachines, bootTests: new Map([["web01", SETTINGS]]) };
  return { at, agent, orders, pruned };
}

const BOOTS = nightly({ bootTest: { budgetMs: 15 * MINUTE } });
const booted = () => Promise.resolve({ accelerator: "tcg" as const, durationMs: 1 });

describe("a job that boots its backups", () => {
  it("boots each new backup by the domain's arguments, says so in its record, and leaves nothing", async () => {
    const { at, agent, orders } = await scene(BOOTS, booted);
    const { ended } = await agent.runner.start(agent.context, { job: BOOTS, trigger: "request", retries: 0 });
    const record = await ended;
    expect(record).toMatchObject({ state: "complete", domains: [{ bootTest: { durationMs: 0 } }] });
    expect(orders).toMatchObject([{ launch: ["qemu"], cwd: "/vm", disks: [{ address: { target: "vda" } }] }]);
    expect(orders[0]?.disks[0]?.files).toEqual(expect.arrayContaining(["/vm/vda.qcow2", "/vm/vda"]));
    const { id = "", repository = "" } = record.domains[0]?.backup ?? {};
    const { store } = agent.context;
    expect(await lastBootTest(store, { id, repository })).toEqual({
      schemaVersion: 1,
      timeMs: at.clock.now(),
    });
    expect(await at.traces()).toMatchObject({ journal: [] });
  });

  it("fails by its code when the guest does not come up, and lets nothing go then", async () => {
    const words = "The guest did not come up: its serial console said last: panic";
    const { agent, pruned } = await scene(BOOTS, () => Promise.reject(new FleeceError("BOOT_FAILED", words)));
    const { ended } = await agent.runner.start(agent.context, { job: BOOTS, trigger: "request", retries: 3 });
    const record = await ended;
    expect(record).toMatchObject({
      state: "failed",
      error: { code: "BOOT_FAILED", message: expect.stringContaining(words) as string },
      domains: [{ attempts: 1, bootTest: { failure: expect.stringContaining(words) as string } }],
    });
    expect(pruned).toEqual([]);
    const { id = "", repository = "" } = record.domains[0]?.backup ?? {};
    expect(await lastBootTest(agent.context.store, { id, repository })).toMatchObject({ failure: words });
  });

  it("ends a boot when its budget is spent, which proves nothing: a note says so", async () => {
    const { at, agent, orders, pruned } = await scene(
      BOOTS,
      ({ signal }) =>
        new Promise((_, reject) => {
          signal?.addEventListener("abort", () => reject(signal.reason as Error));
        }),
    );
    const { ended } = await agent.runner.start(agent.context, { job: BOOTS, trigger: "request", retries: 0 });
    await until(() => orders.length === 1);
    await at.clock.advance(15 * MINUTE);
    const record = await ended;
    expect(record.state).toBe("complete-with-notes");
    expect(record.domains[0]?.notes.join()).toContain("when the budget of 15 min 0 s was spent");
    expect(record.domains[0]?.bootTest).toBeUndefined();
    expect(pruned).toHaveLength(1);
    expect(await agent.context.store.notes("boot-tests")).toEqual([]);
  });
});

describe("bootTest", () => {
  it("ends when the overlays take more than scratch space may, and remembers nothing", async () => {
    const { at, agent, orders } = await scene(nightly(), ({ signal }) => {
      const ended = new Promise<never>((_, reject) => {
        signal?.addEventListener("abort", () => reject(signal.reason as Error));
      });
      void at.clock.advance(1000);
      return ended;
    });
    const job = nightly();
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    const { id = "", repository = "" } = (await ended).domains[0]?.backup ?? {};
    expect(orders).toEqual([]);
    const { scratch } = agent.context;
    const full = { ...agent.context, scratchLimits: new Map([["web01", 10]]) };
    const measured: string[] = [];
    const usedBytes = (files: readonly string[]): Promise<number> => {
      measured.push(...files);
      return Promise.resolve(9 + measured.length);
    };
    const bounded = Object.assign(Object.create(scratch) as typeof scratch, { usedBytes });
    await expect(bootTest({ ...full, scratch: bounded }, { id, repository })).rejects.toMatchObject({
      code: "NO_SPACE",
    });
    expect(measured.length).toBe(2);
    for (const file of measured) expect(file).toMatch(/^\/scratch\/boot-\w+\/disk-0\.qcow2$/);
    expect(await lastBootTest(agent.context.store, { id, repository })).toBeUndefined();
  });

  it("says what is missing when nobody knows the machine", async () => {
    const { agent } = await scene(nightly(), booted);
    const job = nightly();
    const { ended } = await agent.runner.start(agent.context, { job, trigger: "request", retries: 0 });
    const { id = "", repository = "" } = (await ended).domains[0]?.backup ?? {};
    const { bootMachines } = agent.context;
    const gone = {
      ...agent.context,
      bootMachines: { ...bootMachines, running: () => Promise.resolve(undefined) },
    };
    await expect(bootTest(gone, { id, repository })).rejects.toThrow(
      /neither `bootTest.launch` nor `launch`/,
    );
  });
});
