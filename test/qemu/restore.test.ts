import { execFile } from "node:child_process";
import { cp, readdir } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { defaultRuntimeRoot } from "../../src/drivers/runtime-directory.js";
import { type FleeceResult, runFleece, startFleece } from "../support/fleece.js";
import { compareImages, fileDigest } from "../support/image-tool.js";
import { temporaryDirectory } from "../support/lifetime.js";
import { startSite } from "../support/site.js";

const MIB = 1024 * 1024;

interface Taken {
  readonly id: string;
  readonly time: string;
}

const ONE_DISK = [{ target: "vda", format: "qcow2" as const, sizeBytes: 8 * MIB, filledBytes: 4 * MIB }];

describe("backup restore --domain", () => {
  it("brings back the newest backup at or before a moment, and says which that is", async () => {
    const at = await startSite({ disks: ONE_DISK });
    const first = await at.json<Taken>("backup", "run", "vm");
    await at.vm.guestWrite("vda", MIB, MIB, 0x77);
    const second = await at.json<Taken>("backup", "run", "vm");
    await at.vm.quit();
    const restore = (to: string, ...which: string[]): Promise<object> =>
      at.json("backup", "restore", "--domain", "vm", ...which, "--to", at.directory.file(to));
    const asFirst = { backup: first.id, domain: "vm", repository: "default", time: first.time };
    expect(await restore("first", "--at", first.time)).toMatchObject(asFirst);
    expect(await restore("newest")).toMatchObject({ backup: second.id, time: second.time });
    const same = async (name: string): Promise<boolean> => {
      const restored = at.directory.file(`${name}/vda.qcow2`);
      return (await compareImages(at.directory.file("vda.qcow2"), "qcow2", restored, "qcow2")).identical;
    };
    expect([await same("first"), await same("newest")]).toEqual([false, true]);
    const early = await at.run("backup", "restore", "--domain=vm", "--at=2020-01-01", "--to=/none");
    expect(early.exitCode).toBe(3);
    expect(early.stderr).toContain(`the oldest is ${first.id} of ${first.time} in repository default`);
  });
});

describe("--repository-path", () => {
  /** A command on a host that has nothing but this directory. */
  async function onBareHost(repository: string, cwd: string, ...args: string[]): Promise<FleeceResult> {
    const env = { FLEECE_CONFIG: "", FLEECE_AGENT: "" };
    return runFleece([...args, "--repository-path", repository], { cwd, env });
  }

  it("lists, shows, verifies and restores from a directory alone, byte for byte", async () => {
    const at = await startSite({ disks: ONE_DISK });
    await at.json("backup", "run", "vm");
    await at.vm.guestWrite("vda", MIB, MIB, 0x77);
    const { id } = await at.json<Taken>("backup", "run", "vm");
    await at.vm.quit();
    const host = await temporaryDirectory();
    await cp(at.directory.file("backups"), host.file("moved"), { recursive: true });
    const before = await filesBelow(host.file("moved"));
    const fleece = (...args: string[]): Promise<FleeceResult> => onBareHost("moved", host.path, ...args);
    expect((await fleece("backup", "list", "vm", "--json")).json()).toMatchObject({
      backups: [{ level: "FULL" }, { id, level: "INCREMENTAL", domain: "vm" }],
    });
    expect((await fleece("backup", "show", id)).stdout).toMatch(/^Repository +directory$/m);
    expect((await fleece("backup", "verify", id)).stdout).toMatch(/ is sound: /);
    const restored = await fleece("backup", "restore", "--domain", "vm", "--to", "out", "--format=raw");
    expect(restored).toMatchObject({ exitCode: 0, stderr: "" });
    const same = await compareImages(
      at.directory.file("vda.qcow2"),
      "qcow2",
      host.file("out/vda.raw"),
      "raw",
    );
    expect(same.identical).toBe(true);
    // As README.md says how.
    const image = host.file(`moved/vm/${id}/vda.qcow2`);
    await promisify(execFile)("qemu-img", ["convert", "-O", "raw", image, host.file("manual.raw")]);
    expect(await fileDigest(host.file("manual.raw"))).toBe(await fileDigest(host.file("out/vda.raw")));
    expect(await filesBelow(host.file("moved"))).toEqual(before);
  });

  it("serves until it is interrupted, and leaves no state behind", async () => {
    const at = await startSite({ disks: ONE_DISK });
    const { id } = await at.json<Taken>("backup", "run", "vm");
    await at.vm.quit();
    const host = await temporaryDirectory();
    const args = ["backup", "serve", id, "--repository-path", at.directory.file("backups"), "--socket", "s"];
    await using serving = await startFleece(args, { cwd: host.path });
    await serving.waitForOutput(/Serving backup/, { timeoutMs: 60_000 });
    const uri = `nbd+unix:///vda?socket=${host.file("s")}`;
    const same = await compareImages(at.directory.file("vda.qcow2"), "qcow2", uri, "raw");
    expect(same.identical).toBe(true);
    await serving.kill("SIGINT");
    expect(await filesBelow(host.path)).toEqual([]);
    expect(
      (await readdir(defaultRuntimeRoot())).filter((name) => name.startsWith(`p-${serving.pid}-`)),
    ).toEqual([]);
  });

  it("is refused beside a configuration or an agent, and for a directory that is not there", async () => {
    const host = await temporaryDirectory();
    for (const other of ["--config=x", "--agent=127.0.0.1:1"]) {
      const refused = await onBareHost(host.path, host.path, "backup", "list", other);
      expect(refused.exitCode).toBe(2);
      expect(refused.stderr).toMatch(/Expected either --repository-path or --(config|agent), got both/);
    }
    const missing = await onBareHost("/none/there", host.path, "backup", "list");
    expect(missing.stderr).toContain("(PATH_NOT_FOUND)");
  });
});

async function filesBelow(root: string): Promise<string[]> {
  return (await readdir(root, { recursive: true })).toSorted();
}
