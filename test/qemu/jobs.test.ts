import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import type {
  JobHistoryResponse,
  JobRun,
  ListBackupsResponse,
  ListJobsResponse,
  Status,
} from "../../src/api/messages.js";
import { startAgent, VendorClient } from "../support/agent.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { runFleece } from "../support/fleece.js";
import { createImage, fillImage } from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";
import { type Site, startSite } from "../support/site.js";
import { TestVm } from "../support/vm.js";

const JOB = { name: "often", timeZone: "Europe/Berlin", domains: "all" };
const PROOF = {
  ...{ name: "proof", kind: "verify", domains: "all", schedule: "0 0 1 1 *" },
  verify: { budget: "1h" },
};

async function configure(at: Site, schedule: string): Promise<void> {
  await writeConfig(at.directory.path, {
    domains: [domainConfig("vm", at.vm)],
    more: { runtimeDir: at.directory.file("run"), jobs: [{ ...JOB, schedule }, PROOF] },
  });
}

/** Of the agent; newest first. Resolves when they are as wanted. */
async function runsOf(at: Site, areWanted: (runs: readonly JobRun[]) => boolean): Promise<readonly JobRun[]> {
  const client = new VendorClient(at);
  try {
    for (;;) {
      const { runs } = (await client.call("Jobs.History", {})) as unknown as JobHistoryResponse;
      if (areWanted(runs)) return runs;
      await delay(200);
    }
  } finally {
    client.close();
  }
}

async function agentJson<T>(at: Site, ...args: string[]): Promise<T> {
  const result = await runFleece([...args, "--json"], { configPath: at.configPath });
  expect(result.stderr).toBe("");
  return result.json() as T;
}

