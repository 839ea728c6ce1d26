import { request } from "node:http";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { runCall } from "../../../src/api/calls.js";
import { serveMetrics } from "../../../src/api/metrics-server.js";
import { AgentMetrics } from "../../../src/api/metrics.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { FakeWorld } from "../../support/fake-agent.js";
import { JobWorld, nightly } from "../../support/job-world.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

const CONFIG_README = fileURLToPath(new URL("../../../config/README.md", import.meta.url));
const SILENT = { debug: () => undefined, info: () => undefined, warn: () => undefined };

async function measured() {
  const { path } = await temporaryDirectory();
  const world = new FakeWorld(path, { disks: [{ target: "vda", sizeBytes: 1024 * 1024 }] });
  const metrics = new AgentMetrics("1.2.3");
  const context: ServiceContext = { ...world.process().context, meter: metrics, scratchDir: "/scratch" };
  metrics.use(context);
  return { path, world, metrics, context };
}

/** The lines of the named metrics, without comments. */
async function values(metrics: AgentMetrics, name: string): Promise<string[]> {
  const lines = (await metrics.text()).split("\n");
  return lines.filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
}

const RUN = { domain: "vm", level: "LEVEL_UNSPECIFIED", disks: [] } as const;

describe("AgentMetrics", () => {
  it("tells when the domain and each disk were backed up last, and 0 before the first time", async () => {
    const { metrics, context } = await measured();
    expect(await values(metrics, "fleece_last_backup_timestamp_seconds")).toEqual([
      'fleece_last_backup_timestamp_seconds{domain="vm",repository="default"} 0',
    ]);
    const { id, time } = await runCall(context, "Backups.Run", RUN);
    const seconds = Number(time?.seconds);
    expect(await values(metrics, "fleece_last_backup_timestamp_seconds")).toEqual([
      `fleece_last_backup_timestamp_seconds{domain="vm",repository="default"} ${seconds}`,
    ]);
    expect(await values(metrics, "fleece_disk_last_backup_timestamp_seconds")).toEqual([
      `fleece_disk_last_backup_timestamp_seconds{domain="vm",repository="default",disk="vda"} ${seconds}`,
    ]);
    // An agent that was started later knows it, too.
    const later = new AgentMetrics("1.2.3");
    later.use(context);
    expect(await values(later, "fleece_last_backup_timestamp_seconds")).toEqual([
      expect.stringMatching(new RegExp(` ${seconds}$`)),
    ]);
    await runCall(context, "Backups.Delete", { id });
    expect(await values(metrics, "fleece_last_backup_timestamp_seconds")).toEqual([
      expect.stringMatching(/ 0$/),
    ]);
  });

  it("counts what backups read and store, and what their moments cost", async () => {
    const { metrics, context, world } = await measured();
    world.domain.write("vda", 0, 128 * 1024, 7);
    await runCall(context, "Backups.Run", RUN);
    const [read] = await values(metrics, "fleece_backup_read_bytes_total");
    const [stored] = await values(metrics, "fleece_backup_stored_bytes_total");
    expect(read).toMatch(/\{domain="vm"\} \d+$/);
    expect(Number(read?.split(" ")[1])).toBeGreaterThanOrEqual(128 * 1024);
    expect(stored).toBe(`fleece_backup_stored_bytes_total{domain="vm"} ${128 * 1024}`);
    metrics.moment("vm", { heldMs: 40, frozenMs: 0 });
    expect(await values(metrics, "fleece_guest_held_seconds_sum")).toEqual([
      'fleece_guest_held_seconds_sum{domain="vm"} 0.04',
    ]);
    expect(await values(metrics, "fleece_guest_frozen_seconds_count")).toEqual([]);
  });

  it("tells open block snapshots, their exports and the end of their leases", async () => {
    const { metrics, context } = await measured();
    const name = { domain: "vm", name: "night" };
    const snapshot = await runCall(context, "BlockSnapshots.Create", {
      ...name,
      disks: [],
      leaseMs: 60_000,
    });
    await runCall(context, "BlockExports.Start", { domain: "vm", snapshot: "night", disks: [], clients: [] });
    const text = await metrics.text();
    expect(text).toContain('fleece_block_snapshots_open{domain="vm"} 1\n');
    expect(text).toContain('fleece_exports{domain="vm"} 1\n');
    expect(text).toMatch(/fleece_scratch_bytes\{domain="vm"\} \d/);
    const [lease] = await values(metrics, "fleece_block_snapshot_lease_end_timestamp_seconds");
    expect(lease?.split(" ")[1]).toBe(String(Number(snapshot.leaseEndTime?.seconds)));
    await runCall(context, "BlockSnapshots.Delete", name as never);
    expect(await metrics.text()).toContain('fleece_block_snapshots_open{domain="vm"} 0\n');
    expect(await values(metrics, "fleece_block_snapshot_lease_end_timestamp_seconds")).toEqual([]);
  });

  it("counts calls by method and outcome, and failures by code", async () => {
    const { metrics } = await measured();
    metrics.callBegins("Backups.Run")();
    metrics.callBegins("Backups.Run")("DOMAIN_BUSY");
    metrics.callBegins("Backups.Run")("INTERRUPTED");
    metrics.callBegins("Backups.Run");
    const text = await metrics.text();
    for (const outcome of ["done", "failed", "cancelled"]) {
      expect(text).toContain(`fleece_calls_total{method="Backups.Run",outcome="${outcome}"} 1\n`);
    }
    expect(text).toContain('fleece_call_failures_total{code="DOMAIN_BUSY"} 1\n');
    expect(text).toContain('fleece_calls_running{method="Backups.Run"} 1\n');
    expect(text).toContain('fleece_build_info{version="1.2.3",');
    expect(text).toMatch(/process_resident_memory_bytes \d{7,}/);
  });

  it("tells when each job was last successful, also after a restart, and counts its runs by state", async () => {
    const { path, metrics } = await measured();
    const at = new JobWorld(path, "2026-11-15T12:00:00Z");
    const { context } = at.process([nightly()]);
    const measuredContext = { ...context, meter: metrics };
    metrics.use(measuredContext);
    const name = "fleece_job_last_success_timestamp_seconds";
    expect(await values(metrics, name)).toEqual([`${name}{job="nightly"} 0`]);
    await runCall(measuredContext, "Jobs.Run", { job: "nightly" });
    at.domain().gate = () => {
      throw new Error("It broke");
    };
    await runCall(measuredContext, "Jobs.Run", { job: "nightly" });
    const text = await metrics.text();
    expect(text).toContain('fleece_job_runs_total{job="nightly",state="complete"} 1\n');
    expect(text).toContain('fleece_job_runs_total{job="nightly",state="failed"} 1\n');
    const later = new AgentMetrics("1.2.3");
    later.use(at.process([nightly()]).context);
    const seconds = Date.parse("2026-11-15T12:00:00Z") / 1000;
    expect(await values(later, name)).toEqual([`${name}{job="nightly"} ${seconds}`]);
  });

  it("says which repository cannot be listed, and goes on with the others", async () => {
    const { metrics, context } = await measured();
    const broken = { name: "broken", list: () => Promise.reject(new Error("I/O error")) } as never;
    const repositories = new Map([...context.repositories, ["broken", broken]]);
    metrics.use({ ...context, repositories, log: SILENT });
    const up = await values(metrics, "fleece_repository_up");
    expect(up.toSorted()).toEqual([
      'fleece_repository_up{domain="vm",repository="broken"} 0',
      'fleece_repository_up{domain="vm",repository="default"} 1',
    ]);
    expect(await values(metrics, "fleece_last_backup_timestamp_seconds")).toHaveLength(1);
  });

  it("does not wait for a repository that hangs", async () => {
    const { metrics, context } = await measured();
    const hung = { name: "hung", list: () => new Promise(() => undefined) } as never;
    const clock = { ...context.clock, sleep: () => Promise.resolve() };
    metrics.use({ ...context, clock, repositories: new Map([["hung", hung]]) });
    expect(await metrics.text()).toContain("fleece_block_snapshots_open");
    // Nor does it ask it again before it has answered.
    expect(await values(metrics, "fleece_last_backup_timestamp_seconds")).toEqual([]);
  });

  it("has only the metrics that config/README.md lists, with their kinds", async () => {
    const { metrics } = await measured();
    const rows = [...(await readFile(CONFIG_README, "utf8")).matchAll(/^\| (fleece_\w+) +\| (\w+) /gm)];
    const documented = rows.map(([, name, type]) => ({ name, type }));
    const known = (await metrics.describe()).map(({ name, type }) => ({ name, type }));
    const byName = (a: { name?: string | undefined }, b: { name?: string | undefined }): number =>
      String(a.name).localeCompare(String(b.name));
    expect(documented.toSorted(byName)).toEqual(known.toSorted(byName));
    expect(known.length).toBeGreaterThan(10);
    // https://prometheus.io/docs/practices/naming/
    for (const { name, type } of known) {
      if (type === "counter") expect(name).toMatch(/_total$/);
      else expect(name).not.toMatch(/_total$/);
      expect(name).not.toMatch(/_(ms|milliseconds|kib|mib)(_|$)/);
    }
  });
});

