import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { StateDirectory } from "../../../src/drivers/state-directory.js";
import type { SnapshotJournal } from "../../../src/model/operation.js";
import { planSnapshot } from "../../../src/model/snapshot-plan.js";
import type { OperationRecord } from "../../../src/ports/state-store.js";
import { restoreBackup, verifyBackup } from "../../../src/services/backup-read.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { Operation } from "../../../src/services/operation.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { FakeWorld } from "../../support/fake-agent.js";
import type { FakeProcess } from "../../support/fake-agent.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const SIZE = 5 * 65536 + 512;

async function world(): Promise<{ world: FakeWorld; path: string }> {
  const { path } = await temporaryDirectory();
  const made = new FakeWorld(path, {
    disks: [
      { target: "vda", sizeBytes: SIZE },
      { target: "sdb", sizeBytes: SIZE },
    ],
  });
  made.domain.write("vda", 65536, 1000, 7);
  made.domain.write("sdb", SIZE - 512, 512, 8);
  return { world: made, path };
}

function journal(world: FakeWorld): Promise<readonly OperationRecord[]> {
  return new StateDirectory(world.stateDir).operations();
}

/** A block snapshot of both disks, made as a service would, with its journal record. */
async function openSnapshot(
  world: FakeWorld,
  { context }: FakeProcess,
  subject: Pick<SnapshotJournal, "phase" | "leaseUntilMs">,
): Promise<void> {
  const driver = await context.drivers.open("vm");
  const plan = planSnapshot(await driver.inspect(), {
    id: "snapshot",
    targets: ["vda", "sdb"],
    scratchDir: "/scratch",
    checkpoint: { name: "of-snapshot", timeMs: 1 },
  });
  const operation = await Operation.begin(context.store, {
    id: plan.id,
    domain: "vm",
    startedAtMs: world.domain.now(),
    subject: {
      kind: "block-snapshot",
      name: "s",
      leaseMs: 1,
      mode: "running",
      plan,
      timeMs: 1,
      fingerprints: [],
      exports: [],
      ...subject,
    },
  });
  await driver.freeze(plan, operation);
  const exports = plan.disks.map(({ target, nodes }) => ({
    target,
    exportName: target,
    nodes,
  }));
  await driver.startExports(plan, exports, operation);
  await driver.close();
}

describe("recoverAll", () => {
  it.each([
    ["whose lease has run out", "open", 0],
    ["that was never finished", "creating", Number.MAX_SAFE_INTEGER],
  ] as const)("ends a block snapshot %s, checkpoint included", async (_, phase, leaseUntilMs) => {
    const { world: here } = await world();
    const before = await here.traces();
    const owner = here.process();
    await openSnapshot(here, owner, { phase, leaseUntilMs });
    await owner.die();
    await recoverAll(here.process().context);
    expect(await here.traces()).toEqual(before);
    expect(here.domain.disk("vda").state(true).checkpoints).toEqual([]);
  });

  it("is not needed by the next command on the domain, which puts it in order itself", async () => {
    const { world: here } = await world();
    const before = await here.traces();
    const owner = here.process();
    await openSnapshot(here, owner, { phase: "creating", leaseUntilMs: 0 });
    await owner.die();
    const { id } = await runBackup(here.process().context, { domain: "vm" });
    expect(
      here.domain
        .disk("vda")
        .state(true)
        .checkpoints.map(({ name }) => name),
    ).toEqual([id]);
    expect(await here.traces()).toEqual(before);
  });

  it("leaves a block snapshot alone while its lease runs, also when the process that made it is gone", async () => {
    const { world: here } = await world();
    const owner = here.process();
    await openSnapshot(here, owner, { phase: "open", leaseUntilMs: Number.MAX_SAFE_INTEGER });
    await owner.die();
    const before = await here.traces();
    await recoverAll(here.process().context);
    expect(await here.traces()).toEqual(before);
    expect(await journal(here)).toHaveLength(1);
  });

  it("keeps the records of a domain that cannot be reached, and undoes them once it can", async () => {
    const { world: here } = await world();
    const before = await here.traces();
    const owner = here.process();
    await openSnapshot(here, owner, { phase: "open", leaseUntilMs: 0 });
    const { context } = here.process();
    const blocked = await context.drivers.open("vm");
    await recoverAll(context);
    expect(await journal(here)).toHaveLength(1);
    expect(here.log).toContainEqual(expect.stringContaining("Could not remove everything"));
    await blocked.close();
    await recoverAll(context);
    expect(await here.traces()).toEqual(before);
  });

  it("leaves a domain to the process that works on it", async () => {
    const { world: here } = await world();
    const owner = here.process();
    await openSnapshot(here, owner, { phase: "open", leaseUntilMs: 0 });
    await owner.context.store.lockDomain("vm", "something");
    await recoverAll(here.process().context);
    expect(await journal(here)).toHaveLength(1);
    await owner.die();
  });

  it("undoes all that it can and keeps the rest for the next time", async () => {
    const { world: here } = await world();
    const before = await here.traces();
    const owner = here.process();
    await openSnapshot(here, owner, { phase: "open", leaseUntilMs: 0 });
    await owner.die();
    let failures = 2;
    const { context } = here.process((point) => {
      if (point === "host.undo: before" && failures-- > 0)
        throw new Error("The disk of the host is read-only");
    });
    await recoverAll(context);
    const [record] = await journal(here);
    expect(record?.undo.map(({ kind }) => kind)).toEqual(["file", "file"]);
    expect(here.domain.qemu?.traces()).toMatchObject({ nodes: [], exports: [], roots: [] });
    await recoverAll(context);
    expect(await here.traces()).toEqual(before);
  });

  it("recovers every record of a domain, also after one that cannot be undone", async () => {
    const { path } = await temporaryDirectory();
    const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 512 }] });
    const owner = world.process();
    const begin = (id: string, subject: OperationRecord["subject"]): Promise<Operation> =>
      Operation.begin(owner.context.store, { id, domain: "vm", startedAtMs: world.domain.now(), subject });
    const restore = await begin("a", { kind: "restore", backupId: "b" });
    await restore.register({ kind: "directory", path: "/gone" });
    const backup = await begin("b", { kind: "backup", backupId: "c", repository: "default" });
    await backup.register({ kind: "vm-held" });
    if (world.domain.qemu !== undefined) world.domain.qemu.status = "paused";
    await owner.die();
    const later = world.process((point) => {
      if (point === "host.undo: before") throw new Error("read-only");
    });
    await recoverAll(later.context);
    expect(world.guest).toBe("running");
  });
});