describe("jobs of the agent", () => {
  it("run when they are due, say after a kill that they were interrupted, and are made up for", async () => {
    const at = await startSite();
    await configure(at, "0 0 1 1 *");
    const first = await startAgent(at);
    expect(await runsOf(at, () => true)).toEqual([]);

    // Every two seconds, by a reload.
    await configure(at, "*/2 * * * * *");
    process.kill(first.pid, "SIGHUP");
    const [made] = (await runsOf(at, (runs) => runs.some(({ state }) => state !== "RUNNING"))).filter(
      ({ state }) => state !== "RUNNING",
    );
    expect(made).toMatchObject({ job: "often", trigger: "SCHEDULE", state: "COMPLETE" });
    expect(made?.domains[0]?.backup).toMatchObject({
      consistency: "CRASH",
      disks: [{ target: "vda" }, { target: "vdb" }],
    });

    // A QEMU that does not answer: the backup cannot end before the agent is killed.
    process.kill(at.vm.pid, "SIGSTOP");
    const isHeld = ({ state, domains }: JobRun): boolean =>
      state === "RUNNING" && domains[0]?.phase === "BACKUP";
    await runsOf(at, ([run]) => run !== undefined && isHeld(run));
    await delay(500);
    const [held] = await runsOf(at, ([run]) => run !== undefined && isHeld(run));
    await first.kill("SIGKILL");
    process.kill(at.vm.pid, "SIGCONT");
    const { runs: told } = await at.json<JobHistoryResponse>("job", "history", "often");
    expect(told[0]).toMatchObject({ id: held?.id, state: "INTERRUPTED", error: { code: "INTERRUPTED" } });
    expect(told.filter(({ state }) => state === "RUNNING")).toEqual([]);

    await configure(at, "0 0 1 1 *");
    const second = await startAgent(at);
    const [again, cut] = await runsOf(at, ([run]) => run?.trigger === "CATCH_UP" && run.state !== "RUNNING");
    expect(again).toMatchObject({ state: "COMPLETE", scheduledTime: cut?.scheduledTime });
    expect(cut).toMatchObject({ id: held?.id, state: "INTERRUPTED" });

    const { jobs } = await agentJson<ListJobsResponse>(at, "job", "list");
    expect(jobs[0]?.nextRuns).toHaveLength(5);
    expect(jobs[0]?.lastRun).toMatchObject({ id: again?.id });
    const { domains } = await agentJson<Status>(at, "status");
    expect(domains).toMatchObject([
      {
        domain: "vm",
        lastBackup: { id: again?.domains[0]?.backup?.id },
        nextJob: "often",
        lastState: "COMPLETE",
      },
    ]);
    expect((await second.kill("SIGTERM")).exitCode).toBe(0);

    const now = await at.json<JobRun>("job", "run", "often");
    expect(now).toMatchObject({
      trigger: "REQUEST",
      state: "COMPLETE",
      domains: [{ backup: { level: "INCREMENTAL" } }],
    });
    const proof = await at.json<JobRun>("job", "run", "proof");
    expect(proof).toMatchObject({ kind: "VERIFY", state: "COMPLETE" });
    expect(proof.domains[0]).not.toHaveProperty("backup");
    const { backups } = await at.json<ListBackupsResponse>("backup", "list");
    expect(proof.domains[0]?.verifications.map(({ backup }) => backup)).toEqual(backups.map(({ id }) => id));
    expect((await at.run("job", "run", "proof")).stdout).toMatch(/^vm +complete +\d+/m);
  });

  it("are told of by the next agent when one is killed before its report is taken", async () => {
    const at = await startSite();
    const told: JobRun[] = [];
    let takes = false;
    const server = createServer((request, response) => {
      let body = "";
      request.on("data", (bytes: Buffer) => (body += bytes.toString()));
      request.on("end", () => {
        told.push(JSON.parse(body) as JobRun);
        if (takes) response.writeHead(204).end();
      });
    }).listen(0, "127.0.0.1");
    onTestFinished(() => {
      server.closeAllConnections();
      server.close();
    });
    await once(server, "listening");
    const webhook = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    await writeConfig(at.directory.path, {
      domains: [domainConfig("vm", at.vm)],
      more: {
        runtimeDir: at.directory.file("run"),
        jobs: [{ ...JOB, schedule: "0 0 1 1 *", report: { webhook } }],
      },
    });
    const first = await startAgent(at);
    const client = new VendorClient(at);
    const lost = client.call("Jobs.Run", { job: "often" }).catch(() => undefined);
    await expect.poll(() => told.length, { timeout: 30_000 }).toBe(1);
    await first.kill("SIGKILL");
    await lost;
    client.close();

    takes = true;
    const second = await startAgent(at);
    await expect.poll(() => told.length, { timeout: 30_000 }).toBe(2);
    expect(told[1]).toEqual(told[0]);
    expect(told[0]).toMatchObject({ job: "often", state: "COMPLETE" });
    const [name = ""] = await readdir(at.directory.file("state/notes/runs"));
    const record = async (): Promise<unknown> =>
      JSON.parse(await readFile(at.directory.file(`state/notes/runs/${name}`), "utf8"));
    await expect.poll(record, { timeout: 30_000 }).not.toHaveProperty("reportDue");
    expect((await second.kill("SIGTERM")).exitCode).toBe(0);
    expect(told).toHaveLength(2);
  });

  it("are ended by SIGTERM, undone, and recorded as interrupted", async () => {
    const at = await startSite();
    await configure(at, "* * * * * *");
    const agent = await startAgent(at);
    await runsOf(at, (runs) => runs.some(({ state }) => state === "COMPLETE"));
    process.kill(at.vm.pid, "SIGSTOP");
    await runsOf(at, ([run]) => run?.state === "RUNNING" && run.domains[0]?.phase === "BACKUP");
    await delay(500);
    const ended = agent.kill("SIGTERM");
    await delay(500);
    process.kill(at.vm.pid, "SIGCONT");
    expect((await ended).exitCode).toBe(0);
    const { runs } = await at.json<JobHistoryResponse>("job", "history");
    expect(["INTERRUPTED", "COMPLETE"]).toContain(runs[0]?.state);
    expect(runs.filter(({ state }) => state === "RUNNING")).toEqual([]);
    expect(await at.files()).not.toContainEqual(
      expect.stringMatching(/^(scratch|run|state\/operations)\/[^ ]+ /),
    );
  });

  it("back up ten domains within their limits, in bounded memory", async () => {
    const at = await startSite();
    const names = Array.from({ length: 10 }, (_, index) => `vm${index}`);
    const domains = await Promise.all(names.map(async (name) => domainConfig(name, await smallVm())));
    const jobs = [{ name: "ten", schedule: "0 0 1 1 *", domains: "all" }];
    await writeConfig(at.directory.path, {
      domains,
      more: { runtimeDir: at.directory.file("run"), jobs, concurrency: { domains: 3 } },
    });
    const agent = await startAgent(at);
    const client = new VendorClient(at);
    const ran = client.call("Jobs.Run", { job: "ten" }).then((result) => result as unknown as JobRun);
    let most = 0;
    const [ended] = await runsOf(at, ([run]) => {
      const running = run?.domains.filter(({ state }) => state === "RUNNING").length ?? 0;
      most = Math.max(most, running);
      return run?.job === "ten" && run.state !== "RUNNING";
    });
    expect(ended).toMatchObject({ state: "COMPLETE" });
    expect((await ran).domains.filter(({ backup }) => backup !== null)).toHaveLength(10);
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(3);
    // 208 MiB, where one domain took 123.
    expect(await mostMemoryBytes(agent.pid)).toBeLessThan(400 * MIB);
    client.close();
  });
});

const MIB = 1024 * 1024;

async function smallVm(): Promise<TestVm> {
  const directory = await temporaryDirectory();
  const path = directory.file("vda.qcow2");
  await createImage(path, 8 * MIB, { format: "qcow2" });
  await fillImage(path, "qcow2", { offset: 0, length: 4 * MIB, pattern: 0x5a });
  const disks = [{ target: "vda", format: "qcow2", path } as const];
  return untilTestEnds(await TestVm.start({ directory: directory.path, disks }));
}

/** The most that the process has had at any time. */
async function mostMemoryBytes(pid: number): Promise<number> {
  const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kibibytes) * 1024;
}
