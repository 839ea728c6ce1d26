import { mkdir, readdir, readFile, readlink } from "node:fs/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import { writeBootDisk } from "../support/boot-disk.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { type FleeceProcess, type FleeceResult, runFleece, startFleece } from "../support/fleece.js";
import { fileDigest, qemuImg } from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";
import type { JsonObject } from "../support/monitor.js";
import { TestVm } from "../support/vm.js";
import { ALL_FAULTS } from "../support/sample.js";

const MIB = 1024 * 1024;

interface Host {
  readonly vm: TestVm;
  readonly backupId: string;
  readonly configPath: string;
  run(...args: string[]): Promise<FleeceResult>;
  start(...args: string[]): Promise<FleeceProcess>;
  backUp(): Promise<string>;
  /** Digests of what is in the repository. */
  repository(): Promise<readonly string[]>;
  /** What is in the scratch and runtime directories and the journal. */
  leftovers(): Promise<readonly string[]>;
  /** Ids of QEMU processes but the domain's own whose arguments name this host's directory. */
  machines(): Promise<readonly number[]>;
}

/** The ends that a boot test must not have. */
const ENDS = [
  ...[
    "-netdev",
    "user,id=net0,hostfwd=tcp:127.0.0.1:0-:22",
    "-device",
    "virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01",
  ],
  ...["-vnc", "none", "-chardev", "null,id=port0", "-device", "virtio-serial-pci,id=vs0"],
  ...["-device", "virtserialport,chardev=port0,name=org.qemu.guest_agent.0,bus=vs0.0"],
];

/** A domain whose disk boots, with a backup of it. */
async function bootableHost(text: string, end: "halt" | "reset", bootTest: JsonObject): Promise<Host> {
  const directory = await temporaryDirectory();
  const raw = directory.file("raw");
  const disk = directory.file("vda.qcow2");
  await writeBootDisk(raw, { text, end, sizeBytes: 4 * MIB });
  await qemuImg("convert", "-q", "-f", "raw", "-O", "qcow2", raw, disk);
  for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
  const disks = [{ target: "vda", path: disk, format: "qcow2" as const }];
  const vm = untilTestEnds(
    await TestVm.start({ directory: directory.path, disks, paused: true, extraArguments: ENDS }),
  );
  const configPath = directory.file("fleece.yaml");
  const domain = { ...domainConfig("vm", vm), bootTest: { accelerator: "tcg", ...bootTest } };
  await writeConfig(directory.path, { domains: [domain], more: { runtimeDir: directory.file("run") } });
  const run = (...args: string[]): Promise<FleeceResult> =>
    runFleece(["--embedded", ...args], { configPath });
  const backUp = async (): Promise<string> => {
    const result = await run("backup", "run", "vm", "--json");
    return (result.json() as { id: string }).id;
  };
  const files = async (name: string): Promise<string[]> => {
    const found = await readdir(directory.file(name), { recursive: true, withFileTypes: true }).catch(
      () => [],
    );
    return found
      .filter((entry) => !entry.isDirectory())
      .map(({ parentPath, name: file }) => `${parentPath}/${file}`);
  };
  return {
    ...{ vm, configPath, run, backUp },
    backupId: await backUp(),
    start: (...args) => startFleece(["--embedded", ...args], { configPath }),
    repository: async () =>
      Promise.all(
        (await files("backups")).toSorted().map(async (file) => `${file} ${await fileDigest(file)}`),
      ),
    leftovers: async () =>
      [...(await files("scratch")), ...(await files("run")), ...(await files("state/operations"))].concat(
        await readdir(directory.file("scratch")),
      ),
    machines: async () => (await machinesNaming(directory.path)).filter((pid) => pid !== vm.pid),
  };
}

async function machinesNaming(path: string): Promise<number[]> {
  const found: number[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number)) {
    const args = (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
    if (args.some((each) => each.includes(path)) && /^qemu-(system|storage)/.test(args[0] ?? ""))
      found.push(pid);
  }
  return found;
}

/** Whether a process has any socket that is not a Unix socket, by inode. */
async function networkSockets(pid: number): Promise<readonly string[]> {
  const unix = await readFile("/proc/net/unix", "utf8");
  const descriptors = await readdir(`/proc/${pid}/fd`);
  const links = await Promise.all(descriptors.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")));
  const inodes = links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []);
  return inodes.filter((inode) => !unix.includes(` ${inode}`));
}

