import { execFile } from "node:child_process";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { runFleece, startFleece, type FleeceProcess } from "../support/fleece.js";
import { untilTestEnds } from "../support/lifetime.js";
import { notifySocket } from "../support/notify-socket.js";
import { startSite, type Site, type SiteOptions } from "../support/site.js";

const exec = promisify(execFile);
const MIB = 1024 * 1024;
const SOON = { timeoutMs: 60_000 };

const VDA = { target: "vda", format: "qcow2" as const, sizeBytes: 512 * MIB, filledBytes: 256 * MIB };

interface Line {
  readonly level: string;
  readonly msg: string;
  readonly call?: string;
  readonly method?: string;
  readonly domain?: string;
}

/** A site with something to back up, whose agent logs what it does. */
async function site(
  shutdownGrace = "60s",
  more: object = {},
  options: Pick<SiteOptions, "exports"> = {},
): Promise<Site> {
  const settings = { runtimeDir: "run", logLevel: "debug", api: { shutdownGrace }, ...more };
  return startSite({ disks: [VDA], config: { more: settings }, ...options });
}

async function startAgent({ configPath }: Site, env: Record<string, string> = {}): Promise<FleeceProcess> {
  const agent = untilTestEnds(await startFleece(["serve"], { configPath, env }));
  await agent.waitForOutput(/The agent answers on/, SOON);
  return agent;
}

/** A backup through the agent that stands still in the midst of it: the daemon that writes is stopped until `goOn`. */
async function halfwayBackup(at: Site): Promise<{ command: FleeceProcess; goOn: () => void }> {
  const command = untilTestEnds(
    await startFleece(["backup", "run", "vm", "--json"], { configPath: at.configPath }),
  );
  const underWay = (name: string): boolean => /\.partial-.*vda\.qcow2 \d{7,} /.test(name);
  while (!(await at.files()).some(underWay)) {
    if (!command.running) throw new Error(`The backup ended too early: ${command.stderr}`);
    await tick();
  }
  const pid = await daemonOf(at);
  process.kill(pid, "SIGSTOP");
  return { command, goOn: () => process.kill(pid, "SIGCONT") };
}

/** The storage daemon that owns the images of the backup. */
async function daemonOf(at: Site): Promise<number> {
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const args = await readFile(`/proc/${entry}/cmdline`, "utf8").catch(() => "");
    if (args.startsWith("qemu-storage-daemon\0") && args.includes(at.directory.path)) return Number(entry);
  }
  throw new Error("Expected a storage daemon of the backup, found none");
}

const linesOf = ({ stderr }: { readonly stderr: string }): Line[] =>
  stderr
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Line);

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + SOON.timeoutMs; !(await condition());) {
    if (Date.now() > end) throw new Error(`Expected ${what}`);
    await tick();
  }
}

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 10));
}

describe("an agent that gets SIGTERM during a backup", () => {
  it("lets it end within the grace period", async () => {
    const at = await site();
    const agent = await startAgent(at);
    const { command, goOn } = await halfwayBackup(at);
    process.kill(agent.pid, "SIGTERM");
    await agent.waitForOutput(/The agent ends/, SOON);
    goOn();
    const result = await command.result();
    expect(result.exitCode, result.stderr).toBe(0);
    expect((await agent.result()).exitCode).toBe(0);
    const { id } = result.json() as { id: string };
    await at.json("backup", "verify", id);
    expect((await at.files()).filter((name) => !name.startsWith("backups/"))).toEqual([]);
    // Its log is nothing but JSON, also about its end.
    expect(linesOf(await agent.result()).at(-1)).toMatchObject({ msg: "The agent has ended" });
  });

  it("undoes it when that is over", async () => {
    const at = await site("1s");
    const before = await at.state();
    const agent = await startAgent(at);
    const { command, goOn } = await halfwayBackup(at);
    process.kill(agent.pid, "SIGTERM");
    await agent.waitForOutput(/The grace period is over/, SOON);
    goOn();
    const result = await command.result();
    expect(result).toMatchObject({ exitCode: 1, stdout: "" });
    expect(result.stderr).toContain("INTERRUPTED");
    expect((await agent.result()).exitCode).toBe(0);
    expect(await at.state()).toEqual(before);
  });

  it("ends at once at a second one, and undoes it when it is started again", async () => {
    const at = await site();
    const before = await at.state();
    const agent = await startAgent(at);
    const { command } = await halfwayBackup(at);
    process.kill(agent.pid, "SIGTERM");
    await agent.waitForOutput(/The agent ends/, SOON);
    process.kill(agent.pid, "SIGTERM");
    const ended = await agent.result();
    expect(ended).toMatchObject({ exitCode: 1, signal: null });
    expect(ended.stderr).toContain("The agent ends at once");
    const { exitCode, stderr } = await command.result();
    expect(exitCode, stderr).toBe(5);
    expect(await at.state()).not.toEqual(before);
    await startAgent(at);
    expect(await at.state()).toEqual(before);
  });
});

