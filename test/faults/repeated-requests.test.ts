import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import type { CallName } from "../../src/api/call-types.js";
import { CALLS } from "../../src/api/calls.js";
import { startAgent, VendorClient, type Fields } from "../support/agent.js";
import { runFleece, startFleece } from "../support/fleece.js";
import { untilTestEnds } from "../support/lifetime.js";
import type { JsonObject } from "../support/monitor.js";
import { Scene } from "./support/scene.js";
import { startFaulty } from "./support/steps.js";
import { ALL_FAULTS, sampled } from "../support/sample.js";

/** One method that changes something: what must be there before, and what is there after it was done once. */
interface Case {
  readonly method: CallName;
  readonly prepare: (client: VendorClient, scene: Scene) => Promise<Fields>;
  readonly effect: (seen: Seen) => void;
  /** What the answer says in any case. */
  readonly answer: Fields;
  /** How many records are written before the last one, which has the answer. */
  readonly promises?: number;
}

/** All that calls can change. */
interface Seen {
  readonly snapshots: readonly Fields[];
  readonly checkpoints: readonly Fields[];
  readonly backups: readonly Fields[];
  readonly domainSnapshots: readonly Fields[];
  readonly runs: readonly Fields[];
  readonly files: readonly string[];
}

async function look(client: VendorClient, { at }: Scene): Promise<Seen> {
  const list = async (method: CallName, field: string): Promise<readonly Fields[]> =>
    (await client.call(method, { domain: "vm" }))[field] as readonly Fields[];
  return {
    snapshots: await list("BlockSnapshots.List", "snapshots"),
    checkpoints: await list("Checkpoints.List", "checkpoints"),
    backups: await list("Backups.List", "backups"),
    domainSnapshots: await list("DomainSnapshots.List", "snapshots"),
    runs: (await client.call("Jobs.History", {}))["runs"] as readonly Fields[],
    files: (await readdir(at.directory.path)).filter((name) => name.startsWith("restored")),
  };
}

const NIGHT = { domain: "vm", name: "night" };
const OF_NIGHT = { domain: "vm", snapshot: "night" };

async function create(client: VendorClient, leaseMs = 600_000): Promise<Fields> {
  await client.call("BlockSnapshots.Create", { ...NIGHT, checkpoint: {}, leaseMs });
  return NIGHT;
}

async function backupId(client: VendorClient): Promise<unknown> {
  return (await client.call("Backups.Run", { domain: "vm" }))["id"];
}

