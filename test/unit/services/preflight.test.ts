import { readdir, readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { FindingCode } from "../../../src/model/finding.js";
import { severityOf } from "../../../src/model/finding.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { createBlockSnapshot } from "../../../src/services/block-snapshots.js";
import type { PreflightReport } from "../../../src/services/preflight.js";
import { preflight } from "../../../src/services/preflight.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { FakeScratch } from "../../support/fake-scratch.js";
import { temporaryDirectory } from "../../support/lifetime.js";

const SIZE = 8 * 65536;

async function world(): Promise<FakeWorld> {
  const { path } = await temporaryDirectory();
  return new FakeWorld(path, {
    disks: [
      { target: "vda", sizeBytes: SIZE },
      { target: "sdb", sizeBytes: SIZE },
    ],
  });
}

/** A look by a new process, which must leave the world and the journal as they are. */
async function look(made: FakeWorld): Promise<PreflightReport> {
  const all = async (): Promise<unknown> => ({
    traces: await made.traces(),
    disks: [...made.domain.disks.values()].map((disk) => [disk.version, [...disk.bitmaps]]),
    state: await Promise.all(
      (await readdir(made.stateDir, { recursive: true })).map(async (name) => [
        name,
        await readFile(`${made.stateDir}/${name}`, "utf8").catch(() => "a directory"),
      ]),
    ),
  });
  const before = JSON.stringify(await all());
  const report = await preflight(made.process().context, { domain: "vm" });
  expect(JSON.stringify(await all())).toBe(before);
  return report;
}

const bad = ({ findings }: PreflightReport): FindingCode[] =>
  findings.filter((each) => ["warning", "blocker"].includes(severityOf(each))).map(({ code }) => code);

/** Runs a backup until it passes the point, and lets its process be killed there. */
async function killedAt(made: FakeWorld, wanted: RegExp): Promise<void> {
  let reached: () => void = () => undefined;
  const killed = new Promise<void>((resolve) => (reached = resolve));
  const victim = made.process(async (point) => {
    if (!wanted.test(point)) return;
    reached();
    await new Promise(() => undefined);
  });
  void runBackup(victim.context, { domain: "vm" });
  await killed;
  await victim.die();
}

describe("preflight", () => {
  it("finds nothing amiss before the first backup and before the next, and decides as they do", async () => {
    const made = await world();
    for (const level of ["full", "incremental"]) {
      const report = await look(made);
      expect(bad(report)).toEqual([]);
      expect(report).toMatchObject({ ready: true, decision: { level }, state: { mode: "running" } });
      const { manifest } = await runBackup(made.process().context, { domain: "vm" });
      expect(manifest).toMatchObject({ level, reason: report.decision?.reason ?? "" });
    }
  });

  it.each([
    ["before it is published", /^insert filter: after/, /no change is lost/],
    ["after it is published", /^draft.publish: after/, /the backup is complete/],
  ])("reports a backup that was killed %s, and does not undo it", async (_, point, advice) => {
    const made = await world();
    await killedAt(made, point);
    const report = await look(made);
    expect(bad(report)).toEqual(["UNFINISHED_OPERATION"]);
    expect(report.findings.find(({ code }) => code === "UNFINISHED_OPERATION")?.advice).toMatch(advice);
    const { manifest } = await runBackup(made.process().context, { domain: "vm" });
    expect(manifest.level).toBe(report.decision?.level);
    expect(bad(await look(made))).toEqual([]);
  });

  it("says who is at work, and nothing of what is theirs", async () => {
    const made = await world();
    let goOn: () => void = () => undefined;
    let reached: () => void = () => undefined;
    const atWork = new Promise<void>((resolve) => (reached = resolve));
    const pause = new Promise<void>((resolve) => (goOn = resolve));
    const worker = made.process(async (point) => {
      if (!point.startsWith("add access")) return;
      reached();
      await pause;
    });
    const running = runBackup(worker.context, { domain: "vm" });
    await atWork;
    const report = await preflight(made.process().context, { domain: "vm" });
    expect(bad(report)).toEqual(["DOMAIN_BUSY"]);
    expect(report.findings.find(({ code }) => code === "DOMAIN_BUSY")?.found).toContain("backup run vm");
    goOn();
    await running;
  });

  it("reports an open block snapshot as what holds its disks, whether or not the domain answers", async () => {
    const made = await world();
    const lease = { leaseMs: 3_600_000, checkpoint: {} };
    await createBlockSnapshot(made.process().context, { domain: "vm", name: "s", disks: ["vda"], ...lease });
    const report = await look(made);
    expect(bad(report)).toEqual(["SNAPSHOT_OPEN"]);
    const { context } = made.process(() => {
      throw new FleeceError("DOMAIN_UNREACHABLE", "no answer");
    });
    const store = made.process().context.store;
    const unreachable = await preflight(
      { ...made.process().context, store, drivers: { open: () => context.drivers.open("vm") } },
      { domain: "vm" },
    );
    expect(unreachable.ready).toBe(false);
    expect(bad(unreachable)).toContain("SNAPSHOT_OPEN");
  });

  it("takes nodes whose journal is elsewhere for those of another fleece", async () => {
    const made = await world();
    made.domain.qemu?.addNode("fleece-zzzzzzzz-0-scratch", { kind: "scratch" });
    expect(bad(await look(made))).toEqual(["FOREIGN_AGENT"]);
  });

  it("says that a crash of QEMU costs reading the disks", async () => {
    const made = await world();
    await runBackup(made.process().context, { domain: "vm" });
    made.domain.restart();
    made.domain.crash();
    made.domain.start();
    const report = await look(made);
    const inconsistent = ["CHECKPOINT_INCONSISTENT", "CHECKPOINT_INCONSISTENT"];
    expect(bad(report)).toEqual([...inconsistent, "DISK_COMPARED", "DISK_COMPARED"]);
    expect(report).toMatchObject({ ready: true, decision: { level: "incremental" } });
  });

  it("needs no scratch space for a domain that is off", async () => {
    const made = await world();
    made.domain.host.freeBytes = 0;
    made.domain.host.scratch.free = 0;
    expect(bad(await look(made))).toEqual(["SCRATCH_FULL", "REPOSITORY_FULL"]);
    made.domain.stop();
    expect(bad(await look(made))).toEqual(["REPOSITORY_FULL"]);
  });

  it("throws what is no finding: a name that is unknown, an interruption, a defect", async () => {
    const { context } = (await world()).process();
    const failing = (error: Error): typeof context => ({
      ...context,
      scratch: Object.assign(new FakeScratch(), { check: () => Promise.reject(error) }),
    });
    await expect(preflight(context, { domain: "other" })).rejects.toMatchObject({ code: "DOMAIN_NOT_FOUND" });
    await expect(preflight(context, { domain: "vm", repository: "x" })).rejects.toMatchObject({
      code: "REPOSITORY_NOT_FOUND",
    });
    const interrupted = new FleeceError("INTERRUPTED", "Cancelled");
    await expect(preflight(failing(interrupted), { domain: "vm" })).rejects.toBe(interrupted);
    const defect = new TypeError("x is not a function");
    await expect(preflight(failing(defect), { domain: "vm" })).rejects.toBe(defect);
    const gone = new FleeceError("PATH_NOT_FOUND", "gone");
    expect(bad(await preflight(failing(gone), { domain: "vm" }))).toEqual(["SCRATCH_UNUSABLE"]);
  });
});