/** One request over HTTP. */
function ask(
  place: object,
  method: string,
  path: string,
): Promise<{ status: number | undefined; body: string; type: unknown }> {
  return new Promise((resolve, reject) => {
    const sent = request({ ...place, method, path }, (answer) => {
      let body = "";
      answer.setEncoding("utf8").on("data", (text: string) => (body += text));
      answer.on("end", () =>
        resolve({ status: answer.statusCode, body, type: answer.headers["content-type"] }),
      );
    });
    sent.on("error", reject).end();
  });
}

describe("serveMetrics", () => {
  it("answers GET /metrics on a socket that is its user's alone, and nothing else", async () => {
    const { path, metrics, context } = await measured();
    const socketPath = join(path, "metrics.sock");
    untilTestEnds(await serveMetrics(metrics, { path: socketPath }, context.log));
    expect((await stat(socketPath)).mode & 0o777).toBe(0o600);
    const found = await ask({ socketPath }, "GET", "/metrics");
    expect(found).toMatchObject({
      status: 200,
      type: expect.stringMatching(/^text\/plain; version=0\.0\.4/) as unknown,
    });
    expect(found.body).toContain(
      "# HELP fleece_scratch_bytes Scratch space in use\n# TYPE fleece_scratch_bytes gauge\n",
    );
    expect(await ask({ socketPath }, "POST", "/metrics")).toMatchObject({ status: 405, body: "" });
    expect(await ask({ socketPath }, "GET", "/")).toMatchObject({ status: 404, body: "" });
  });

  it("answers on a port, and says when it cannot be had", async () => {
    const { metrics, context } = await measured();
    const first = untilTestEnds(await serveMetrics(metrics, { host: "127.0.0.1", port: 0 }, context.log));
    const address = { host: "127.0.0.1", port: first.port ?? 0 };
    expect(await ask(address, "GET", "/metrics")).toMatchObject({ status: 200 });
    await expect(serveMetrics(metrics, address, context.log)).rejects.toMatchObject({
      code: "ALREADY_EXISTS",
      message: expect.stringMatching(/^Cannot serve metrics on 127\.0\.0\.1:\d+: .*EADDRINUSE/) as unknown,
    });
  });
});
