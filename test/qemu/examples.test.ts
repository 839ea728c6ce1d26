import { execFile } from "node:child_process";
import { chmod, mkdir, open, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BoundProcess, type ProcessEnd } from "../support/bound-process.js";
import { startFleece, type FleeceProcess } from "../support/fleece.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { startSite, type Site, type SiteOptions } from "../support/site.js";
import { TemporaryDirectory } from "../support/temporary-directory.js";

const exec = promisify(execFile);
const tick = () => sleep(10);
const MIB = 1024 * 1024;
const SOON = { timeoutMs: 60_000 };
const root = fileURLToPath(new URL("../../", import.meta.url));
const examples = `${root}proto/examples/`;
const DISKS = [
  { target: "vda", format: "qcow2", sizeBytes: 96 * MIB, filledBytes: 64 * MIB },
  { target: "vdb", format: "raw", sizeBytes: 8 * MIB + 65_536, filledBytes: 4 * MIB },
] as const;
const TARGETS = DISKS.map(({ target }) => target);

let workplace: TemporaryDirectory;

beforeAll(async () => {
  workplace = await TemporaryDirectory.create();
  await symlink(`${root}proto`, workplace.file("proto"));
  const blocks = [...(await readFile(`${root}proto/README.md`, "utf8")).matchAll(/```sh\n([\s\S]*?)```/g)];
  const stubs = blocks.map(([, block]) => block ?? "").find((block) => block.includes("mkdir stubs"));
  await exec("sh", ["-euc", stubs ?? "exit 1"], { cwd: workplace.path });
});
afterAll(() => workplace[Symbol.asyncDispose]());

interface Ended extends ProcessEnd {
  readonly stdout: string;
  readonly stderr: string;
}

async function startWorld(options: SiteOptions = {}) {
  const site = await startSite({ disks: DISKS, ...options });
  const target = site.directory.file("pulled");
  const pull = async (...args: string[]): Promise<BoundProcess> =>
    untilTestEnds(
      await BoundProcess.start(
        "/usr/bin/python3",
        [
          `${examples}python/incremental_pull.py`,
          ...[site.directory.file("run/agent.sock"), "vm", target],
          ...args,
        ],
        { env: { ...process.env, PYTHONPATH: workplace.file("stubs") } },
      ),
    );
  const world = {
    ...site,
    target,
    serve: () => serve(site),
    pull,
    pulled: async (...args: string[]): Promise<Ended> => resultOf(await pull(...args)),
    state: async () =>
      JSON.parse(await readFile(`${target}/state.json`, "utf8")) as {
        readonly complete: boolean;
        readonly disks: Readonly<Record<string, { readonly checkpoint: string }>>;
      },
    /** A pull that has its moment, and stands still before or while it reads. */
    stopped: async (...args: string[]): Promise<BoundProcess> => {
      const process_ = await pull(...args);
      while ((await world.state().catch(() => undefined))?.complete !== false) await expectRunning(process_);
      process.kill(process_.pid, "SIGSTOP");
      return process_;
    },
    /** Digests of what the guest sees now. */
    moment: () =>
      Promise.all(
        DISKS.map(async ({ target, format }) => {
          await site.vm.guestFlush(target);
          const file = site.directory.file(`${target}.moment`);
          await copyToRaw(site.directory.file(`${target}.${format}`), format, file);
          return fileDigest(file);
        }),
      ),
    files: (directory = target) => Promise.all(TARGETS.map((name) => fileDigest(`${directory}/${name}.raw`))),
    snapshots: async () =>
      (await site.json<{ snapshots?: unknown[] }>("block-snapshot", "list", "vm")).snapshots ?? [],
    checkpoints: async () => {
      const message = await site.json<{ checkpoints?: { name: string }[] }>("checkpoint", "list", "vm");
      return (message.checkpoints ?? []).map(({ name }) => name);
    },
    /** Of each kind of change one, none at the border of a block. */
    change: async (pattern: number): Promise<void> => {
      const { vm } = site;
      const verdicts = [
        await vm.guestWrite("vda", 5 * MIB + 512, 3 * MIB, pattern),
        await vm.guestWriteZeroes("vda", 16 * MIB + 512, MIB),
        await vm.guestDiscard("vda", 32 * MIB, 2 * MIB),
        await vm.guestWrite("vda", 80 * MIB, 70_000 - (70_000 % 512), pattern),
        await vm.guestWrite("vdb", 8 * MIB, 65_536, pattern),
        await vm.guestWriteZeroes("vdb", MIB, MIB, { unmap: true }),
      ];
      expect(verdicts.map(({ ok }) => ok)).not.toContain(false);
    },
    /** What no pull may see that has its moment already. */
    overwrite: async (): Promise<void> => {
      const { vm } = site;
      const verdicts = [
        await vm.guestWrite("vda", 4 * MIB, 40 * MIB, 0xee),
        // QEMU 7.2 itself would offer these as zeroes: see QEMU_BLOCK_STATUS.
        await vm.guestDiscard("vda", 5 * MIB, 2 * MIB),
        await vm.guestWriteZeroes("vda", 7 * MIB, MIB, { unmap: true }),
        await vm.guestWrite("vdb", 0, 4 * MIB, 0xee),
        await vm.guestWriteZeroes("vdb", 8 * MIB, 65_536, { unmap: true }),
      ];
      expect(verdicts.map(({ ok }) => ok)).not.toContain(false);
    },
  };
  return world;
}

