import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import type { JobRun } from "../../src/api/messages.js";
import { startAgent, VendorClient } from "../support/agent.js";
import { runFleece } from "../support/fleece.js";
import { compareImages } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { type Site, startSite } from "../support/site.js";
import { ALL_FAULTS } from "../support/sample.js";

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
  const run = (...verb: string[]): ReturnType<Site["run"]> =>
    args.length === 0 ? at.run(...verb) : runFleece([...verb, ...args]);
  const restored = await run("backup", "restore", id, "--to", out);
  expect(restored.stderr).toBe("");
  const disk = `${out}/vda.qcow2`;
  expect((await compareImages(at.directory.file("vda.qcow2"), "qcow2", disk, "qcow2")).identical).toBe(true);
  expect(await readFile(`${out}/machine/tpm/state`)).toEqual(await readFile(at.directory.file("tpm/state")));
  expect(await readFile(`${out}/machine/tpm/empty`, "utf8")).toBe("");
}

/** Runs a backup while it looks at all processes again and again. Resolves with the programs that were seen. */
async function runWatched(at: Site): Promise<{ readonly taken: Taken; readonly seen: ReadonlySet<string> }> {
  const seen = new Set<string>();
  const running = await at.start("backup", "run", "vm", "--json");
  while (running.running) {
    for (const bytes of await processes()) {
      expect(bytes.includes(KEY) || bytes.includes(Buffer.from(KEY).toString("base64"))).toBe(false);
      for (const program of PROGRAMS) if (bytes.includes(program)) seen.add(program);
    }
    // Leaves the processor to what is watched.
    await delay(20);
  }
  return { taken: (await running.result()).json() as Taken, seen };
}

/** Each has the key. */
const PROGRAMS = ["qemu-img\0create", "qemu-storage-daemon\0--chardev"];

describe("encryption", () => {
  it("keeps content and key secret in a chain that began without, from backup through merge to restore", async () => {
    const at = await machineSite();
    const plain = await at.json<Taken>("backup", "run", "vm");
    const directory = (id: string): string => at.directory.file(`backups/vm/${id}`);
    expect(await showsContent(directory(plain.id), written(0x5a))).toBe(true);
    expect(await showsContent(directory(plain.id), TPM)).toBe(true);
    await setEncryption(at, { keyFile: "key" });
    await at.vm.guestWrite("vda", 2 * MIB, MIB, 0x22);
    const { taken, seen } = await runWatched(at);
    expect(taken).toMatchObject({ disks: [{ mode: "CHANGES", encrypted: true }] });
    expect([...seen].toSorted()).toEqual(PROGRAMS);
    await at.vm.quit();
    expect(await showsContent(directory(taken.id), written(0x22), TPM)).toBe(false);
    expect((await at.run("backup", "show", taken.id)).stdout).toMatch(/^Encrypted +yes$/m);
    await at.json("backup", "delete", plain.id);
    expect(await showsContent(at.directory.file("backups"), written(0x5a), written(0x22), TPM)).toBe(false);
    for (const name of ["state", "run", "backups"]) {
      expect(await showsContent(at.directory.file(name), KEY)).toBe(false);
    }
    const bare = ["--repository-path", at.directory.file("backups")];
    await expectContent(at, taken.id, "out", ...bare, "--key-file", at.directory.file("key"));
    const none = await runFleece(["backup", "verify", taken.id, ...bare]);
    expect(none).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("KEY_UNAVAILABLE") as string });
    const other = ["--key-file", at.directory.file("other-key")];
    const wrong = await runFleece(["backup", "verify", taken.id, ...bare, ...other]);
    expect(wrong).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("KEY_WRONG") as string });
    const alone = await runFleece(["backup", "verify", taken.id, ...other]);
    expect(alone).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining("--repository-path") as string,
    });
  });
});

/** Each takes a quarter of a minute. */
describe.runIf(ALL_FAULTS)("encryption, at length", () => {
  it("goes through comparing, pushing, serving and several merges", async () => {
    const at = await machineSite({ exports: "staged" });
    await setEncryption(at, { keyCommand: ["/bin/cat", at.directory.file("key")] });
    const full = await at.json<Taken>("backup", "run", "vm");
    await at.vm.guestWrite("vda", 2 * MIB, MIB, 0x22);
    const first = await at.json<Taken>("backup", "run", "vm");
    await at.vm.guestWrite("vda", 2 * MIB + 512, 70_000, 0x23);
    await at.vm.guestWriteZeroes("vda", 0, 512 * 1024);
    await at.vm.restart();
    await at.vm.kill();
    await at.vm.restart();
    const second = await at.json<Taken>("backup", "run", "vm");
    expect(second).toMatchObject({ keyId: full.keyId, disks: [{ mode: "COMPARE", encrypted: true }] });
    await at.vm.quit();
    for (const [round, { id }] of [full, first].entries()) {
      expect(await showsContent(at.directory.file("backups"), written(0x22), written(0x23), TPM)).toBe(false);
      await at.json("backup", "verify", second.id);
      await expectContent(at, second.id, `out-${round}`);
      await at.json("backup", "delete", id);
    }
    expect(await at.json("backup", "list")).toMatchObject({
      backups: [{ id: second.id, level: "FULL", keyId: full.keyId }],
    });
    await at.json("backup", "verify", second.id);
    await expectContent(at, second.id, "after");
    const served = untilTestEnds(await at.start("backup", "serve", second.id));
    const [uri] = await served.waitForOutput(/nbd\+unix:\S+/, { timeoutMs: 60_000 });
    const source = at.directory.file("vda.qcow2");
    expect((await compareImages(source, "qcow2", uri, "raw")).identical).toBe(true);
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

describe.runIf(ALL_FAULTS)("jobs of an agent with an encrypted repository", () => {
  it("sample, verify and merge what retention does not keep, all of it encrypted", async () => {
    const at = await machineSite();
    const config = parse(await readFile(at.configPath, "utf8")) as object;
    const encryption = { keyFile: at.directory.file("key") };
    const repository = {
      name: "default",
      path: at.directory.file("backups"),
      retention: { last: 2 },
      encryption,
    };
    const job = {
      ...{ name: "nightly", schedule: "0 0 1 1 *", domains: "all", catchUp: false },
      verify: { budget: "1m" },
    };
    await writeFile(
      at.configPath,
      stringify({ ...config, repositories: [repository], jobs: [job], sample: "100%" }),
    );
    const agent = await startAgent(at);
    const client = new VendorClient(at);
    const ids: string[] = [];
    for (let night = 1; night <= 4; night++) {
      await at.vm.guestWrite("vda", night * 65_536, 65_536, 0x60 + night);
      const run = (await client.call("Jobs.Run", { job: "nightly" })) as unknown as JobRun;
      expect(run).toMatchObject({ state: "COMPLETE", domains: [{ notes: [] }] });
      ids.push(run.domains[0]?.backup?.id ?? "");
    }
    client.close();
    expect((await agent.kill("SIGTERM")).exitCode).toBe(0);
    const { backups } = await at.json<{ backups: Taken[] }>("backup", "list");
    expect(backups.map(({ id }) => id)).toEqual(ids.slice(2));
    for (const { disks } of backups) expect(disks).toMatchObject([{ encrypted: true }]);
    expect(await showsContent(at.directory.file("backups"), written(0x61), written(0x64), TPM)).toBe(false);
    await at.vm.quit();
    await expectContent(at, ids.at(-1) ?? "", "out");
  });
});
