import { readdir, readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { domainConfig, writeConfig } from "../support/config-file.js";
import type { JsonObject } from "../support/monitor.js";
import type { FleeceProcess } from "../support/fleece.js";
import { untilTestEnds } from "../support/lifetime.js";
import { QmpProxy } from "../support/qmp-proxy.js";
import { ScriptedGuestAgent } from "../support/scripted-guest-agent.js";
import type { Site, SiteDisk } from "../support/site.js";
import { startSite } from "../support/site.js";

const MIB = 1024 * 1024;
/** Sent while the guest is held, when the new bitmaps are there and no filter is yet. */
const IN_THE_MOMENT = /copy-before-write/;

const oneDisk: readonly SiteDisk[] = [{ target: "vda", format: "qcow2", sizeBytes: 8 * MIB }];
const twoDisks: readonly SiteDisk[] = [...oneDisk, { target: "vdb", format: "qcow2", sizeBytes: 8 * MIB }];

/** A site whose monitor can be made to hang, with a stand-in for the guest agent, since no guest runs here. */
async function scene(
  disks: readonly SiteDisk[],
  quiesce: JsonObject = {},
): Promise<{ at: Site; proxy: QmpProxy; agent: ScriptedGuestAgent }> {
  const at = await startSite({ disks });
  const agentPath = at.directory.file("qga");
  const proxyPath = at.directory.file("proxy.qmp");
  const proxy = untilTestEnds(await QmpProxy.listen(proxyPath, at.vm.qmpPath));
  const agent = untilTestEnds(await ScriptedGuestAgent.listen(agentPath));
  const domain = { ...domainConfig("vm", at.vm), qmp: proxyPath, guestAgent: agentPath, quiesce };
  await writeConfig(at.directory.path, {
    domains: [domain],
    more: { runtimeDir: at.directory.file("run") },
  });
  return { at, proxy, agent };
}

const statusOf = async (at: Site): Promise<string> =>
  ((await at.vm.qmp("query-status")) as { status: string }).status;

/** Waits for what must come; the test's own deadline ends it. */
async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 20));
}

interface FoundProcess {
  readonly pid: number;
  readonly group: number;
}

/** Living guards whose settings name this site's sockets. */
async function guardsOf(at: Site): Promise<FoundProcess[]> {
  const found: FoundProcess[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const args = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (!args.includes("ACT_WITHIN_MS") || !args.includes(at.directory.path)) continue;
    const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
    // proc(5): state, parent and process group follow the command in parentheses.
    const [, , group] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    found.push({ pid: Number(pid), group: Number(group) });
  }
  return found;
}

async function killInTheMoment(proxy: QmpProxy, command: FleeceProcess): Promise<void> {
  const stalled = proxy.stallAt(IN_THE_MOMENT);
  await Promise.race([
    stalled,
    command.result().then(({ stderr }) => Promise.reject(new Error(`The command ended: ${stderr}`))),
  ]);
}

describe("A guest whose holder is killed", () => {
  it("runs again by itself after SIGKILL in the held moment, and the next command undoes the rest", async () => {
    const { at, proxy } = await scene(twoDisks);
    const before = await at.state();
    const command = await at.start("backup", "run", "vm");
    await killInTheMoment(proxy, command);
    expect(await statusOf(at)).toBe("paused");
    const guards = await guardsOf(at);
    expect(guards).toHaveLength(1);
    // A signal to the command's process group does not reach it.
    expect(guards[0]?.group).toBe(guards[0]?.pid);
    await command.kill("SIGKILL");
    await until(async () => (await statusOf(at)) === "running");
    await until(async () => (await guardsOf(at)).length === 0);
    expect((await at.run("backup", "list")).exitCode).toBe(0);
    expect(await at.state()).toEqual(before);
  });

  it("is thawed and runs again by itself after SIGKILL in the frozen and held moment", async () => {
    const { at, proxy, agent } = await scene(twoDisks);
    const command = await at.start("backup", "run", "vm", "--quiesce");
    await killInTheMoment(proxy, command);
    expect(await statusOf(at)).toBe("paused");
    expect(agent.frozen).toBe(true);
    await command.kill("SIGKILL");
    await until(async () => (await statusOf(at)) === "running" && !agent.frozen);
    await until(async () => (await guardsOf(at)).length === 0);
  });

  it("is thawed by the next command, too, if the guard is killed as well", async () => {
    const { at, proxy, agent } = await scene(twoDisks);
    const before = await at.state();
    const command = await at.start("block-snapshot", "create", "vm", "--quiesce");
    await killInTheMoment(proxy, command);
    for (const { pid } of await guardsOf(at)) process.kill(pid, "SIGKILL");
    await command.kill("SIGKILL");
    expect([await statusOf(at), agent.frozen]).toEqual(["paused", true]);
    expect((await at.run("block-snapshot", "list", "vm")).exitCode).toBe(0);
    expect([await statusOf(at), agent.frozen]).toEqual(["running", false]);
    expect(await at.state()).toEqual(before);
  });
});

