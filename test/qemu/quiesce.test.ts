import { mkdir } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { buildGuest, type GuestFiles } from "../guest/build-guest.js";
import { runCommand } from "../guest/commands.js";
import { makeDataDisk } from "../guest/data-disk.js";
import { guestAgentArguments, startGuestAgent, withGuestAgent } from "../guest/guest-agent.js";
import { bootGuest, type GuestVm } from "../guest/guest-vm.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import { runFleece, startFleece } from "../support/fleece.js";
import { copyToRaw } from "../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../support/lifetime.js";
import { QmpProxy } from "../support/qmp-proxy.js";
import type { TemporaryDirectory } from "../support/temporary-directory.js";

const MIB = 1024 * 1024;
const timeoutMs = 120_000;

interface BackupMessage {
  readonly id: string;
  readonly consistency: string;
  readonly heldMs: string;
  readonly frozenMs?: string;
}

/** A guest at work on its file system, with the real agent in it, and a proxy before its monitor. */
async function scene(files: GuestFiles) {
  const directory = await temporaryDirectory();
  const withAgent = await withGuestAgent(files, directory.path);
  if (withAgent === undefined) return undefined;
  const data = directory.file("vda.qcow2");
  await makeDataDisk(data, { sizeBytes: 256 * MIB, contentBytes: 16 * MIB });
  const agentPath = directory.file("qga");
  const guest = untilTestEnds(
    await bootGuest({
      files: withAgent,
      directory: directory.path,
      disks: [{ target: "vda", path: data, format: "qcow2" }],
      tickSeconds: 0.01,
      extraArguments: guestAgentArguments(agentPath),
    }),
  );
  await startGuestAgent(guest);
  await guest.work(3, { timeoutMs });
  const proxyPath = directory.file("proxy.qmp");
  const proxy = untilTestEnds(await QmpProxy.listen(proxyPath, guest.qmpPath));
  for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
  const configPath = await writeConfig(directory.path, {
    domains: [{ ...domainConfig("vm", guest.vm), qmp: proxyPath, guestAgent: agentPath }],
    more: { runtimeDir: directory.file("run") },
  });
  return { directory, guest, proxy, configPath };
}

async function backUp(configPath: string, ...args: string[]): Promise<BackupMessage> {
  const result = await runFleece(["--embedded", "backup", "run", "vm", "--json", ...args], { configPath });
  expect(result.exitCode, result.stderr).toBe(0);
  return result.json() as BackupMessage;
}

/** Restores, and tells whether the file system was left in the midst of its work: then its journal must be replayed. */
async function needsRecovery(
  directory: TemporaryDirectory,
  configPath: string,
  id: string,
): Promise<{ readonly recovery: boolean; readonly raw: string }> {
  const to = directory.file(`restored-${id}`);
  const result = await runFleece(["--embedded", "backup", "restore", id, "--to", to], { configPath });
  expect(result.exitCode, result.stderr).toBe(0);
  const raw = `${to}/vda.raw`;
  await copyToRaw(`${to}/vda.qcow2`, "qcow2", raw);
  const header = (await runCommand("dumpe2fs", ["-h", raw])).toString();
  return { recovery: /needs_recovery/.test(header), raw };
}

async function workGoesOn(guest: GuestVm): Promise<void> {
  const before = guest.lines.length;
  await guest.work(3, { timeoutMs });
  expect(guest.lines.slice(before).filter((line) => line.startsWith("PROBLEM"))).toEqual([]);
}

describe("A backup of a guest at work, through the real guest agent", () => {
  let files: GuestFiles;
  beforeAll(async () => {
    files = await buildGuest();
  });

  it("restores with --quiesce to a clean file system, without to one after a power cut", async ({ skip }) => {
    const at = await scene(files);
    if (at === undefined) return skip("Debian's qemu-guest-agent cannot be had here");
    const { directory, guest, configPath } = at;
    const frozen = await backUp(configPath, "--quiesce");
    expect(frozen).toMatchObject({ consistency: "FILESYSTEM", heldMs: "0" });
    expect(Number(frozen.frozenMs)).toBeGreaterThan(0);
    await workGoesOn(guest);
    const plain = await backUp(configPath);
    expect(plain.consistency).toBe("CRASH");
    expect(plain.frozenMs).toBeUndefined();
    await workGoesOn(guest);

    const quiet = await needsRecovery(directory, configPath, frozen.id);
    expect(quiet.recovery).toBe(false);
    expect((await runCommand("e2fsck", ["-f", "-n", quiet.raw])).toString()).toContain("Pass 5");
    expect((await needsRecovery(directory, configPath, plain.id)).recovery).toBe(true);
  });

  it("goes on writing after SIGKILL of the command in the frozen moment", async ({ skip }) => {
    const at = await scene(files);
    if (at === undefined) return skip("Debian's qemu-guest-agent cannot be had here");
    const { guest, proxy, configPath } = at;
    const command = untilTestEnds(
      await startFleece(["--embedded", "backup", "run", "vm", "--quiesce"], { configPath }),
    );
    await proxy.stallAt(/copy-before-write/);
    await command.kill("SIGKILL");
    // It cannot finish a step while it is frozen, but for one that was under way.
    await workGoesOn(guest);
    expect(await backUp(configPath, "--quiesce")).toMatchObject({ consistency: "FILESYSTEM" });
    await workGoesOn(guest);
  });
});
