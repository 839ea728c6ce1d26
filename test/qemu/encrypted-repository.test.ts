import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import { runFleece } from "../support/fleece.js";
import { compareImages, writeImage } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { type Site, startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const DISK = { target: "vda", format: "qcow2" as const, sizeBytes: 8 * MIB, filledBytes: MIB };
const KEY = randomBytes(32).toString("base64");
const OTHER_KEY = randomBytes(32).toString("base64");

interface Taken {
  readonly id: string;
  readonly keyId?: string;
  readonly disks: readonly { readonly mode: string; readonly encrypted: boolean }[];
}

/** With files of the machine's that nobody may read in the repository. */
async function machineSite(options: Parameters<typeof startSite>[0] = {}): Promise<Site> {
  const at = await startSite({ disks: [DISK], ...options });
  await writeFile(at.directory.file("key"), `${KEY}\n`, { mode: 0o600 });
  await writeFile(at.directory.file("other-key"), `${OTHER_KEY}\n`, { mode: 0o600 });
  await mkdir(at.directory.file("tpm"));
  await writeFile(at.directory.file("tpm/state"), Buffer.alloc(1_500_000, "tpm secret"));
  await writeFile(at.directory.file("tpm/empty"), "");
  const config = parse(await readFile(at.configPath, "utf8")) as { domains: [object] };
  config.domains = [{ ...config.domains[0], machineFiles: [{ name: "tpm", path: "tpm" }] }];
  await writeFile(at.configPath, stringify(config));
  return at;
}

async function setEncryption(at: Site, encryption: object | undefined): Promise<void> {
  const config = parse(await readFile(at.configPath, "utf8")) as object;
  const repositories = [{ name: "default", path: at.directory.file("backups"), encryption }];
  await writeFile(at.configPath, stringify({ ...config, repositories }));
}

/** Whether a file below holds what guest or machine wrote, in clear. */
async function showsContent(directory: string, ...markers: (string | Buffer)[]): Promise<boolean> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  for (const entry of entries.filter((found) => found.isFile())) {
    const content = await readFile(join(entry.parentPath, entry.name));
    if (markers.some((marker) => content.includes(marker))) return true;
  }
  return false;
}

const TPM = "tpm secrettpm secret";
const written = (pattern: number): Buffer => Buffer.alloc(256, pattern);

/** Command lines and environments of all processes, as far as they can be read. */
async function processes(): Promise<readonly Buffer[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const files = pids.flatMap((pid) => [`/proc/${pid}/cmdline`, `/proc/${pid}/environ`]);
  return Promise.all(files.map((file) => readFile(file).catch(() => Buffer.alloc(0))));
}

async function expectContent(at: Site, id: string, to: string, ...args: string[]): Promise<void> {
  const out = at.directory.file(to);
  const run = args.length === 0 ? at.run : (...all: string[]) => runFleece([...all, ...args]);
  const restored = await run("backup", "restore", id, "--to", out);
  expect(restored.stderr).toBe("");
  const disk = `${out}/vda.qcow2`;
  expect((await compareImages(at.directory.file("vda.qcow2"), "qcow2", disk, "qcow2")).identical).toBe(true);
  expect(await readFile(`${out}/machine/tpm/state`)).toEqual(await readFile(at.directory.file("tpm/state")));
  expect(await readFile(`${out}/machine/tpm/empty`, "utf8")).toBe("");
}