describe("A guard", () => {
  it("leaves a guest alone that somebody else had paused", async () => {
    const { at, proxy, agent } = await scene(oneDisk);
    agent.script = (command, each) => {
      // After the look at the guest's state and before the moment.
      if (command.execute === "guest-fsfreeze-freeze") void at.vm.qmp("stop");
      return each.obey(command);
    };
    const command = await at.start("backup", "run", "vm", "--quiesce");
    await killInTheMoment(proxy, command);
    await command.kill("SIGKILL");
    await until(async () => !agent.frozen && (await guardsOf(at)).length === 0);
    expect(await statusOf(at)).toBe("paused");
  });

  it("does nothing and ends when all has gone well", async () => {
    const { at, agent } = await scene(twoDisks);
    const { frozenMs, heldMs, ...backup } = await at.json<Record<string, unknown>>(
      "backup",
      "run",
      "vm",
      "--quiesce",
    );
    expect(backup).toMatchObject({ consistency: "FILESYSTEM" });
    expect([Number(frozenMs) > 0, Number(heldMs) > 0]).toEqual([true, true]);
    expect(agent.commands.filter((name) => name === "guest-sync-delimited")).toHaveLength(1);
    expect(agent.commands.slice(-3)).toEqual([
      "guest-fsfreeze-freeze",
      "guest-fsfreeze-thaw",
      "guest-fsfreeze-status",
    ]);
    await until(async () => (await guardsOf(at)).length === 0);
    expect(await statusOf(at)).toBe("running");
  });
});

describe("A quiesced backup whose agent fails", () => {
  it("goes on crash-consistent with the reason recorded and logged, or stops, as configured", async () => {
    const { at, agent } = await scene(oneDisk, { always: true, timeout: "1s" });
    agent.script = (command, each) =>
      command.execute === "guest-fsfreeze-freeze"
        ? { error: { class: "GenericError", desc: "out of order" } }
        : each.obey(command);
    const result = await at.run("backup", "run", "vm", "--json");
    expect(result.exitCode, result.stderr).toBe(0);
    expect(result.json()).toMatchObject({
      consistency: "CRASH",
      quiesceFailure: expect.stringMatching(/out of order/) as unknown,
    });
    expect(result.stderr).toMatch(/Not quiesced.*out of order/);
    const unasked = await at.json("backup", "run", "vm", "--no-quiesce");
    expect(unasked).not.toHaveProperty("quiesceFailure");

    const text = await readFile(at.configPath, "utf8");
    await writeFile(at.configPath, text.replace("timeout: 1s", "timeout: 1s\n      onFailure: stop"));
    const before = await at.state();
    const refused = await at.run("backup", "run", "vm");
    expect(refused.stderr).toMatch(/could not be frozen.*out of order.*\(QUIESCE_FAILED\)/);
    expect(refused.exitCode).toBe(1);
    expect(agent.frozen).toBe(false);
    expect(await at.state()).toEqual(before);
  });

  it("does not claim frozen file systems when somebody has thawed them meanwhile", async () => {
    const { at, agent } = await scene(oneDisk);
    agent.script = (command, each) => {
      if (command.execute === "guest-fsfreeze-thaw") each.frozen = false;
      return each.obey(command);
    };
    expect(await at.json("block-snapshot", "create", "vm", "--quiesce")).toMatchObject({
      consistency: "CRASH",
      quiesceFailure: expect.stringMatching(/not frozen any more/) as unknown,
    });
  });

  it("needs no agent while the domain is off", async () => {
    const { at, agent } = await scene(oneDisk, { always: true });
    // Without the proxy, which listens also when QEMU does not.
    const text = await readFile(at.configPath, "utf8");
    await writeFile(at.configPath, text.replace(/qmp: .*/, `qmp: ${at.vm.qmpPath}`));
    await at.vm.quit();
    const backup = await at.json("backup", "run", "vm", "--quiesce");
    expect(backup).toMatchObject({ consistency: "CLEAN" });
    expect(backup).not.toHaveProperty("quiesceFailure");
    expect(agent.commands).toEqual([]);
  });

  it("is refused before anything is done for a domain without an agent", async () => {
    const at = await startSite({ disks: oneDisk });
    const before = await at.state();
    const refused = await at.run("backup", "run", "vm", "--quiesce");
    expect(refused.stderr).toMatch(/guestAgent.*\(INVALID_ARGUMENT\)/);
    expect(refused.exitCode).toBe(2);
    expect(await at.state()).toEqual(before);
  });
});