describe("restoreBackup", () => {
  it("writes what the disks held, and leaves no record", async () => {
    const { world: here, path } = await world();
    const { context } = here.process();
    const { id } = await runBackup(context, { domain: "vm" });
    await expect(verifyBackup(context, id)).resolves.toHaveLength(2);
    await restoreBackup(context, { id, directory: `${path}/out` });
    expect((await readFile(`${path}/out/vda.qcow2`)).equals(here.domain.disk("vda").content)).toBe(true);
    expect((await readFile(`${path}/out/sdb.qcow2`)).equals(here.domain.disk("sdb").content)).toBe(true);
    expect(await journal(here)).toEqual([]);
  });

  it("appears whole or not at all when it is killed at any point, and is tidied up after", async () => {
    const { world: here, path } = await world();
    const { id } = await runBackup(here.process().context, { domain: "vm" });
    let points = 0;
    await restoreBackup(
      here.process(() => {
        points++;
      }).context,
      { id, directory: `${path}/counted` },
    );
    expect(points).toBeGreaterThan(10);
    for (let at = 0; at < points; at++) {
      const parent = `${path}/${at}`;
      await mkdir(parent);
      let passed = 0;
      let die: () => void = () => undefined;
      const killed = new Promise<void>((resolve) => (die = resolve));
      const victim = here.process(async () => {
        if (passed++ < at) return;
        die();
        await new Promise(() => undefined);
      });
      void restoreBackup(victim.context, { id, directory: `${parent}/out` });
      await killed;
      const later = here.process();
      const halfway = await readdir(parent);
      await recoverAll(later.context);
      expect(await readdir(parent), "while the owner lives").toEqual(halfway);
      await victim.die();
      await recoverAll(later.context);
      expect(await journal(here)).toEqual([]);
      const left = await readdir(parent);
      expect(left.filter((name) => name !== "out")).toEqual([]);
      if (!left.includes("out")) continue;
      const restored = await readFile(`${parent}/out/vda.qcow2`);
      expect(restored.equals(here.domain.disk("vda").content)).toBe(true);
    }
  });
});

describe("a domain that another process works on", () => {
  it("is refused with DOMAIN_BUSY naming what holds it, until that process is gone, however it ends", async () => {
    const { world: here } = await world();
    const helper = fileURLToPath(new URL("hold-domain.ts", import.meta.url));
    const holder = fork(helper, [here.stateDir, "vm"], {
      execArgv: ["--conditions=source", "--import", "tsx"],
    });
    onTestFinished(() => void holder.kill("SIGKILL"));
    await once(holder, "message");
    const { context } = here.process();
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({
      code: "DOMAIN_BUSY",
      message: expect.stringMatching(`by somebody else \\(process ${holder.pid ?? 0} on `) as unknown,
    });
    const exit = once(holder, "exit");
    holder.kill("SIGKILL");
    await exit;
    await expect(runBackup(context, { domain: "vm" })).resolves.toMatchObject({ domain: "vm" });
  });

  it("is refused to a second service of the same process too", async () => {
    const { world: here } = await world();
    const { context } = here.process();
    const lock = await here.process().context.store.lockDomain("vm", "a test");
    await expect(runBackup(context, { domain: "vm" })).rejects.toMatchObject({ code: "DOMAIN_BUSY" });
    await lock.release();
    await runBackup(context, { domain: "vm" });
  });
});
