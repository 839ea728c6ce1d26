import { execFile } from "node:child_process";
import { readdir } from "node:fs/promises";
import { connect } from "node:net";
import { promisify } from "node:util";
import { connectNbd } from "nbd-client-ts";
import { describe, expect, it } from "vitest";
import { findDaemons } from "../../src/drivers/end-daemon.js";
import type { FleeceProcess } from "../support/fleece.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";
import { mountTmpfs } from "../support/mount.js";
import { startSite, type Site, type SiteOptions } from "../support/site.js";

const exec = promisify(execFile);
const MIB = 1024 * 1024;
const BLOCK = 65536;

interface ExportMessage {
  readonly target: string;
  readonly uri: string;
  readonly changesContext?: string;
  readonly staged: boolean;
}

const BIG = [{ target: "vda", format: "qcow2" as const, sizeBytes: 192 * MIB, filledBytes: 192 * MIB }];

async function startStaged(options: SiteOptions = {}) {
  const at = await startSite({ exports: "staged", ...options });
  const offer = async (...args: string[]): Promise<readonly ExportMessage[]> =>
    (
      await at.json<{ exports: ExportMessage[] }>(
        ...["export", "start", "vm", "--snapshot", "night", ...args],
      )
    ).exports;
  return {
    ...at,
    offer,
    create: (name: string, ...args: string[]) =>
      at.json("block-snapshot", "create", "vm", "--name", name, ...args),
    remove: (name: string) => at.json("block-snapshot", "delete", "vm", name),
    /** What the disk holds now; the guest must be quiet. */
    moment: async (target: string): Promise<string> => {
      await at.vm.guestFlush(target);
      const file = at.directory.file(`${target}.moment.raw`);
      await copyToRaw(at.directory.file(`${target}.qcow2`), "qcow2", file);
      return fileDigest(file);
    },
    restored: async (id: string, target: string): Promise<string> => {
      const to = at.directory.file(`restored-${id}`);
      await at.json("backup", "restore", id, "--to", to, "--format", "raw");
      return fileDigest(`${to}/${target}.raw`);
    },
  };
}

