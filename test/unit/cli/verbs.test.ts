import { describe, expect, it } from "vitest";
import { temporaryDirectory } from "../../support/lifetime.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { fleece, someConfig, type Outcome } from "./run-in-process.js";

const MIB = 1024 * 1024;

/** The command line over the real services and a domain in memory. */
async function world(): Promise<(...args: string[]) => Promise<Outcome>> {
  const { path } = await temporaryDirectory();
  const disks = [
    { target: "vda", sizeBytes: MIB },
    { target: "vdb", sizeBytes: MIB },
  ];
  const fake = new FakeWorld(path, { disks });
  const config = await someConfig();
  return (...args) =>
    fleece(["--embedded", "--config", config, ...args], {
      cwd: path,
      startAgent: () => Promise.resolve(fake.process().context),
    });
}

/** The one JSON message that a command must print. */
function message(outcome: Outcome): Record<string, unknown> {
  expect(outcome.stderr).toBe("");
  expect(outcome.exitCode).toBe(0);
  return JSON.parse(outcome.stdout) as Record<string, unknown>;
}

describe("fleece backup", () => {
  it("takes a full, then an incremental, and tells a person what it did and why", async () => {
    const run = await world();
    const full = await run("backup", "run", "vm");
    expect(full.stderr).toBe("");
    expect(full.exitCode).toBe(0);
    expect(full.stdout).toMatch(/^Backup \S+ is complete, in repository default\n/);
    expect(full.stdout).toMatch(/^Level +full: the repository has no backup of the domain yet$/m);
    expect(full.stdout).toMatch(/^Guest held +\d+ ms$/m);
    expect(full.stdout).toMatch(/^vdb +1 MiB/m);
    const next = await run("backup", "run", "vm");
    expect(next.stdout).toMatch(/^Level +incremental: based on backup /m);
  });

  it("prints the message of the API with --json, and obeys level and disks", async () => {
    const run = await world();
    const full = message(await run("backup", "run", "vm", "--disk", "vdb", "--full", "--json"));
    expect(full).toMatchObject({ level: "FULL", disks: [{ target: "vdb" }], repository: "default" });
    const next = message(await run("--json", "backup", "run", "vm", "--incremental", "--disk", "vdb"));
    expect(next).toMatchObject({ level: "INCREMENTAL", parent: full["id"] });
    const list = message(await run("backup", "list", "vm", "--json"));
    expect(list).toMatchObject({ backups: [{ id: full["id"] }, { id: next["id"] }] });
    const shown = message(await run("backup", "show", String(next["id"]), "--json"));
    expect(shown).toEqual(next);
  });

  it("fails with exit code 1 when an incremental is asked for and impossible", async () => {
    const run = await world();
    const { exitCode, stderr } = await run("backup", "run", "vm", "--incremental");
    expect(stderr).toContain("(CHECKPOINT_INVALID)");
    expect(exitCode).toBe(1);
  });

  it("restores the newest of a domain, or the one of a moment, and says which", async () => {
    const run = await world();
    const first = message(await run("backup", "run", "vm", "--json"));
    const second = message(await run("backup", "run", "vm", "--json"));
    const newest = message(await run("backup", "restore", "--domain", "vm", "--to", "newest", "--json"));
    expect(newest).toMatchObject({ backup: second["id"], domain: "vm", repository: "default" });
    expect(newest["time"]).toBe(second["time"]);
    const at = ["backup", "restore", "--domain", "vm", "--at", String(first["time"]), "--to", "at"];
    const { stdout } = await run(...at);
    expect(stdout).toMatch(new RegExp(`^Restored backup ${String(first["id"])} of vm, as it was at 2026-`));
    expect(await run(...at.slice(0, 4), "--at=soon", "--to=x")).toMatchObject({ exitCode: 2 });
    expect(await run(...at.slice(0, 4), "--at=2025-01-01", "--to=x")).toMatchObject({ exitCode: 3 });
    expect(await run("backup", "restore", String(first["id"]), "--at=2027-01-01", "--to=x")).toMatchObject({
      exitCode: 2,
    });
  });

  it("verifies", async () => {
    const run = await world();
    const { id } = message(await run("backup", "run", "vm", "--json"));
    expect(message(await run("backup", "verify", String(id), "--json", "--disk", "vda"))).toMatchObject({
      backup: id,
      disks: [{ target: "vda" }],
    });
    expect((await run("backup", "verify", String(id))).stdout).toMatch(/is sound: 2 disks \(vda, vdb\)/);
  });

  it("merges what another is based on into that when it is deleted, and says so", async () => {
    const run = await world();
    const { id } = message(await run("backup", "run", "vm", "--json"));
    const next = message(await run("backup", "run", "vm", "--json"));
    const { exitCode, stdout } = await run("backup", "delete", String(id));
    expect(stdout).toBe(
      `Deleted backup ${String(id)} of domain vm in repository default, merged into ${String(next["id"])}\n`,
    );
    expect(exitCode).toBe(0);
  });

  it("protects, and refuses to delete what is protected, with exit code 4", async () => {
    const run = await world();
    const id = String(message(await run("backup", "run", "vm", "--json"))["id"]);
    expect((await run("backup", "protect", id)).stdout).toBe(`Backup ${id} is protected\n`);
    expect((await run("backup", "show", id)).stdout).toMatch(/^Protected +yes$/m);
    const { exitCode, stderr } = await run("backup", "delete", id);
    expect(stderr).toContain("(BACKUP_PROTECTED)");
    expect(exitCode).toBe(4);
    await run("backup", "unprotect", id);
    expect((await run("backup", "delete", id)).exitCode).toBe(0);
  });

  it("has nothing to prune without retention rules", async () => {
    const run = await world();
    await run("backup", "run", "vm");
    expect((await run("backup", "prune")).stdout).toBe("No backups of domains with retention rules\n");
    expect((await run("backup", "prune", "other")).exitCode).toBe(3);
  });

  it("says so when there is none", async () => {
    const run = await world();
    expect((await run("backup", "list")).stdout).toBe("No backups\n");
    expect((await run("backup", "show", "b1")).exitCode).toBe(3);
    expect((await run("backup", "list", "--repository", "other")).exitCode).toBe(3);
  });
});