async function serve(site: Site): Promise<FleeceProcess> {
  const args = ["--log-level", "info", "serve"];
  const agent = untilTestEnds(await startFleece(args, { configPath: site.configPath }));
  await agent.waitForOutput(/The agent answers on/, SOON);
  return agent;
}

async function expectRunning(process_: BoundProcess): Promise<void> {
  if (!process_.running) throw new Error(`The program ended too early: ${process_.stderr}`);
  await tick();
}

async function resultOf(process_: BoundProcess): Promise<Ended> {
  const end = await process_.ended;
  return { ...end, stdout: process_.stdout, stderr: process_.stderr };
}

async function resumed(process_: BoundProcess): Promise<Ended> {
  process.kill(process_.pid, "SIGCONT");
  return resultOf(process_);
}

async function byteAt(file: string, offset: number): Promise<number | undefined> {
  const handle = await open(file, "r");
  try {
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, offset);
    return buffer[0];
  } finally {
    await handle.close();
  }
}

describe("the example incremental_pull.py", () => {
  it("pulls each moment byte for byte, and after the first reads changes alone", async () => {
    const world = await startWorld();
    await world.serve();
    const first = await world.moment();
    const full = await world.stopped();
    await world.overwrite();
    const fullEnd = await resumed(full);
    expect(fullEnd).toMatchObject({ exitCode: 0, stderr: "" });
    expect(fullEnd.stdout).toMatch(/^vda: full, 67108864 bytes read, 0 bytes of zeroes\nvdb: full, /);
    expect(await world.files()).toEqual(first);
    expect((await world.state()).complete).toBe(true);

    await world.pulled();
    for (const pattern of [0x11, 0x12]) {
      await world.change(pattern);
      const moment = await world.moment();
      const changes = await world.stopped("--connections", "2");
      await world.overwrite();
      const end = await resumed(changes);
      expect(end).toMatchObject({ exitCode: 0, stderr: "" });
      expect(end.stdout).toMatch(/^vda: changes since pull-\S+, \d+ bytes read, \d+ bytes of zeroes$/m);
      const [, read, zeroes] = /vda.* (\d+) bytes read, (\d+)/.exec(end.stdout) ?? [];
      expect(Number(zeroes)).toBeGreaterThanOrEqual(2 * MIB);
      if (pattern === 0x11) expect(Number(read)).toBeLessThan(6 * MIB);
      expect(await world.files()).toEqual(moment);
    }
    expect(await world.snapshots()).toEqual([]);
    // Older ones are gone, and the newest is the one that the next pull will ask about.
    const { disks } = await world.state();
    expect(await world.checkpoints()).toEqual([disks["vda"]?.checkpoint]);
  });

  it("is complete after a SIGKILL in the middle and another run", async () => {
    const world = await startWorld();
    await world.serve();
    expect(await world.pulled()).toMatchObject({ exitCode: 0 });
    const [checkpoint] = await world.checkpoints();
    await world.vm.guestWrite("vda", 0, 64 * MIB, 0x21);
    const killed = await world.pull("--connections", "1");
    while ((await byteAt(`${world.target}/vda.raw`, 0)) !== 0x21) await expectRunning(killed);
    await killed.stop("SIGKILL");
    expect((await world.state()).complete).toBe(false);
    expect(await world.snapshots()).toHaveLength(1);

    await world.change(0x22);
    const moment = await world.moment();
    const end = await world.pulled();
    expect(end).toMatchObject({ exitCode: 0, stderr: "" });
    expect(end.stdout).toContain(`vda: changes since ${checkpoint}, `);
    expect(await world.files()).toEqual(moment);
    expect(await world.snapshots()).toEqual([]);
    expect((await world.state()).complete).toBe(true);
  });

  it("takes a full of a disk whose checkpoint is gone, and says why", async () => {
    const world = await startWorld();
    await world.serve();
    await world.pulled();
    const [checkpoint] = await world.checkpoints();
    await world.json("checkpoint", "delete", "vm", checkpoint ?? "");
    await world.change(0x31);
    const moment = await world.moment();
    const end = await world.pulled();
    expect(end.stderr).toMatch(/^vda: .*\(CHECKPOINT_NOT_FOUND\)\nvdb: .*\(CHECKPOINT_NOT_FOUND\)\n$/);
    expect(end.stdout).toMatch(/^vda: full.*\nvdb: full.*\n$/);
    expect(end.exitCode).toBe(0);
    expect(await world.files()).toEqual(moment);
  });

  it("takes a full of the raw disk alone after the machine was restarted", async () => {
    const world = await startWorld();
    await world.serve();
    await world.pulled();
    await world.vm.restart();
    await world.change(0x32);
    const moment = await world.moment();
    const end = await world.pulled();
    expect(end.stderr).toMatch(/^vdb: .*\(CHECKPOINT_INVALID\)\n$/);
    expect(end.stdout).toMatch(/^vda: changes since .*\nvdb: full.*\n$/);
    expect(await world.files()).toEqual(moment);
  });

  it("does not count a pull of a snapshot that lost content; the next one is complete", async () => {
    const world = await startWorld({
      config: { more: { scratch: { limit: "1M" } } },
    });
    // `more` of the site's own configuration is replaced.
    const config = await readFile(world.configPath, "utf8");
    await writeFile(world.configPath, `${config}runtimeDir: ${world.directory.file("run")}\n`);
    await world.serve();
    expect(await world.pulled()).toMatchObject({ exitCode: 0 });
    const [checkpoint] = await world.checkpoints();
    await world.change(0x41);
    const broken = await world.stopped();
    await world.overwrite();
    const end = await resumed(broken);
    expect(end.exitCode).toBe(1);
    expect(end.stderr).toMatch(/^incremental_pull: /m);
    expect(await world.state()).toMatchObject({ complete: false, disks: { vda: { checkpoint } } });
    expect(await world.checkpoints()).toEqual([checkpoint]);
    expect(await world.snapshots()).toEqual([]);

    const moment = await world.moment();
    expect((await world.pulled()).stdout).toContain(`vda: changes since ${checkpoint}, `);
    expect(await world.files()).toEqual(moment);
  });

  it("renews its lease for as long as it reads", async () => {
    const world = await startWorld();
    const agent = await world.serve();
    const moment = await world.moment();
    const pull = await world.pull("--lease", "6", "--connections", "1");
    const allocated = async () => (await stat(`${world.target}/vda.raw`).catch(() => undefined))?.blocks ?? 0;
    while ((await allocated()) === 0) await expectRunning(pull);
    // Reads wait for QEMU, while more time goes by than the lease has.
    process.kill(world.vm.pid, "SIGSTOP");
    await agent.waitForOutput(/(BlockSnapshots\.Renew[\s\S]*){8}/, SOON);
    process.kill(world.vm.pid, "SIGCONT");
    expect(await resultOf(pull)).toMatchObject({ exitCode: 0, stderr: "" });
    expect(await world.files()).toEqual(moment);
  });

  it("goes on when the agent is killed and another is started", async () => {
    const world = await startWorld();
    const agent = await world.serve();
    const moment = await world.moment();
    const pull = await world.stopped();
    await agent.kill("SIGKILL");
    process.kill(pull.pid, "SIGCONT");
    await world.serve();
    expect(await resultOf(pull)).toMatchObject({ exitCode: 0, stderr: "" });
    expect(await world.files()).toEqual(moment);
  });

  it("gives the snapshot up at once when it is told to end", async () => {
    const world = await startWorld();
    await world.serve();
    const pull = await world.stopped();
    process.kill(pull.pid, "SIGTERM");
    expect(await resumed(pull)).toMatchObject({ exitCode: 1, stderr: "incremental_pull: interrupted\n" });
    expect(await world.snapshots()).toEqual([]);
    expect(await world.checkpoints()).toEqual([]);
  });

  it("tells errors by their stable codes", async () => {
    const world = await startWorld();
    const away = await world.pulled("--patience", "0");
    expect(away.stderr).toMatch(/^incremental_pull: .* \(AGENT_UNREACHABLE\)\n$/);
    await world.serve();
    await world.json("block-snapshot", "create", "vm", "--name", "other");
    const busy = await world.pulled("--patience", "0");
    expect(busy.stderr).toMatch(/^incremental_pull: .* \(DOMAIN_BUSY\)\n$/);
    expect([away.exitCode, busy.exitCode]).toEqual([1, 1]);
    expect(await world.snapshots()).toHaveLength(1);
  });
});