describe("encryption", () => {
  it("keeps content secret in chains that began without, through comparing, merging and restoring", async () => {
    const at = await machineSite();
    await at.vm.guestWrite("vda", MIB, MIB, 0x21);
    const plain = await at.json<Taken>("backup", "run", "vm");
    const directory = (id: string): string => at.directory.file(`backups/vm/${id}`);
    expect(await showsContent(directory(plain.id), written(0x21))).toBe(true);
    expect(await showsContent(directory(plain.id), TPM)).toBe(true);

    await setEncryption(at, { keyFile: "key" });
    await at.vm.guestWrite("vda", 2 * MIB, MIB, 0x22);
    const first = await at.json<Taken>("backup", "run", "vm");
    expect(first).toMatchObject({ disks: [{ mode: "CHANGES", encrypted: true }] });
    await at.vm.guestWrite("vda", 2 * MIB + 512, 70_000, 0x23);
    await at.vm.guestWriteZeroes("vda", 0, 512 * 1024);
    await at.vm.restart();
    await at.vm.kill();
    await at.vm.restart();
    const second = await at.json<Taken>("backup", "run", "vm");
    expect(second).toMatchObject({ keyId: first.keyId, disks: [{ mode: "COMPARE", encrypted: true }] });
    await at.vm.quit();
    for (const { id } of [first, second]) {
      expect(await showsContent(directory(id), written(0x22), written(0x23), TPM)).toBe(false);
    }
    expect((await at.run("backup", "show", second.id)).stdout).toMatch(/^Encrypted +yes$/m);
    await at.json("backup", "verify", second.id);
    await expectContent(at, second.id, "before");

    await at.json("backup", "delete", plain.id);
    expect(await showsContent(at.directory.file("backups"), written(0x21), written(0x22), TPM)).toBe(false);
    await at.json("backup", "verify", first.id);
    await expectContent(at, second.id, "between");
    await at.json("backup", "delete", first.id);
    expect(await at.json("backup", "list")).toMatchObject({
      backups: [{ id: second.id, level: "FULL", keyId: first.keyId }],
    });
    await at.json("backup", "verify", second.id);

    const bare = ["--repository-path", at.directory.file("backups")];
    await expectContent(at, second.id, "after", ...bare, "--key-file", at.directory.file("key"));
    const none = await runFleece(["backup", "verify", second.id, ...bare]);
    expect(none).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("KEY_UNAVAILABLE") as string });
    const key = ["--key-file", at.directory.file("other-key")];
    const wrong = await runFleece(["backup", "verify", second.id, ...bare, ...key]);
    expect(wrong).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("KEY_WRONG") as string });
    const alone = await runFleece(["backup", "verify", second.id, ...key]);
    expect(alone).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining("--repository-path") as string,
    });
    const served = untilTestEnds(await at.start("backup", "serve", second.id));
    const [uri] = await served.waitForOutput(/nbd\+unix:\S+/, { timeoutMs: 60_000 });
    await writeImage(uri, "raw", "read -P 0x22 3080192 4096");
    // Nothing of ours is needed: the key is the images' passphrase.
    await writeFile(at.directory.file("passphrase"), KEY);
    const image = `${directory(second.id)}/vda.qcow2`;
    expect((await readFile(image)).includes(written(0x23))).toBe(false);
  });

  it("takes what QEMU pushes, and the key is in no command line and no environment", async () => {
    const at = await machineSite({ exports: "staged" });
    await setEncryption(at, { keyCommand: ["/bin/cat", at.directory.file("key")] });
    const seen = new Set<string>();
    const running = await at.start("backup", "run", "vm", "--json");
    let looks = 0;
    while (running.running) {
      for (const bytes of await processes()) {
        expect(bytes.includes(KEY) || bytes.includes(Buffer.from(KEY).toString("base64"))).toBe(false);
        for (const tool of ["qemu-img\0create", "qemu-storage-daemon"])
          if (bytes.includes(tool)) seen.add(tool);
      }
      looks += 1;
    }
    const result = await running.result();
    expect(looks).toBeGreaterThan(0);
    expect([...seen].toSorted()).toEqual(["qemu-img\0create", "qemu-storage-daemon"]);
    const full = result.json() as Taken;
    await at.vm.guestWrite("vda", 2 * MIB, MIB, 0x22);
    const { id } = await at.json<Taken>("backup", "run", "vm");
    expect(await showsContent(at.directory.file("backups"), written(0x5a), written(0x22), TPM)).toBe(false);
    for (const name of ["state", "run", "backups"]) {
      expect(await showsContent(at.directory.file(name), KEY)).toBe(false);
    }
    await at.vm.quit();
    await at.json("backup", "delete", full.id);
    await expectContent(at, id, "out");
  });

  it("that lacks its key, or has another, changes nothing and says so", async () => {
    const at = await machineSite({ exports: "auto" });
    await setEncryption(at, { keyFile: "key" });
    const doctor = async (): Promise<unknown> => (await at.run("doctor", "vm", "--json")).json();
    expect(await doctor()).toMatchObject({
      findings: expect.arrayContaining([expect.objectContaining({ code: "KEY_READY" })]) as unknown[],
    });
    const full = await at.json<Taken>("backup", "run", "vm");
    const before = await at.state();
    const refuses = async (encryption: object | undefined, code: string, words: string): Promise<void> => {
      await setEncryption(at, encryption);
      for (const args of [
        ["run", "vm"],
        ["verify", full.id],
      ]) {
        const result = await at.run("backup", ...args);
        expect(result).toMatchObject({ exitCode: 1, stderr: expect.stringContaining(code) as string });
        expect(result.stderr).toContain(words);
      }
      expect(await doctor()).toMatchObject({
        findings: expect.arrayContaining([expect.objectContaining({ code: "KEY_UNUSABLE" })]) as unknown[],
      });
      expect(await at.state()).toEqual(before);
    };
    await refuses({ keyFile: "other-key" }, "KEY_WRONG", full.keyId ?? "");
    await refuses({ keyFile: "no-key" }, "KEY_UNAVAILABLE", "no such file");
    await refuses({ keyCommand: ["/bin/false"] }, "KEY_UNAVAILABLE", "exit code 1");
    await refuses({ keyCommand: ["/bin/echo", "short"] }, "KEY_UNAVAILABLE", "got 5 characters");
    await refuses(undefined, "KEY_UNAVAILABLE", "got none");
    await chmod(at.directory.file("key"), 0o640);
    await refuses({ keyFile: "key" }, "KEY_UNAVAILABLE", "mode 0640");
  });
});