describe("an agent that is killed during a backup", () => {
  it("undoes it when it is started again, and goes on", async () => {
    const at = await site();
    const before = await at.state();
    const agent = await startAgent(at);
    const { command } = await halfwayBackup(at);
    await agent.kill("SIGKILL");
    expect((await command.result()).exitCode).toBe(5);
    expect((await at.vm.blockState()).nodes.some((node) => node.startsWith("fleece-"))).toBe(true);
    await startAgent(at);
    expect(await at.state()).toEqual(before);
    const next = await runFleece(["backup", "run", "vm"], { configPath: at.configPath });
    expect(next.exitCode, next.stderr).toBe(0);
  });
});

describe("an open block snapshot", () => {
  it("is read on over NBD while the agent is stopped, also from a daemon of ours, and is known to the next agent", async () => {
    const at = await site("60s", {}, { exports: "staged" });
    const ask = async (...args: string[]) => {
      const result = await runFleece([...args, "--json"], { configPath: at.configPath });
      expect(result.exitCode, result.stderr).toBe(0);
      return result.json();
    };
    const before = await at.state();
    const agent = await startAgent(at);
    await ask("block-snapshot", "create", "vm", "--name", "night", "--lease", "1h");
    const { exports } = (await ask("export", "start", "vm", "--snapshot", "night")) as {
      exports: { uri: string; staged: boolean }[];
    };
    expect(exports).toMatchObject([{ staged: true }]);
    const uri = exports[0]?.uri ?? "";
    // As the unit has it: only the agent itself gets the signal.
    expect((await agent.kill("SIGTERM")).exitCode).toBe(0);
    expect((await exec("nbdinfo", ["--size", uri])).stdout).toBe(`${VDA.sizeBytes}\n`);
    await startAgent(at);
    expect((await exec("nbdinfo", ["--size", uri])).stdout).toBe(`${VDA.sizeBytes}\n`);
    expect(await ask("export", "list")).toMatchObject({ exports: [{ uri }] });
    await ask("block-snapshot", "delete", "vm", "night");
    expect(await at.state()).toEqual(before);
  });
});

describe("the agent's log", () => {
  it("has the id of its call in every line that a call writes, and is JSON", async () => {
    const at = await site();
    const agent = await startAgent(at);
    const run = await runFleece(["backup", "run", "vm"], { configPath: at.configPath });
    expect(run.exitCode, run.stderr).toBe(0);
    const lines = linesOf(await agent.kill("SIGTERM"));
    const first = lines.findIndex(({ msg }) => msg === "Call");
    const last = lines.findIndex(({ msg }) => msg === "Call done");
    const during = lines.slice(first, last + 1);
    expect(during.filter(({ domain }) => domain === "vm").length).toBeGreaterThan(2);
    const { call } = during[0] ?? {};
    expect(call).toMatch(/^\S{8,}$/);
    for (const line of during) expect(line).toMatchObject({ call, method: "Backups.Run" });
  });
});