describe("the example full_pull.sh", () => {
  it("pulls the moment byte for byte, and leaves no snapshot", async () => {
    const world = await startWorld();
    await world.serve();
    const moment = await world.moment();
    const target = world.directory.file("once");
    const { stdout, stderr } = await runShell(world, target);
    expect(stderr).toBe("");
    expect(stdout).toBe(`vda: ${96 * MIB} bytes\nvdb: ${8 * MIB + 65_536} bytes\n`);
    expect(await world.files(target)).toEqual(moment);
    expect(await world.snapshots()).toEqual([]);
  });

  it("gives the snapshot up when a copy fails, and says that nothing counts", async () => {
    const world = await startWorld();
    await world.serve();
    const bin = world.directory.file("bin");
    await mkdir(bin);
    await writeFile(`${bin}/nbdcopy`, "#!/bin/sh\nexit 7\n");
    await chmod(`${bin}/nbdcopy`, 0o755);
    const target = world.directory.file("once");
    await expect(runShell(world, target, `${bin}:`)).rejects.toMatchObject({
      code: 7,
      stderr: expect.stringContaining(`the content of ${target} does not count`) as string,
    });
    expect(await world.snapshots()).toEqual([]);
  });
});

async function runShell(site: Site, target: string, path = "") {
  const { PATH = "" } = process.env;
  const env = {
    ...process.env,
    PATH: `${path}${PATH}`,
    FLEECE: `${process.execPath} ${root}dist/bin/fleece.js`,
    FLEECE_CONFIG: site.configPath,
  };
  return exec(`${examples}shell/full_pull.sh`, ["vm", target], { env });
}
