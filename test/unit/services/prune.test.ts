import { describe, expect, it } from "vitest";
import type { IntactEntry } from "../../../src/model/backup.js";
import { listBackups, protectBackup } from "../../../src/services/backup-catalog.js";
import { runBackup } from "../../../src/services/backup-run.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { pruneDomain } from "../../../src/services/prune.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const POLICY = { last: 2, timeZone: "UTC" };

/** A domain with a full and three incrementals. */
async function chain(): Promise<{ context: ServiceContext; world: FakeWorld; ids: readonly string[] }> {
  const { path } = await temporaryDirectory();
  const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 4 * 65536 }] });
  const { context } = world.process();
  const ids: string[] = [];
  for (let block = 0; block < 4; block++) {
    world.domain.write("vda", block * 65536, 512, 1);
    ids.push((await runBackup(context, { domain: "vm" })).id);
  }
  world.retention = POLICY;
  return { context, world, ids };
}

function checkpoints(world: FakeWorld): readonly string[] {
  return world.domain
    .disk("vda")
    .state(true)
    .checkpoints.map(({ name }) => name);
}

describe("pruneDomain", () => {
  it("says what it would do and why in a dry run, and changes nothing", async () => {
    const { context, world, ids } = await chain();
    const [pruning] = await pruneDomain(context, "vm", { dryRun: true });
    expect(pruning?.backups).toMatchObject([
      {
        entry: { id: ids[0] },
        action: "merge",
        into: ids[1],
        outcome: "planned",
        reasons: ["no rule keeps it"],
      },
      {
        entry: { id: ids[1] },
        action: "merge",
        into: ids[2],
        outcome: "planned",
        reasons: ["no rule keeps it"],
      },
      { entry: { id: ids[2] }, action: "keep", outcome: "kept", reasons: ["last 2"] },
      { entry: { id: ids[3] }, action: "keep", outcome: "kept", reasons: ["newest", "last 2"] },
    ]);
    expect(await listBackups(context)).toHaveLength(4);
    expect(checkpoints(world)).toEqual(ids);
  });

  it("merges what is not kept, with its checkpoints, and does nothing the second time", async () => {
    const { context, world, ids } = await chain();
    const [pruning] = await pruneDomain(context, "vm");
    expect(pruning?.backups.map(({ outcome }) => outcome)).toEqual(["done", "done", "kept", "kept"]);
    expect(pruning).toMatchObject({ checkpoints: ids.slice(0, 2), notes: [] });
    const left = await listBackups(context);
    expect(left.map(({ id }) => id)).toEqual(ids.slice(2));
    expect(left[0]?.manifest).toMatchObject({ level: "full" });
    expect(checkpoints(world)).toEqual(ids.slice(2));
    const last = ids[3] ?? "";
    expect(world.repository.content(last, "vda").equals(world.domain.disk("vda").content)).toBe(true);
    const [again] = await pruneDomain(context, "vm");
    expect(again?.backups.map(({ outcome }) => outcome)).toEqual(["kept", "kept"]);
  });

  it("does nothing without a policy", async () => {
    const { context, world } = await chain();
    world.retention = undefined;
    expect(await pruneDomain(context, "vm")).toEqual([]);
    expect(await listBackups(context)).toHaveLength(4);
  });

  it("goes on after a backup that cannot be merged, and says why", async () => {
    const { context, world, ids } = await chain();
    const busy = new FleeceError("REPOSITORY_BUSY", "it is being read");
    const held = new Proxy(world.repository, {
      get(target, name) {
        const value: unknown = Reflect.get(target, name, target);
        if (name !== "merge") return typeof value === "function" ? (value.bind(target) as unknown) : value;
        return (entry: IntactEntry) => (entry.id === ids[0] ? Promise.reject(busy) : target.merge(entry));
      },
    });
    const [pruning] = await pruneDomain({ ...context, repositories: new Map([["default", held]]) }, "vm");
    expect(pruning?.backups).toMatchObject([
      { outcome: "skipped", note: "it is being read" },
      { outcome: "done" },
      { outcome: "kept" },
      { outcome: "kept" },
    ]);
    expect((await listBackups(context)).map(({ id }) => id)).toEqual([ids[0], ids[2], ids[3]]);
    expect(checkpoints(world)).toEqual([ids[0], ids[2], ids[3]]);
  });

  it("does the others when one repository is busy, reports that one, and fails if there is no other", async () => {
    const { context, world, ids } = await chain();
    const lock = (): Promise<never> =>
      Promise.reject(new FleeceError("REPOSITORY_BUSY", "another host writes"));
    const busy = new Proxy(world.repository, {
      get(target, name) {
        if (name === "lock") return lock;
        if (name === "name") return "tape";
        const value: unknown = Reflect.get(target, name, target);
        return typeof value === "function" ? (value.bind(target) as unknown) : value;
      },
    });
    const tape = ["tape", busy] as const;
    const both = { ...context, repositories: new Map([tape, ["default", world.repository]]) };
    await expect(pruneDomain(both, "vm", { repository: "tape" })).rejects.toThrow("another host writes");
    const prunings = await pruneDomain(both, "vm");
    expect(prunings).toMatchObject([
      {
        repository: "tape",
        backups: [],
        notes: ["Nothing was pruned in repository tape: another host writes"],
      },
      { repository: "default", notes: [] },
    ]);
    expect(prunings[1]?.backups.map(({ outcome }) => outcome)).toEqual(["done", "done", "kept", "kept"]);
    expect((await listBackups(context)).map(({ id }) => id)).toEqual(ids.slice(2));
    const none = { ...context, repositories: new Map([tape]) };
    await expect(pruneDomain(none, "vm")).rejects.toMatchObject({ code: "REPOSITORY_BUSY" });
  });

  it("keeps a protected backup, and lets an unreachable domain's checkpoints wait for the next time", async () => {
    const { context, world, ids } = await chain();
    await protectBackup(context, ids[0] ?? "", true);
    const lock = await context.store.lockDomain("vm", "a test");
    const [pruning] = await pruneDomain(context, "vm");
    await lock.release();
    expect(pruning?.backups[0]).toMatchObject({ action: "keep", reasons: ["protected"] });
    expect(pruning?.notes).toMatchObject([expect.stringContaining("stay for now")]);
    expect(checkpoints(world)).toEqual(ids);
    const [next] = await pruneDomain(context, "vm");
    expect(next?.checkpoints).toEqual([ids[1]]);
    expect(checkpoints(world)).toEqual([ids[0], ids[2], ids[3]]);
  });
});