describe("backup boot-test", () => {
  it("boots a backup beside its domain, sees its sign of life, says so in lists, and leaves nothing", async () => {
    const at = await bootableHost("Debian GNU/Linux\r\nweb01 login: ", "halt", {});
    const before = await at.repository();
    const result = await at.run("backup", "boot-test", "--domain", "vm");
    expect(result.exitCode, result.stderr).toBe(0);
    expect(result.stdout).toMatch(
      new RegExp(
        `^Backup ${at.backupId} of vm has booted: "login:" on its serial console after .* \\(TCG\\)\n$`,
      ),
    );
    expect(await at.repository()).toEqual(before);
    expect([await at.leftovers(), await at.machines()]).toEqual([[], []]);
    const shown = (await at.run("backup", "show", at.backupId)).stdout;
    expect(shown).toMatch(/^Booted +20/m);
    expect((await at.run("backup", "list")).stdout).toMatch(/ BOOTED .*\n.* 20\d\d-.* 20\d\d-/);
  });

  it("fails by its code with the last words on the console when the guest gives up, also through an agent", async () => {
    const at = await bootableHost(
      "Loading kernel\r\n\x1b[1mKernel panic: no root file system\x1b[0m\r\n",
      "reset",
      {},
    );
    const agent = await startFleece(["serve"], { configPath: at.configPath });
    untilTestEnds(agent);
    await agent.waitForOutput(/The agent answers on/, { timeoutMs: 60_000 });
    const { exitCode, stderr } = await runFleece(["backup", "boot-test", at.backupId], at);
    expect(exitCode, stderr).toBe(1);
    await agent.kill("SIGTERM");
    expect(stderr).toContain("(BOOT_FAILED)");
    expect(stderr).toContain(
      `Backup ${at.backupId} of vm: The guest did not come up: "login:" on its serial console had not come when QEMU ended with exit code 0`,
    );
    expect(stderr).toContain(
      "its serial console said last: Loading kernel | Kernel panic: no root file system",
    );
    const listed = (await at.run("backup", "list", "--json")).json();
    expect(listed).toMatchObject({
      backups: [{ lastBoot: { failure: expect.stringContaining("Kernel panic") as string } }],
    });
    expect([await at.leftovers(), await at.machines()]).toEqual([[], []]);
  });

  it("fails when the boot sector is damaged and the sign does not come in time", async () => {
    const at = await bootableHost("web01 login: ", "halt", { timeout: "3s", console: "/^web\\d+ login: $/" });
    await at.vm.guestWrite("vda", 0, 65_536, 0x5a);
    const { exitCode, stderr } = await at.run("backup", "boot-test", await at.backUp());
    expect(exitCode).toBe(1);
    expect(stderr).toContain("did not come within 3 s; its serial console has said nothing");
    expect(stderr).toContain("(BOOT_FAILED)");
  });

  it("has no network while it runs, and dies with a command that is killed; the next one clears up", async () => {
    const at = await bootableHost("starting\r\n", "halt", { timeout: "10m" });
    const command = await at.start("--log-level", "debug", "backup", "boot-test", at.backupId);
    untilTestEnds(command);
    let found: readonly number[] = [];
    const seen = async (): Promise<number | undefined> => {
      found = await at.machines();
      for (const pid of found) {
        const args = (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
        if (!args.includes("-no-reboot")) continue;
        expect(args.join(" ")).not.toMatch(/netdev|hostfwd|virtio-net|vm\.qmp|vm-test\.qmp/);
        return pid;
      }
      return undefined;
    };
    await expect.poll(seen, { timeout: 60_000 }).toBeDefined();
    const pid = (await seen()) ?? 0;
    // If it does not die by itself.
    onTestFinished(async () => {
      if ((await at.machines()).includes(pid)) process.kill(pid, "SIGKILL");
    });
    expect(await networkSockets(pid)).toEqual([]);
    expect(await at.leftovers()).not.toEqual([]);
    await command.kill("SIGKILL");
    await expect.poll(() => at.machines(), { timeout: 60_000 }).toEqual([]);
    expect((await at.run("backup", "list")).exitCode).toBe(0);
    expect(await at.leftovers()).toEqual([]);
  });

  it.runIf(ALL_FAULTS)("leaves nothing when it is interrupted, and remembers nothing then", async () => {
    const at = await bootableHost("starting\r\n", "halt", { timeout: "10m" });
    const command = await at.start("backup", "boot-test", at.backupId);
    untilTestEnds(command);
    await expect
      .poll(() => at.machines().then((pids) => pids.length), { timeout: 60_000 })
      .toBeGreaterThan(1);
    const { exitCode, stderr } = await command.kill("SIGINT");
    expect(stderr).toContain("INTERRUPTED");
    expect(exitCode).not.toBe(0);
    expect([await at.leftovers(), await at.machines()]).toEqual([[], []]);
    expect((await at.run("backup", "show", at.backupId)).stdout).not.toMatch(/Booted/);
  });
});