describe("fleece checkpoint", () => {
  it("lists, draws, shows and deletes", async () => {
    const run = await world();
    const first = String(message(await run("backup", "run", "vm", "--json"))["checkpoint"]);
    const second = String(message(await run("backup", "run", "vm", "--json"))["checkpoint"]);
    const list = message(await run("checkpoint", "list", "vm", "--json"));
    expect(list).toMatchObject({ checkpoints: [{ name: first }, { name: second, parent: first }] });
    expect((await run("checkpoint", "list", "vm", "--tree")).stdout).toBe(`${first}\n└─ ${second}\n`);
    expect((await run("checkpoint", "show", "vm", second)).stdout).toMatch(/^Follows +\S+$/m);
    const deleted = await run("checkpoint", "delete", "vm", first);
    expect(deleted.stdout).toBe(`Deleted checkpoint ${first} of domain vm\n`);
    expect(message(await run("checkpoint", "list", "vm", "--json"))).toMatchObject({
      checkpoints: [{ name: second }],
    });
    expect((await run("checkpoint", "show", "vm", first)).exitCode).toBe(3);
  });
});

describe("fleece block-snapshot", () => {
  it("creates, lists, shows, renews and deletes, and tells a person what came of it", async () => {
    const run = await world();
    expect((await run("block-snapshot", "list", "vm")).stdout).toBe("No block snapshots\n");
    const created = await run(
      "block-snapshot",
      "create",
      "vm",
      "--name",
      "night",
      "--checkpoint",
      "--lease=2h",
    );
    expect(created).toMatchObject({ exitCode: 0, stderr: "" });
    expect(created.stdout).toMatch(
      /^Block snapshot night of domain vm is open until it is deleted or its lease ends\n/,
    );
    expect(created.stdout).toMatch(/^Checkpoint +night$/m);
    expect(created.stdout).toMatch(/^Lease +2 h 0 min, ends \d{4}-/m);
    expect(created.stdout).toMatch(/^vdb +qcow2 +1 MiB +\/scratch\//m);
    const shown = message(await run("block-snapshot", "show", "vm", "night", "--json"));
    expect(shown).toMatchObject({ name: "night", leaseMs: "7200000", consistency: "CRASH", exports: [] });
    expect(message(await run("block-snapshot", "list", "vm", "--json"))).toEqual({ snapshots: [shown] });
    expect((await run("block-snapshot", "list", "vm")).stdout).toMatch(
      /^night +local +\S+ +vda,vdb +night +0 B +0 +open +\S+$/m,
    );
    expect((await run("block-snapshot", "renew", "vm", "night", "--lease", "90s")).stdout).toMatch(
      /^Renewed the lease of block snapshot night of domain vm; it ends \d{4}-/,
    );
    expect((await run("block-snapshot", "delete", "vm", "night")).stdout).toBe(
      "Deleted block snapshot night of domain vm; its checkpoint night stays\n",
    );
    expect(await run("block-snapshot", "show", "vm", "night")).toMatchObject({ exitCode: 3, stdout: "" });
  });

  it("says that the checkpoint is gone after a failure", async () => {
    const run = await world();
    await run("block-snapshot", "create", "vm", "--name=a", "--checkpoint=c", "--disk", "vdb");
    expect((await run("block-snapshot", "delete", "vm", "a", "--failed")).stdout).toBe(
      "Deleted block snapshot a of domain vm as failed; its checkpoint c is gone, no change is lost\n",
    );
    expect(message(await run("checkpoint", "list", "vm", "--json"))).toEqual({ checkpoints: [] });
    const unnamed = message(await run("block-snapshot", "create", "vm", "--json"));
    expect(unnamed).toMatchObject({ leaseMs: "1800000" });
    expect(unnamed).not.toHaveProperty("checkpoint");
    expect((await run("block-snapshot", "delete", "vm", String(unnamed["name"]), "--failed")).stdout).toMatch(
      /as failed\n$/,
    );
  });

  it("refuses a lease out of range and a name that is taken", async () => {
    const run = await world();
    const create = ["block-snapshot", "create", "vm", "--name", "a"];
    expect(await run(...create, "--lease", "0s")).toMatchObject({ exitCode: 2 });
    expect((await run(...create)).exitCode).toBe(0);
    const again = await run(...create);
    expect(again).toMatchObject({ exitCode: 4 });
    expect(again.stderr).toContain("(ALREADY_EXISTS)");
  });
});

describe("fleece export", () => {
  it("starts, lists and stops, twice without harm", async () => {
    const run = await world();
    expect((await run("export", "list")).stdout).toBe("No exports\n");
    await run("block-snapshot", "create", "vm", "--name", "a", "--checkpoint");
    await run("block-snapshot", "delete", "vm", "a");
    await run("block-snapshot", "create", "vm", "--name", "b");
    const start = ["export", "start", "vm", "--snapshot", "b", "--since", "a"];
    const started = await run(...start, "--disk", "vda");
    expect(started).toMatchObject({ exitCode: 0, stderr: "" });
    expect(started.stdout).toMatch(/^Exporting 1 disk of block snapshot b read-only until /);
    expect(started.stdout).toMatch(
      /^vda +1 MiB +vda-b +qemu:dirty-bitmap:\S+ +no +nbd\+unix:\/\/\/vda-b\?socket=\//m,
    );
    const all = message(await run(...start, "--json"));
    expect(all).toMatchObject({ exports: [{ target: "vda", since: "a" }, { target: "vdb" }] });
    expect(message(await run("export", "list", "--json"))).toEqual(all);
    expect((await run("export", "list", "vm")).stdout).toMatch(/^vm +b +open +vda +1 MiB/m);
    expect((await run("block-snapshot", "show", "vm", "b")).stdout).toMatch(/^vdb +1 MiB +vdb-b/m);
    const stop = ["export", "stop", "vm", "--snapshot", "b"];
    expect((await run(...stop)).stdout).toBe("Stopped 2 exports of block snapshot b\n");
    expect(await run(...stop)).toMatchObject({
      exitCode: 0,
      stdout: "There were no exports of block snapshot b\n",
    });
  });
});

describe("fleece domain", () => {
  it("lists and shows", async () => {
    const run = await world();
    expect((await run("domain", "list")).stdout).toMatch(/^vm +running/m);
    expect(message(await run("domain", "show", "vm", "--json"))).toMatchObject({
      name: "vm",
      state: "RUNNING",
    });
    expect((await run("domain", "show", "other")).exitCode).toBe(3);
  });
});

describe("fleece doctor", () => {
  it("gives its verdict, the findings by their severity, and the exit code", async () => {
    const run = await world();
    const well = await run("doctor", "vm");
    expect(well).toMatchObject({ exitCode: 0, stderr: "" });
    expect(well.stdout).toMatch(/^The next backup of domain vm to repository default will run, full: the\n/);
    expect(well.stdout).toMatch(/^Notes\n {2}QEMU_BLOCK_STATUS\n(.|\n)*^ {2}FIRST_BACKUP\n/m);
    expect(well.stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
    await run("block-snapshot", "create", "vm", "--name", "night", "--disk", "vdb");
    const held = await run("doctor", "vm");
    expect(held.exitCode).toBe(1);
    expect(held.stdout).toMatch(/would be refused\n\nBlockers\n {2}SNAPSHOT_OPEN \(disk vdb\)\n/);
    expect(held.stderr).toBe(
      "fleece: The next backup of domain vm would be refused: 1 blocker (NOT_READY)\n",
    );
  });

  it("prints the message of the API with --json, also for a backup that would be refused", async () => {
    const run = await world();
    expect(message(await run("doctor", "vm", "--json"))).toMatchObject({
      ...{ domain: "vm", repository: "default", ready: true, nextLevel: "FULL" },
    });
    await run("block-snapshot", "create", "vm", "--name", "night");
    const held = await run("doctor", "vm", "--json");
    const report = JSON.parse(held.stdout) as { ready: boolean; findings: unknown[] };
    expect(report.ready).toBe(false);
    expect(report.findings[0]).toMatchObject({
      ...{ code: "SNAPSHOT_OPEN", severity: "BLOCKER", disk: "vda", errorCode: "DOMAIN_BUSY" },
    });
    expect(JSON.parse(held.stderr)).toMatchObject({
      error: { code: "NOT_READY", facts: { blockers: ["SNAPSHOT_OPEN", "SNAPSHOT_OPEN"] } },
    });
  });
});