const CASES: readonly Case[] = [
  {
    method: "BlockSnapshots.Create",
    prepare: () => Promise.resolve({ domain: "vm", checkpoint: {}, disks: ["vda"] }),
    effect: ({ snapshots, checkpoints }) => expect([snapshots.length, checkpoints.length]).toEqual([1, 2]),
    answer: { domain: "vm", disks: [{ target: "vda" }] },
  },
  {
    method: "BlockSnapshots.Renew",
    prepare: async (client) => ({ ...(await create(client)), leaseMs: 1_200_000 }),
    effect: ({ snapshots }) => expect(snapshots).toMatchObject([{ name: "night", leaseMs: 1_200_000 }]),
    answer: { ...NIGHT, leaseMs: 1_200_000 },
  },
  {
    method: "BlockSnapshots.Delete",
    prepare: (client) => create(client),
    effect: ({ snapshots, checkpoints }) => expect([snapshots.length, checkpoints.length]).toEqual([0, 2]),
    answer: { ...NIGHT, checkpoint: "night" },
  },
  {
    method: "BlockExports.Start",
    prepare: async (client) => {
      await create(client);
      return OF_NIGHT;
    },
    effect: ({ snapshots }) => expect(snapshots).toMatchObject([{ exports: [{ target: "vda" }] }]),
    answer: { exports: [{ target: "vda", exportName: "vda-night" }] },
  },
  {
    method: "BlockExports.Stop",
    prepare: async (client) => {
      await create(client);
      await client.call("BlockExports.Start", OF_NIGHT);
      return OF_NIGHT;
    },
    effect: ({ snapshots }) => expect(snapshots).toMatchObject([{ name: "night", exports: [] }]),
    answer: {},
  },
  {
    method: "Checkpoints.Delete",
    prepare: async (client) => {
      await create(client);
      await client.call("BlockSnapshots.Delete", NIGHT);
      return NIGHT;
    },
    effect: ({ checkpoints }) => expect(checkpoints).toHaveLength(1),
    answer: { ...NIGHT, disks: [{ target: "vda" }] },
    promises: 1,
  },
  {
    method: "Backups.Run",
    prepare: () => Promise.resolve({ domain: "vm" }),
    effect: ({ backups, checkpoints }) => expect([backups.length, checkpoints.length]).toEqual([2, 2]),
    answer: { domain: "vm", level: "INCREMENTAL" },
  },
  {
    method: "Backups.Restore",
    prepare: async (client, { at }) => ({
      id: await backupId(client),
      directory: at.directory.file("restored"),
    }),
    effect: ({ files }) => expect(files).toEqual(["restored"]),
    answer: { disks: [{ target: "vda" }] },
    promises: 1,
  },
  {
    method: "Backups.Delete",
    prepare: async (client) => ({ id: await backupId(client) }),
    effect: ({ backups }) => expect(backups).toHaveLength(1),
    answer: { level: "INCREMENTAL" },
    promises: 1,
  },
  {
    method: "Backups.Protect",
    prepare: async (client) => ({ id: await backupId(client), protected: true }),
    effect: ({ backups }) => expect(backups).toMatchObject([{ protected: false }, { protected: true }]),
    answer: { protected: true },
  },
  {
    method: "Backups.Copy",
    prepare: () => Promise.resolve({ domain: "vm", to: "second" }),
    effect: ({ backups }) =>
      expect(backups).toMatchObject([{ repository: "default" }, { copiedFrom: "default", level: "FULL" }]),
    answer: { domain: "vm", repository: "default", to: "second" },
  },
  {
    method: "Backups.Prune",
    prepare: async (client) => {
      await backupId(client);
      return { domain: "vm" };
    },
    effect: ({ backups }) => expect(backups).toMatchObject([{ level: "FULL" }]),
    answer: { dryRun: false, domains: [{ domain: "vm" }] },
  },
  {
    method: "Jobs.Run",
    prepare: () => Promise.resolve({ job: "nightly" }),
    effect: ({ runs, backups }) => expect([runs.length, backups.length]).toEqual([1, 2]),
    answer: { job: "nightly", state: "COMPLETE" },
  },
  {
    method: "DomainSnapshots.Create",
    prepare: () => Promise.resolve({ ...NIGHT, diskOnly: true }),
    effect: ({ domainSnapshots }) => expect(domainSnapshots).toMatchObject([NIGHT]),
    answer: { ...NIGHT, current: true, disks: [{ target: "vda" }] },
  },
  {
    method: "DomainSnapshots.Revert",
    prepare: async (client, { at }) => {
      // Of an inactive domain the disks alone go back: what a kill leaves of two QEMUs is another test's.
      await at.vm.quit();
      await client.call("DomainSnapshots.Create", NIGHT);
      return NIGHT;
    },
    effect: ({ domainSnapshots }) =>
      expect(domainSnapshots).toMatchObject([{ ...NIGHT, current: true }, { keptByRevert: true }]),
    answer: { snapshot: NIGHT, state: "INACTIVE", downtimeMs: 0 },
  },
  {
    method: "DomainSnapshots.Delete",
    prepare: async (client) => {
      await client.call("DomainSnapshots.Create", { ...NIGHT, diskOnly: true });
      return NIGHT;
    },
    effect: ({ domainSnapshots }) => expect(domainSnapshots).toEqual([]),
    answer: { ...NIGHT, layers: [{ target: "vda", how: "COMMIT" }] },
    promises: 1,
  },
  {
    method: "DomainSnapshots.Clone",
    prepare: async (client, { at }) => {
      await client.call("DomainSnapshots.Create", { ...NIGHT, diskOnly: true });
      return { ...NIGHT, directory: at.directory.file("restored") };
    },
    effect: ({ domainSnapshots, files }) => {
      expect(files).toEqual(["restored"]);
      expect(domainSnapshots).toMatchObject([{ ...NIGHT, clones: [{}] }]);
    },
    answer: { ...NIGHT, disks: [{ target: "vda" }] },
    promises: 1,
  },
];

/** Their effect ends with the call, or with the agent that is killed. */
const OF_THE_CALL: readonly CallName[] = ["Backups.Serve", "Backups.BootTest", "Jobs.Cancel"];

it("there is a case of every method that changes something", () => {
  const mutating = Object.entries(CALLS).flatMap(([name, { mutates }]) => (mutates ? [name] : []));
  const named = [...CASES.map(({ method }) => method), ...OF_THE_CALL];
  expect(named.toSorted()).toEqual(mutating.toSorted());
});

/** It comes due by itself at the beginning of a year. */
const JOB = { name: "nightly", domains: ["vm"], schedule: "0 0 1 1 *", catchUp: false };

