import { execFile } from "node:child_process";
import { readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { connectNbd } from "nbd-client-ts";
import { changedBlocks as changedBlocksOf } from "../support/changed-blocks.js";
import { expectRefusal } from "../support/expect-refusal.js";
import type { FleeceProcess } from "../support/fleece.js";
import { copyToRaw, fileDigest, imageInfo } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { mountTmpfs } from "../support/mount.js";
import { startSite, type SiteOptions } from "../support/site.js";

const exec = promisify(execFile);
const KIB = 1024;
const MIB = 1024 * KIB;
const BLOCK = 64 * KIB;

interface ExportMessage {
  readonly target: string;
  readonly exportName: string;
  readonly uri: string;
  readonly sizeBytes: string;
  readonly since?: string;
  readonly changesContext?: string;
}

interface SnapshotMessage {
  readonly name: string;
  readonly consistency: string;
  readonly checkpoint?: string;
  readonly leaseMs: string;
  readonly leaseEndTime: string;
  readonly disks: readonly { readonly target: string; readonly scratchFile?: string }[];
  readonly exports: readonly ExportMessage[];
}

interface Exports {
  readonly exports: readonly ExportMessage[];
}

/** A site with what these tests ask again and again. */
async function startWorkplace(options?: SiteOptions) {
  const at = await startSite(options);
  const snapshots = async (): Promise<string[]> =>
    (await at.json<{ snapshots: SnapshotMessage[] }>("block-snapshot", "list", "vm")).snapshots.map(
      ({ name }) => name,
    );
  const checkpoints = async (): Promise<string[]> =>
    (await at.json<{ checkpoints: { name: string }[] }>("checkpoint", "list", "vm")).checkpoints.map(
      ({ name }) => name,
    );
  return {
    ...at,
    snapshots,
    checkpoints,
    create: (name: string, ...args: string[]) =>
      at.json<SnapshotMessage>("block-snapshot", "create", "vm", "--name", name, ...args),
    remove: (name: string, ...args: string[]) => at.json("block-snapshot", "delete", "vm", name, ...args),
    offer: async (snapshot: string, ...args: string[]): Promise<readonly ExportMessage[]> =>
      (await at.json<Exports>("export", "start", "vm", "--snapshot", snapshot, ...args)).exports,
    /** The guest writes and discards all over both disks, over what is frozen and over what is not. */
    disturb: async (): Promise<void> => {
      for (const target of ["vda", "vdb"]) {
        expect(await at.vm.guestWrite(target, 0, 2 * MIB, 0xee)).toMatchObject({ ok: true });
        expect(await at.vm.guestDiscard(target, 2 * MIB, MIB)).toMatchObject({ ok: true });
        expect(await at.vm.guestWrite(target, 7 * MIB, 512, 0xef)).toMatchObject({ ok: true });
      }
    },
    /** What the disk holds now, as a raw file; the guest must be quiet. */
    moment: async (target: string): Promise<string> => {
      if (at.vm.running) await at.vm.guestFlush(target);
      const file = at.directory.file(`${target}.moment.raw`);
      await copyToRaw(at.directory.file(`${target}.qcow2`), "qcow2", file);
      return fileDigest(file);
    },
    read: async ({ target, uri }: ExportMessage): Promise<string> => {
      const file = at.directory.file(`${target}.copy.raw`);
      await exec("nbdcopy", [uri, file]);
      return fileDigest(file);
    },
    expectNothingLeft: async (): Promise<void> => {
      expect(await readdir(at.directory.file("scratch"))).toEqual([]);
      expect(await readdir(at.directory.file("run")).catch(() => [])).toEqual([]);
      const journal = at.directory.file("state/operations/vm");
      expect(await readdir(journal).catch(() => [])).toEqual([]);
      if (!at.vm.running) return;
      const { nodes, exports, devices } = await at.vm.blockState();
      expect([...nodes, ...exports, ...devices].filter((item) => item.includes("fleece"))).toEqual([]);
      await expect(at.vm.qmp("nbd-server-stop")).rejects.toThrow(/not running/i);
    },
  };
}

const changedBlocks = ({ uri, changesContext }: ExportMessage) => changedBlocksOf(uri, changesContext ?? "");

describe("block-snapshot and export of a running domain", () => {
  it("offer the frozen moment and exactly the blocks that changed, while the guest writes and discards", async () => {
    const at = await startWorkplace();
    const clean = await at.state();
    await at.create("first", "--checkpoint=cp0");
    await at.remove("first");
    await at.vm.guestWrite("vda", 5 * BLOCK + 100, BLOCK, 0x77);
    await at.vm.guestDiscard("vdb", 20 * BLOCK, 2 * BLOCK);
    const moments = [await at.moment("vda"), await at.moment("vdb")];
    const withCp0 = await at.state();
    const night = await at.create("night", "--checkpoint", "cp1");
    expect(night).toMatchObject({ consistency: "CRASH", checkpoint: "cp1", leaseMs: String(30 * 60_000) });
    expect(night.disks.map(({ target }) => target)).toEqual(["vda", "vdb"]);
    await at.disturb();
    const exports = await at.offer("night", "--since", "cp0");
    expect(exports).toMatchObject([
      { target: "vda", exportName: "vda-night", sizeBytes: String(8 * MIB), since: "cp0" },
      { target: "vdb", exportName: "vdb-night", changesContext: "qemu:dirty-bitmap:since-cp0" },
    ]);
    await at.disturb();
    expect([await at.read(exports[0] as never), await at.read(exports[1] as never)]).toEqual(moments);
    expect(await changedBlocks(exports[0] as never)).toEqual([5, 6]);
    expect(await changedBlocks(exports[1] as never)).toEqual([20, 21]);
    expect((await at.json<Exports>("export", "list")).exports).toEqual(exports);
    expect(await at.offer("night", "--since", "cp0")).toEqual(exports);
    await at.remove("night");
    await at.expectNothingLeft();
    expect(await at.checkpoints()).toEqual(["cp0", "cp1"]);
    await at.json("checkpoint", "delete", "vm", "cp1");
    expect(await at.state()).toEqual(withCp0);
    await at.json("checkpoint", "delete", "vm", "cp0");
    expect(await at.state()).toEqual(clean);
  });

  it("merge the checkpoint away when the consumer failed, so that the older one knows every block", async () => {
    const at = await startWorkplace();
    await at.create("cp0", "--checkpoint");
    await at.remove("cp0");
    const before = await at.state();
    await at.vm.guestWrite("vda", 2 * BLOCK, 512, 1);
    await at.create("night", "--checkpoint=cp1", "--disk", "vda");
    await at.offer("night");
    await at.vm.guestWrite("vda", 9 * BLOCK, 512, 2);
    await at.remove("night", "--failed");
    await at.expectNothingLeft();
    expect(await at.state()).toEqual(before);
    await at.vm.guestWrite("vda", 11 * BLOCK, 512, 3);
    await at.create("again");
    const [vda] = await at.offer("again", "--since", "cp0", "--disk", "vda");
    expect(await changedBlocks(vda as never)).toEqual([2, 9, 11]);
    await at.remove("again");
    expect(await at.state()).toEqual(before);
  });

  it("take names with every character that a name may have", async () => {
    const at = await startWorkplace();
    const before = await at.state();
    const name = "a.b:c+d@e=f-g_1";
    await at.create(name, "--checkpoint");
    const [vda] = await at.offer(name);
    expect(vda?.exportName).toBe(`vda-${name}`);
    expect(await at.read(vda as never)).toBe(await at.moment("vda"));
    await at.remove(name, "--failed");
    expect(await at.state()).toEqual(before);
  });

  it("end the exports although a client is connected, and once more without harm", async () => {
    const at = await startWorkplace();
    await at.create("cp0", "--checkpoint");
    await at.remove("cp0");
    await at.create("night");
    const [vda] = await at.offer("night", "--disk", "vda");
    await at.offer("night", "--disk", "vdb", "--since", "cp0");
    const socketPath = at.directory.file(
      `run/${(await readdir(at.directory.file("run")))[0] ?? ""}/nbd.sock`,
    );
    const client = untilTestEnds(await connectNbd({ socketPath, exportName: vda?.exportName ?? "" }));
    expect((await client.read(0, 512)).length).toBe(512);
    const stopped = await at.json<Exports>("export", "stop", "vm", "--snapshot", "night");
    expect(stopped.exports.map(({ target }) => target)).toEqual(["vda", "vdb"]);
    expect((await at.vm.blockState()).exports).toEqual([]);
    await expect(client.read(0, 512)).rejects.toThrow();
    const again = await at.run("export", "stop", "vm", "--snapshot", "night");
    expect(again).toMatchObject({ exitCode: 0, stderr: "" });
    expect((await at.json<Exports>("export", "list", "vm")).exports).toEqual([]);
    const [anew] = await at.offer("night", "--since", "cp0");
    expect(await changedBlocks(anew as never)).toEqual([]);
    await at.remove("night");
    await at.expectNothingLeft();
  });

  it("refuse names that are taken, disks that are held, and what does not exist", async () => {
    const at = await startWorkplace();
    await at.create("night", "--checkpoint=cp1", "--disk", "vda");
    await at.offer("night");
    const before = await at.state();
    const create = ["block-snapshot", "create", "vm"];
    const start = ["export", "start", "vm", "--snapshot"];
    await expectRefusal(at, [...create, "--name", "night", "--disk", "vdb"], 4, /night.*\(ALREADY_EXISTS\)/);
    await expectRefusal(at, [...create, "--disk", "vdb", "--checkpoint=cp1"], 4, /cp1.*\(ALREADY_EXISTS\)/);
    const held = /Disk vda of domain vm is held by block snapshot night until.*\(DOMAIN_BUSY\)/;
    await expectRefusal(at, create, 4, held);
    await expectRefusal(at, ["backup", "run", "vm"], 4, held);
    await expectRefusal(at, [...start, "nigt"], 3, /it has night \(SNAPSHOT_NOT_FOUND\)/);
    await expectRefusal(at, [...start, "night", "--disk", "vdb"], 3, /it has vda \(DISK_NOT_FOUND\)/);
    await expectRefusal(at, [...start, "night", "--since", "cp9"], 3, /\(CHECKPOINT_NOT_FOUND\)/);
    await expectRefusal(at, [...start, "night", "--since", "cp1"], 2, /before block snapshot night, got cp1/);
    await expectRefusal(at, ["export", "stop", "vm", "--snapshot", "x"], 3, /\(SNAPSHOT_NOT_FOUND\)/);
    await expectRefusal(at, ["block-snapshot", "delete", "vm", "x"], 3, /\(SNAPSHOT_NOT_FOUND\)/);
    await expectRefusal(at, ["block-snapshot", "list", "xx"], 3, /\(DOMAIN_NOT_FOUND\)/);
    await expectRefusal(at, [...create, "--lease", "32d"], 2, /1 second to 31 days.*\(INVALID_ARGUMENT\)/);
    expect(await at.state()).toEqual(before);
    const backup = await at.json<{ disks: { target: string }[] }>("backup", "run", "vm", "--disk", "vdb");
    expect(backup.disks.map(({ target }) => target)).toEqual(["vdb"]);
    await at.create("other", "--disk", "vdb");
    await at.offer("other");
    await at.remove("night");
    expect((await at.json<Exports>("export", "list", "vm")).exports).toMatchObject([{ target: "vdb" }]);
    await at.remove("other");
    await at.expectNothingLeft();
  });

  it("keep what an earlier export needs when a later one fails", async () => {
    const at = await startWorkplace();
    await at.create("cp0", "--checkpoint", "--disk", "vda");
    await at.remove("cp0");
    await at.create("night");
    const [vda] = await at.offer("night", "--disk", "vda", "--since", "cp0");
    const start = ["export", "start", "vm", "--snapshot", "night"];
    await expectRefusal(at, start, 4, /Disk vda .*changes since cp0.*\(ALREADY_EXISTS\)/);
    await expectRefusal(at, [...start, "--since", "cp0"], 1, /Disk vdb.*\(CHECKPOINT_INVALID\)/);
    await at.vm.qmp("block-export-add", {
      ...{ type: "nbd", id: "theirs", "node-name": "vdb-format", name: "vdb-night" },
    });
    await expectRefusal(at, [...start, "--disk", "vdb"], 1, /already has.*\(QEMU_FAILED\)/);
    await at.vm.qmp("block-export-del", { id: "theirs" });
    expect(await at.read(vda as never)).toBe(await at.moment("vda"));
    await at.remove("night");
    await at.expectNothingLeft();
  });
});

describe("backup run", () => {
  it("stores the frozen content of blocks that the guest discards or zeroes before they are read", async () => {
    const disks = [{ target: "vda", format: "qcow2" as const, sizeBytes: 256 * MIB, filledBytes: 256 * MIB }];
    const at = await startWorkplace({ disks });
    const moment = await at.moment("vda");
    const command = await at.start("backup", "run", "vm", "--json");
    while (!(await at.vm.blockState()).exports.length && command.running) await delay(1);
    process.kill(command.pid, "SIGSTOP");
    for (let offset = 0; offset < 256 * MIB; offset += 8 * MIB) {
      await at.vm.guestDiscard("vda", offset, MIB);
      await at.vm.guestWriteZeroes("vda", offset + 3 * MIB, MIB, { unmap: true });
    }
    expect(command.running).toBe(true);
    process.kill(command.pid, "SIGCONT");
    const result = await command.result();
    expect(result.stderr).toBe("");
    const { id } = result.json() as { id: string };
    const to = at.directory.file("restored");
    await at.json("backup", "restore", id, "--to", to, "--format", "raw");
    expect(await fileDigest(`${to}/vda.raw`)).toBe(moment);
  });
});

describe("a block snapshot whose scratch space runs out", () => {
  it.for(["while exported", "after `export stop`"])(
    "lets the guest write, and is refused as a success %s (needs root for a mount)",
    async (when, { skip }) => {
      const at = await startWorkplace();
      if (!(await mountTmpfs(at.directory.file("scratch"), "size=2m"))) skip("mount is not permitted here");
      await at.create("night", "--checkpoint=cp1");
      const [vda] = await at.offer("night");
      await at.read(vda as never);
      expect(await at.vm.guestWrite("vda", 0, 4 * MIB, 0xee)).toMatchObject({ ok: true });
      expect(await at.vm.guestRead("vda", 0, 4 * MIB, 0xee)).toMatchObject({ ok: true });
      if (when !== "while exported") await at.json("export", "stop", "vm", "--snapshot", "night");
      const args = ["block-snapshot", "delete", "vm", "night"];
      await expectRefusal(at, args, 1, /cp1 does not count.*scratch space ran out.*\(SNAPSHOT_BROKEN\)/);
      expect(await at.checkpoints()).toEqual([]);
      await at.expectNothingLeft();
    },
  );
});

describe("the lease of a block snapshot", () => {
  it("ends it as failed, by whatever command comes next", async () => {
    const at = await startWorkplace();
    await at.create("cp0", "--checkpoint");
    await at.remove("cp0");
    const before = await at.state();
    const { leaseEndTime } = await at.create("brief", "--checkpoint", "--lease", "1s");
    await at.vm.guestWrite("vda", 3 * BLOCK, 512, 1);
    while (Date.now() <= Date.parse(leaseEndTime)) await delay(20);
    await at.run("domain", "list");
    expect(await at.state()).toEqual(before);
    await expectRefusal(at, ["block-snapshot", "renew", "vm", "brief"], 3, /\(SNAPSHOT_NOT_FOUND\)/);
    await at.create("next");
    const [vda] = await at.offer("next", "--since", "cp0");
    expect(await changedBlocks(vda as never)).toEqual([3]);
    await at.remove("next");
  });

  it("starts anew when it is renewed, with the same length or another", async () => {
    const at = await startWorkplace();
    const { leaseEndTime: first } = await at.create("night", "--lease", "20s");
    const renew = (...args: string[]) =>
      at.json<SnapshotMessage>("block-snapshot", "renew", "vm", "night", ...args);
    const { leaseEndTime: second, leaseMs } = await renew();
    expect(leaseMs).toBe("20000");
    expect(Date.parse(second)).toBeGreaterThan(Date.parse(first));
    const third = await renew("--lease", "2h");
    expect(Date.parse(third.leaseEndTime)).toBeGreaterThan(Date.parse(first) + 3_600_000);
    expect(await at.json("block-snapshot", "show", "vm", "night")).toEqual(third);
    const { leaseEndTime: last } = await renew("--lease", "1s");
    while (Date.now() <= Date.parse(last)) await delay(20);
    expect(await at.snapshots()).toEqual([]);
    await at.expectNothingLeft();
  });
});

describe("a block snapshot whose VM restarts", () => {
  it.each(["quit", "kill"] as const)(
    "is broken after a %s: success is refused, all is cleaned",
    async (how) => {
      const at = await startWorkplace();
      await at.create("night", "--checkpoint=cp1");
      await at.offer("night");
      await at.vm[how]();
      await at.vm.restart();
      const start = ["export", "start", "vm", "--snapshot", "night"];
      await expectRefusal(at, start, 1, /\(SNAPSHOT_BROKEN\)/);
      await expectRefusal(
        at,
        ["block-snapshot", "delete", "vm", "night"],
        1,
        /ended as failed, and checkpoint cp1 does not count.*\(SNAPSHOT_BROKEN\)/,
      );
      expect(await at.checkpoints()).toEqual([]);
      await at.expectNothingLeft();
      await expectRefusal(at, ["block-snapshot", "delete", "vm", "night"], 3, /\(SNAPSHOT_NOT_FOUND\)/);
    },
  );

  it("does not keep a backup from running", async () => {
    const at = await startWorkplace();
    await at.create("night", "--checkpoint=cp1");
    await at.vm.restart();
    const backup = await at.json<{ id: string }>("backup", "run", "vm");
    expect(await at.checkpoints()).toEqual(["cp1", backup.id]);
    await at.remove("night", "--failed");
    expect(await at.checkpoints()).toEqual([backup.id]);
    await at.vm.guestWrite("vda", 0, 512, 1);
    expect(await at.json("backup", "run", "vm")).toMatchObject({ level: "INCREMENTAL", parent: backup.id });
    await at.expectNothingLeft();
  });
});

describe("block-snapshot and export of an inactive domain", () => {
  it("offer content and changes through a daemon that outlives the command, and leave nothing", async () => {
    const at = await startWorkplace();
    await at.create("cp0", "--checkpoint");
    await at.remove("cp0");
    await at.vm.guestWrite("vda", 4 * BLOCK, 512, 7);
    await at.vm.quit();
    const moment = await at.moment("vda");
    expect(await at.create("night", "--checkpoint=cp1")).toMatchObject({ consistency: "CLEAN" });
    const start = ["--since", "cp0"];
    const exports = await at.offer("night", ...start);
    expect(await at.read(exports[0] as never)).toBe(moment);
    expect(await changedBlocks(exports[0] as never)).toEqual([4]);
    expect(await changedBlocks(exports[1] as never)).toEqual([]);
    await at.json("export", "stop", "vm", "--snapshot", "night");
    expect(await at.offer("night", ...start)).toEqual(exports);
    expect(await changedBlocks(exports[0] as never)).toEqual([4]);
    const held = /held by block snapshot night.*\(DOMAIN_BUSY\)/;
    await expectRefusal(at, ["backup", "run", "vm"], 4, held);
    await expectRefusal(at, ["checkpoint", "delete", "vm", "cp0"], 4, held);
    await at.remove("night");
    await at.expectNothingLeft();
    expect(await at.checkpoints()).toEqual(["cp0", "cp1"]);
    await at.vm.restart();
    await at.vm.guestWrite("vdb", 6 * BLOCK, 512, 8);
    await at.create("next");
    const [vda, vdb] = await at.offer("next", "--since", "cp1");
    expect([await changedBlocks(vda as never), await changedBlocks(vdb as never)]).toEqual([[], [6]]);
    await at.remove("next");
    await at.expectNothingLeft();
  });

  it.each([
    ["still runs", /was started.*\(SNAPSHOT_BROKEN\)/, 1],
    ["has stopped again", /was changed.*\(DISK_CHANGED\)/, 4],
  ] as const)(
    "let the guest start; success is refused when it %s, and the checkpoint is merged away",
    async (how, message, exitCode) => {
      const at = await startWorkplace();
      await at.create("cp0", "--checkpoint");
      await at.remove("cp0");
      await at.vm.quit();
      await at.create("night", "--checkpoint=cp1");
      const [vda] = await at.offer("night", "--since", "cp0");
      await at.read(vda as never);
      await at.vm.restart();
      await at.vm.guestWrite("vda", 2 * BLOCK, 512, 1);
      if (how === "has stopped again") await at.vm.quit();
      await expectRefusal(at, ["block-snapshot", "delete", "vm", "night"], exitCode, message);
      expect(await at.checkpoints()).toEqual(["cp0"]);
      await at.expectNothingLeft();
      if (!at.vm.running) await at.vm.restart();
      await at.create("next");
      const [next] = await at.offer("next", "--since", "cp0");
      expect(await changedBlocks(next as never)).toEqual([2]);
      await at.remove("next");
    },
  );

  it("end with their lease, daemon and all", async () => {
    const at = await startWorkplace();
    await at.vm.quit();
    const { leaseEndTime } = await at.create("brief", "--checkpoint", "--lease", "1s");
    while (Date.now() <= Date.parse(leaseEndTime)) await delay(20);
    expect(await at.snapshots()).toEqual([]);
    await at.expectNothingLeft();
    expect((await imageInfo(at.directory.file("vda.qcow2"), "qcow2")).bitmaps).toEqual([]);
  });
});

describe("a command on a block snapshot that is killed with SIGKILL", () => {
  /** Kills the command as soon as `reached` says so, unless it comes to its end before. */
  async function killWhen(command: FleeceProcess, reached: () => Promise<boolean>): Promise<void> {
    while (command.running) {
      if (!(await reached())) continue;
      await command.kill("SIGKILL");
      return;
    }
  }

  it("goes on with `delete` as it was meant, wherever that was", async () => {
    const at = await startWorkplace();
    const instants = [
      async () => (await at.vm.blockState()).exports.length < 2,
      async () => !(await at.vm.blockState()).devices.some((device) => device.includes("fleece-")),
    ];
    for (const [index, reached] of instants.entries()) {
      const name = `n${index}`;
      await at.create(name, "--checkpoint");
      await at.offer(name);
      await killWhen(await at.start("block-snapshot", "delete", "vm", name), reached);
      expect(await at.snapshots()).toEqual([]);
      await at.expectNothingLeft();
      expect(await at.checkpoints()).toEqual(index === 0 ? ["n0"] : ["n0", "n1"]);
    }
  });
});