describe("an agent that gets SIGHUP", () => {
  it("works with the new configuration in new calls, and with the old one in those that run", async () => {
    const at = await site();
    const agent = await startAgent(at);
    const { command, goOn } = await halfwayBackup(at);
    const text = await readFile(at.configPath, "utf8");
    await writeFile(at.configPath, text.replace("name: vm\n", "name: other\n"));
    process.kill(agent.pid, "SIGHUP");
    await agent.waitForOutput(/The configuration was read again/, SOON);
    const ask = (...args: string[]) => runFleece(args, { configPath: at.configPath });
    expect(await ask("backup", "run", "vm")).toMatchObject({ exitCode: 3 });
    goOn();
    const result = await command.result();
    expect(result.exitCode, result.stderr).toBe(0);
    expect((await ask("domain", "list")).stdout).toMatch(/^other /m);
  });

  it("keeps what it has when the file is invalid, and what only a restart can change, and says so", async () => {
    const at = await site("60s", { metrics: { address: "127.0.0.1:0" } });
    const agent = await startAgent(at);
    const text = await readFile(at.configPath, "utf8");
    await writeFile(at.configPath, `${text}colour: red\n`);
    process.kill(agent.pid, "SIGHUP");
    await agent.waitForOutput(/stays as it was: \S+fleece\.yaml:\d+:1: colour: Unknown key/, SOON);
    await writeFile(
      at.configPath,
      text.replace(/^stateDir: .*$/m, "stateDir: elsewhere").replace("debug", "warn"),
    );
    process.kill(agent.pid, "SIGHUP");
    await agent.waitForOutput(/"stateDir stays as it was/, SOON);
    const [, port] = /"metricsPort":(\d+)/.exec(agent.stderr) ?? [];
    await until("two reloads", async () => {
      const page = await get(Number(port));
      return (
        page.includes('fleece_config_reloads_total{outcome="failed"} 1\n') &&
        page.includes('fleece_config_reloads_total{outcome="done"} 1\n')
      );
    });
    const backup = await runFleece(["backup", "run", "vm"], { configPath: at.configPath });
    expect(backup.exitCode, backup.stderr).toBe(0);
    // On the level `warn` that is no news any more.
    const lines = linesOf(await agent.kill("SIGTERM"));
    expect(lines.filter(({ msg }) => msg.startsWith("Call"))).toEqual([]);
    expect(lines.map(({ msg }) => msg)).not.toContain("The configuration was read again");
    expect(await readdir(at.directory.path)).not.toContain("elsewhere");
  });
});

describe("the agent's metrics", () => {
  it("know the last backup after a restart of the agent", async () => {
    const at = await site("60s", { metrics: { address: "127.0.0.1:0" } });
    const port = (agent: FleeceProcess): number => Number(/"metricsPort":(\d+)/.exec(agent.stderr)?.[1]);
    const agent = await startAgent(at);
    expect(await get(port(agent))).toContain(
      'fleece_last_backup_timestamp_seconds{domain="vm",repository="default"} 0\n',
    );
    const run = await runFleece(["backup", "run", "vm", "--json"], { configPath: at.configPath });
    const { time, disks } = run.json() as { time: string; disks: { readBytes: string }[] };
    const line = `fleece_disk_last_backup_timestamp_seconds{domain="vm",repository="default",disk="vda"} ${Date.parse(time) / 1000}\n`;
    const page = await get(port(agent));
    expect(page).toContain(line);
    expect(page).toContain(`fleece_backup_read_bytes_total{domain="vm"} ${disks[0]?.readBytes ?? ""}\n`);
    expect(page).toContain('fleece_calls_total{method="Backups.Run",outcome="done"} 1\n');
    await agent.kill("SIGKILL");
    expect(await get(port(await startAgent(at)))).toContain(line);
  });
});

function get(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path: "/metrics" }, (answer) => {
      let body = "";
      answer.setEncoding("utf8").on("data", (text: string) => (body += text));
      answer.on("end", () => resolve(body));
    });
    sent.on("error", reject).end();
  });
}

describe("an agent that systemd has started", () => {
  it("tells it when it answers, when it reads its configuration, and when it ends", async () => {
    const at = await site();
    const systemd = await notifySocket(at.directory.file("notify"));
    const agent = await startAgent(at, { NOTIFY_SOCKET: systemd.path });
    const told = (word: string): number => systemd.words().filter((each) => each === word).length;
    await until("READY=1", () => told("READY=1") === 1);
    process.kill(agent.pid, "SIGHUP");
    await until("the reload", () => told("RELOADING=1") === 1 && told("READY=1") === 2);
    expect(told("STOPPING=1")).toBe(0);
    expect((await agent.kill("SIGTERM")).exitCode).toBe(0);
    await until("STOPPING=1", () => told("STOPPING=1") === 1);
    expect(systemd.words()).toContain(`STATUS=Answers on ${at.directory.file("run/agent.sock")}`);
  });
});