async function expectNothingLeft(at: Site): Promise<void> {
  expect(await readdir(at.directory.file("scratch"))).toEqual([]);
  expect(await readdir(at.directory.file("run"))).toEqual([]);
  expect(await readdir(at.directory.file("state/operations/vm"))).toEqual([]);
  expect(await daemons(at)).toEqual([]);
  const { nodes, devices, bitmaps, exports, jobs } = await at.vm.blockState();
  expect([...nodes, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
  expect(bitmaps.filter(({ name }) => !name.startsWith("fleece:1:"))).toEqual([]);
  expect([...exports, ...jobs]).toEqual([]);
}

/** Process ids of the storage daemons of a site. */
async function daemons(at: Site): Promise<number[]> {
  const directories = await readdir(at.directory.file("run")).catch(() => []);
  const found = await Promise.all(directories.map((name) => findDaemons(at.directory.file(`run/${name}`))));
  return found.flat().map(({ pid }) => pid);
}

/** Waits until QEMU copies for the command, and slows that down at once; fails if the command ends before. */
async function untilCopying(at: Site, command: FleeceProcess): Promise<void> {
  for (;;) {
    const [job] = (await at.vm.qmp("query-block-jobs")) as readonly { readonly device: string }[];
    if (job !== undefined) {
      await at.vm.qmp("block-job-set-speed", { device: job.device, speed: MIB });
      return;
    }
    expect(command.running).toBe(true);
  }
}

/** Numbers of the 64 KiB blocks that any NBD client is told to have a bit set in a context. */
async function blocks(uri: string, context: string, bit: number): Promise<number[]> {
  const { stdout } = await exec("nbdinfo", ["--json", `--map=${context}`, uri]);
  const extents = JSON.parse(stdout) as { offset: number; length: number; type: number }[];
  return extents
    .filter(({ type }) => (type & bit) !== 0)
    .flatMap(({ offset, length }) =>
      Array.from({ length: length / BLOCK }, (_, index) => offset / BLOCK + index),
    );
}

async function digest({ target, uri }: ExportMessage, at: Site): Promise<string> {
  const file = at.directory.file(`${target}.copy.raw`);
  await exec("nbdcopy", [uri, file]);
  return fileDigest(file);
}

describe("staged exports of a block snapshot", () => {
  it("show the frozen moment and its changes as direct ones do, and let go of the guest's disks", async () => {
    const at = await startStaged();
    await at.create("cp0", "--checkpoint");
    await at.remove("cp0");
    await at.vm.guestWrite("vda", 5 * BLOCK + 100, BLOCK, 0x77);
    await at.vm.guestDiscard("vdb", 20 * BLOCK, 2 * BLOCK);
    await at.vm.guestWriteZeroes("vdb", 30 * BLOCK, BLOCK);
    const moments = [await at.moment("vda"), await at.moment("vdb")];
    await at.create("night", "--checkpoint=cp1");
    const disturb = async () => {
      for (const target of ["vda", "vdb"]) {
        expect(await at.vm.guestWrite(target, 0, 2 * MIB, 0xee)).toMatchObject({ ok: true });
        expect(await at.vm.guestDiscard(target, 2 * MIB, MIB)).toMatchObject({ ok: true });
        expect(await at.vm.guestWrite(target, 7 * MIB, 512, 0xef)).toMatchObject({ ok: true });
      }
    };
    await disturb();
    const exports = await at.offer("--since", "cp0");
    const [vda, vdb] = exports as [ExportMessage, ExportMessage];
    for (const each of exports) {
      expect(each).toMatchObject({ changesContext: "qemu:dirty-bitmap:since-cp0", staged: true });
    }
    const { nodes, devices, exports: inQemu, jobs } = await at.vm.blockState();
    expect([...nodes, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
    expect([...inQemu, ...jobs]).toEqual([]);
    await disturb();
    expect([await digest(vda, at), await digest(vdb, at)]).toEqual(moments);
    expect(await blocks(vda.uri, "qemu:dirty-bitmap:since-cp0", 1)).toEqual([5, 6]);
    expect(await blocks(vdb.uri, "qemu:dirty-bitmap:since-cp0", 1)).toEqual([20, 21, 30]);
    const zero = await blocks(vdb.uri, "base:allocation", 2);
    expect(zero.filter((block) => block < 64)).toEqual([20, 21, 30]);
    expect(await at.offer("--since", "cp0")).toEqual(exports);
    const list = await at.run("export", "list");
    expect(list.stdout).toMatch(/STAGED.*\n.*vda-night .* yes /);
    await at.remove("night");
    await expectNothingLeft(at);
    await at.create("night");
    expect((await at.offer("--since", "cp1", "--disk", "vda"))[0]).toMatchObject({ staged: true });
    await at.remove("night");
  });

  it("can be ended and offered again, but know only the changes that were asked for first", async () => {
    const at = await startStaged();
    for (const name of ["cp0", "cp1"]) {
      await at.create(name, "--checkpoint");
      await at.remove(name);
    }
    await at.create("night");
    const exports = await at.offer("--since", "cp0", "--disk", "vda");
    await at.json("export", "stop", "vm", "--snapshot", "night");
    expect(await at.offer("--since", "cp0", "--disk", "vda")).toEqual(exports);
    await at.json("export", "stop", "vm", "--snapshot", "night");
    const other = await at.run(
      ...["export", "start", "vm", "--snapshot", "night", "--since", "cp1", "--disk", "vda"],
    );
    expect(other.stderr).toMatch(/did not ask about checkpoint cp1.*\(UNSUPPORTED\)/);
    const [vda] = await at.offer("--disk", "vda");
    expect(await digest(vda as never, at)).toBe(await at.moment("vda"));
    await at.remove("night");
    await expectNothingLeft(at);
  });

  it("keep clients away from QEMU: many that come and go, and one that says nothing", async () => {
    const at = await startStaged();
    await at.create("night");
    const [vda] = (await at.offer()) as [ExportMessage];
    const socketPath = new URL(vda.uri).searchParams.get("socket") ?? "";
    const silent = connect(socketPath).on("error", () => undefined);
    const pids = await daemons(at);
    for (let round = 0; round < 10; round++) {
      await Promise.all(
        Array.from({ length: 10 }, async (_, index) => {
          const client = await connectNbd({ socketPath, exportName: "vda-night" });
          expect((await client.read(index * BLOCK, 512))[0]).toBe(0x5a);
          await client.close();
        }),
      );
    }
    expect(await daemons(at)).toEqual(pids);
    expect(await at.vm.guestWrite("vda", 0, 512, 1)).toMatchObject({ ok: true });
    await at.remove("night");
    silent.destroy();
    await expectNothingLeft(at);
  });

  it("are refused when scratch space ran out before the copy (needs root for a mount)", async ({ skip }) => {
    const at = await startStaged();
    if (!(await mountTmpfs(at.directory.file("scratch"), "size=2m"))) skip("mount is not permitted here");
    await at.create("cp0", "--checkpoint");
    await at.remove("cp0");
    await at.vm.guestWrite("vda", 0, 512, 1);
    await at.create("night", "--checkpoint=cp1");
    expect(await at.vm.guestWrite("vda", 0, 4 * MIB, 0xee)).toMatchObject({ ok: true });
    // With room again, so that nothing else can be what fails.
    await exec("mount", ["-o", "remount,size=64m", at.directory.file("scratch")]);
    const start = await at.run("export", "start", "vm", "--snapshot", "night", "--since", "cp0");
    expect(start.stderr).toMatch(
      /disk vda is gone, likely because scratch space ran out.*\(SNAPSHOT_BROKEN\)/,
    );
    await at.json("block-snapshot", "delete", "vm", "night", "--failed");
    await expectNothingLeft(at);
  });

  it("are made anew when the command that made them was killed while QEMU copied", async () => {
    const at = await startStaged({ disks: BIG });
    const moment = await at.moment("vda");
    await at.create("night");
    const command = await at.start("export", "start", "vm", "--snapshot", "night");
    await untilCopying(at, command);
    await command.kill("SIGKILL");
    expect(await at.vm.guestWrite("vda", 0, 8 * MIB, 2)).toMatchObject({ ok: true });
    const [vda] = await at.offer();
    expect(await digest(vda as never, at)).toBe(moment);
    await at.remove("night");
    await expectNothingLeft(at);
  });
});

describe("backup run with staged exports", () => {
  it("fails with a coded error when the daemon is killed while QEMU copies, and the guest goes on", async () => {
    const at = await startStaged({ disks: BIG });
    const clean = await at.state();
    const command = await at.start("backup", "run", "vm");
    await untilCopying(at, command);
    for (const pid of await daemons(at)) process.kill(pid, "SIGKILL");
    expect(await at.vm.guestWrite("vda", 0, 512, 1)).toMatchObject({ ok: true });
    const result = await command.result();
    expect(result.stderr).toMatch(/qemu-storage-daemon was ended by SIGKILL \(QEMU_FAILED\)/);
    expect(result.exitCode).toBe(1);
    await expectNothingLeft(at);
    expect(await at.state()).toEqual(clean);
    const { id } = await at.json<{ id: string }>("backup", "run", "vm");
    expect(await at.restored(id, "vda")).toBe(await at.moment("vda"));
    await expectNothingLeft(at);
  });

  it.each(["SIGKILL", "SIGINT"] as const)(
    "leaves nothing when it gets %s while QEMU copies, and the next backup is exact",
    async (signal) => {
      const at = await startStaged({ disks: BIG });
      await at.json("backup", "run", "vm");
      for (let offset = 0; offset < 192 * MIB; offset += 4 * MIB) {
        await at.vm.guestWrite("vda", offset, 3 * MIB, (offset / MIB) % 251);
      }
      const command = await at.start("backup", "run", "vm");
      await untilCopying(at, command);
      const result = await command.kill(signal);
      if (signal === "SIGINT") {
        expect(result.stderr).toContain("(INTERRUPTED)");
        await expectNothingLeft(at);
      }
      expect(await at.vm.guestWrite("vda", 0, 512, 9)).toMatchObject({ ok: true });
      const { id, level } = await at.json<{ id: string; level: string }>("backup", "run", "vm");
      expect(level).toBe("INCREMENTAL");
      expect(await at.restored(id, "vda")).toBe(await at.moment("vda"));
      await expectNothingLeft(at);
    },
  );
});