async function started(method?: CallName): Promise<Scene> {
  const retention = method === "Backups.Prune" ? { retention: { last: 1 } } : {};
  const scene = await Scene.start(1, { jobs: [JOB], ...retention });
  if (method === "Backups.Copy") {
    const second = scene.at.directory.file("second");
    await mkdir(second);
    const { repositories, ...config } = parse(await readFile(scene.at.configPath, "utf8")) as JsonObject;
    const both = [...(repositories as JsonObject[]), { name: "second", path: second }];
    await writeFile(scene.at.configPath, stringify({ ...config, repositories: both }));
  }
  await scene.backUp();
  await scene.touch();
  return scene;
}

/** By `npm test` each method is tried in one of the two ways. */
const KILLED = sampled(CASES, 3);
const TWICE = CASES.filter((each) => ALL_FAULTS || !KILLED.includes(each));

const ID = "1c2ee1f4-8c0e-4a52-9a3a-0c8f1f6c9a11";

describe("A request", () => {
  it.each(TWICE)(
    "sent twice at once and once more has the effect and the answer of one: $method",
    async ({ method, prepare, effect, answer }) => {
      const scene = await started(method);
      await startAgent(scene.at);
      const client = new VendorClient(scene.at);
      const request = { ...(await prepare(client, scene)), requestId: ID };
      const other = new VendorClient(scene.at);
      const [first, second] = await Promise.all([client.call(method, request), other.call(method, request)]);
      expect(first).toMatchObject(answer);
      expect(second).toEqual(first);
      effect(await look(client, scene));
      const third = await client.call(method, request);
      expect(third).toEqual(first);
      effect(await look(client, scene));
      const changed = client.call(method, {
        ...request,
        domain: "other",
        directory: "/other",
        id: "other",
        job: "other",
      });
      await expect(changed).rejects.toThrow(/Expected a new request_id/);
      client.close();
      other.close();
    },
  );

  it.each(KILLED)(
    "sent again after the agent was killed between the effect and its record has the effect of one: $method",
    async ({ method, prepare, effect, answer, promises = 0 }) => {
      const scene = await started(method);
      const before = await startAgent(scene.at);
      const client = new VendorClient(scene.at);
      const request = { ...(await prepare(client, scene)), requestId: ID };
      await before.kill("SIGKILL");
      client.close();
      const record = /^rename \S+\/notes\/requests\//;
      const fault = { match: record, at: promises + 1, when: "before", action: "kill" } as const;
      const faulty = await startFaulty(scene.at, ["serve"], fault);
      untilTestEnds(faulty.process);
      await faulty.process.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
      await expect(new VendorClient(scene.at).call(method, request)).rejects.toThrow(/UNAVAILABLE/);
      await faulty.process.result();
      await startAgent(scene.at);
      const again = new VendorClient(scene.at);
      const seen = await look(again, scene);
      effect(seen);
      expect(await again.call(method, request)).toMatchObject(answer);
      const after = await look(again, scene);
      effect(after);
      if (method !== "BlockSnapshots.Renew") expect(after).toEqual(seen);
      again.close();
      // The guest's moments of it all are still what backups show.
      await scene.expectSound();
    },
  );
});

describe("a command whose agent is killed", () => {
  const FREEZE = { match: /^qmp blockdev-add$/, at: 2 };
  const RECORD = { match: /^rename \S+\/notes\/requests\//, at: 1 };

  it.each([
    ["in the midst", FREEZE],
    ["before it has recorded the answer", RECORD],
  ])("%s tells what its successor says, with the effect of one", async (_, step) => {
    const scene = await started();
    scene.mark();
    const faulty = await startFaulty(scene.at, ["serve"], { ...step, when: "before", action: "kill" });
    untilTestEnds(faulty.process);
    await faulty.process.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
    const command = await startFleece(["backup", "run", "vm", "--json"], { configPath: scene.at.configPath });
    expect((await faulty.process.result()).signal).toBe("SIGKILL");
    await startAgent(scene.at);
    const result = await command.result();
    const { exitCode, stderr } = result;
    expect(exitCode, stderr).toBe(0);
    const ids = await scene.expectSound();
    expect(ids).toHaveLength(2);
    expect(ids).toContain((result.json() as Fields)["id"]);
    await scene.expectClean();
  });

  it("says so if none comes after it, and the next agent leaves nothing of it", async () => {
    const scene = await started();
    const faulty = await startFaulty(scene.at, ["serve"], { ...FREEZE, when: "before", action: "kill" });
    untilTestEnds(faulty.process);
    await faulty.process.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
    const { exitCode, stderr } = await runFleece(["backup", "run", "vm"], {
      configPath: scene.at.configPath,
    });
    expect(stderr).toMatch(/The agent went away before it answered.*\(AGENT_UNREACHABLE\)/);
    expect(exitCode).toBe(5);
    await startAgent(scene.at);
    await scene.expectClean();
    expect(await scene.expectSound()).toHaveLength(1);
  });
});
