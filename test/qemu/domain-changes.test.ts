import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import type { BlockReader, ReaderFactory } from "../../src/ports/block-io.js";
import { runBackup } from "../../src/services/backup-run.js";
import type { ServiceContext } from "../../src/services/context.js";
import { compareImages } from "../support/image-tool.js";
import { startSite, type Site } from "../support/site.js";

const MIB = 1024 * 1024;

/** Lets a test do something to the domain while a backup waits for its first byte. */
class Gate {
  readonly reached: Promise<void>;
  readonly #opened: Promise<void>;
  #reach: () => void = () => undefined;
  #open: () => void = () => undefined;

  constructor() {
    this.reached = new Promise((resolve) => (this.#reach = resolve));
    this.#opened = new Promise((resolve) => (this.#open = resolve));
  }

  open(): void {
    this.#open();
  }

  guard(readers: ReaderFactory): ReaderFactory {
    return {
      open: async (address, signal): Promise<BlockReader> => {
        this.#reach();
        await this.#opened;
        return readers.open(address, signal);
      },
    };
  }
}

async function agent(at: Site): Promise<ServiceContext> {
  const ignore = (): void => undefined;
  return startAgent(await loadConfig(at.configPath), { debug: ignore, info: ignore, warn: ignore });
}

/** Starts a backup, does `change` while it is frozen and not yet read, and gives the backup's error. */
async function backupDuring(at: Site, change: () => Promise<unknown>): Promise<unknown> {
  const gate = new Gate();
  const context = await agent(at);
  const outcome = runBackup({ ...context, readers: gate.guard(context.readers) }, { domain: "vm" }).then(
    () => undefined,
    (error: unknown) => error,
  );
  await Promise.race([gate.reached, outcome]);
  await change();
  gate.open();
  return outcome;
}

interface Message {
  readonly id: string;
  readonly level: string;
  readonly parent?: string;
}

/** The next backup is an incremental on `base` and restores to what the disks hold now. */
async function expectSoundIncremental(at: Site, base: string): Promise<void> {
  const next = await at.json<Message>("backup", "run", "vm");
  expect(next).toMatchObject({ level: "INCREMENTAL", parent: base });
  await expectSound(at, next.id);
}

async function expectSound(at: Site, id: string): Promise<void> {
  const to = at.directory.file(`restored-${id}`);
  await at.json("backup", "restore", id, "--to", to);
  if (at.vm.running) await at.vm.quit();
  for (const { target, path } of at.vm.disks) {
    expect(await compareImages(path, "qcow2", `${to}/${target}.qcow2`, "qcow2")).toMatchObject({
      identical: true,
    });
  }
}

describe("A backup whose domain changes while it is read", () => {
  it("fails when the domain shuts down; the chain goes on as if it had never been", async () => {
    const at = await startSite();
    const base = await at.json<Message>("backup", "run", "vm");
    await at.vm.guestWrite("vda", MIB, 5000, 1);
    const error = await backupDuring(at, async () => {
      await at.vm.guestWrite("vda", 2 * MIB, 5000, 2);
      await at.vm.quit();
    });
    expect(error).toMatchObject({ name: "FleeceError" });
    const { checkpoints } = await at.json<{ checkpoints: { name: string }[] }>("checkpoint", "list", "vm");
    expect(checkpoints.map(({ name }) => name)).toEqual([base.id]);
    expect((await at.files()).filter((name) => !name.startsWith("backups/"))).toEqual([]);
    await at.vm.restart();
    await at.vm.guestWrite("vdb", 3 * MIB, 5000, 3);
    await expectSoundIncremental(at, base.id);
  });

  it("fails when QEMU crashes; the next backup compares and says why", async () => {
    const at = await startSite();
    const base = await at.json<Message>("backup", "run", "vm");
    const error = await backupDuring(at, () => at.vm.kill());
    expect(error).toMatchObject({ name: "FleeceError" });
    await at.vm.restart();
    const next = await at.json<Message & { reason: string }>("backup", "run", "vm");
    expect(next).toMatchObject({ level: "INCREMENTAL", parent: base.id });
    expect(next.reason).toMatch(/does not exist|inconsistent/);
    await expectSound(at, next.id);
  });

  it("begins again when an inactive domain is started: the guest wins, and the running domain is backed up", async () => {
    const at = await startSite();
    const base = await at.json<Message>("backup", "run", "vm");
    await at.vm.guestWrite("vda", MIB, 5000, 1);
    await at.vm.quit();
    const error = await backupDuring(at, async () => {
      await at.vm.restart();
      expect(await at.vm.guestWrite("vda", 2 * MIB, 5000, 2)).toMatchObject({ ok: true });
    });
    expect(error).toBeUndefined();
    expect(at.vm.running).toBe(true);
    const { backups } = await at.json<{ backups: (Message & { consistency: string })[] }>("backup", "list");
    const [first, second, ...more] = backups;
    expect(first).toMatchObject({ id: base.id });
    expect(second).toMatchObject({ level: "INCREMENTAL", parent: base.id, consistency: "CRASH" });
    expect(more).toEqual([]);
    const bitmaps = (await at.vm.blockState()).bitmaps;
    const names = [base.id, second?.id, base.id, second?.id];
    expect(bitmaps.map(({ name }) => name.split(":").at(-1))).toEqual(names);
    expect(bitmaps.map(({ recording }) => recording)).toEqual([false, true, false, true]);
    await expectSoundIncremental(at, second?.id ?? "");
  });

  it("is put in order when the agent was killed and the VM restarted before anybody looked", async () => {
    const at = await startSite({
      disks: [{ target: "vda", format: "qcow2", sizeBytes: 600 * MIB, filledBytes: 500 * MIB }],
    });
    const base = await at.json<Message>("backup", "run", "vm");
    await at.vm.guestWrite("vda", 0, 300 * MIB, 4);
    const command = await at.start("backup", "run", "vm");
    while (command.running && (await at.vm.blockState()).exports.length === 0) await tick();
    await command.kill("SIGKILL");
    await at.vm.guestWrite("vda", 400 * MIB, 5000, 5);
    await at.vm.restart();
    await at.vm.guestWrite("vda", 450 * MIB, 5000, 6);
    await expectSoundIncremental(at, base.id);
    expect((await at.files()).filter((name) => !name.startsWith("backups/"))).toEqual([]);
  });
});

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 5));
}
