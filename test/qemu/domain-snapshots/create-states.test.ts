import { readdir, stat } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { SnapshotTaker, SnapshotTakers } from "../../../src/ports/snapshot-taker.js";
import { runCommand } from "../../guest/commands.js";
import { qemuImg } from "../../support/image-tool.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { ScriptedGuestAgent } from "../../support/scripted-guest-agent.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { type BareScene, CHECKPOINT_BITMAP, FILL_BYTES, FILL_PATTERN, startBareScene } from "./bare-scene.js";
import { startCounterScene } from "./counter-scene.js";

/** Fails unless the file shows the pattern, though QEMU may have it open. */
async function expectPattern(file: string, format: string, pattern: number): Promise<void> {
  const info = JSON.parse(await qemuImg("info", "-U", "--output=json", "-f", format, file)) as {
    readonly "virtual-size": number;
  };
  expect(info["virtual-size"]).toBe(8 << 20);
  const verdict = await runCommand("qemu-io", [
    "-U",
    "-r",
    "-f",
    format,
    "-c",
    `read -P ${pattern} 0 64k`,
    file,
  ]);
  expect(verdict.toString()).not.toContain("verification failed");
}

interface NamedNode {
  readonly "node-name"?: string;
  readonly file: string;
  readonly "dirty-bitmaps"?: readonly {
    readonly name?: string;
    readonly recording: boolean;
    readonly count: number;
  }[];
}

async function nodeOf(vm: TestVm, file: string): Promise<NamedNode | undefined> {
  const nodes = (await vm.qmp("query-named-block-nodes", { flat: true })) as readonly NamedNode[];
  return nodes.find((node) => node.file === file && node["node-name"]?.startsWith("#") === false);
}

async function overlays({ context }: BareScene): Promise<readonly string[]> {
  return (await context.domainSnapshots.read("vm")).layers.map(({ active }) => active);
}

describe("createDomainSnapshot", () => {
  it("leaves the disks as they were at the moment, and checkpoints record in the overlays", async () => {
    const scene = await startBareScene();
    const { vm } = scene;
    const snapshot = await scene.create({ name: "s", description: "words" });
    expect((await vm.guestWrite("vda", 0, 131_072, 0x77)).ok).toBe(true);
    expect((await vm.guestWrite("vdb", 0, 131_072, 0x77)).ok).toBe(true);

    expect(snapshot).toMatchObject({ description: "words", state: "running", clones: [] });
    expect(snapshot.disks[0]?.bitmaps).toEqual([CHECKPOINT_BITMAP]);
    expect(snapshot.machine).toMatchObject({ cpus: 1, memoryBytes: 64 << 20 });
    expect(snapshot.machine?.type).toMatch(/^pc-q35-\d/);
    expect(snapshot.machine?.devices).toContainEqual(
      expect.stringMatching(/^virtio-blk-pci pcie\.0 \d\d\.0 vda$/),
    );
    for (const { file, format } of snapshot.disks) await expectPattern(file, format, FILL_PATTERN);
    for (const file of await overlays(scene)) await expectPattern(file, "qcow2", 0x77);
    const active = await nodeOf(vm, scene.directory.file("state/domain-snapshots/vm/vda-s.qcow2"));
    expect(active?.["dirty-bitmaps"]).toMatchObject([
      { name: CHECKPOINT_BITMAP, recording: true, count: 131_072 },
    ]);
    const files = await scene.leftovers();
    expect(files).toEqual(["s.save", "snapshots.json", "vda-s.qcow2", "vdb-s.qcow2"]);
    for (const name of files) {
      const { mode } = await stat(scene.directory.file(`state/domain-snapshots/vm/${name}`));
      expect(mode & 0o777).toBe(0o600);
    }
    await vm.quit();
    expect(await qemuImg("check", "-q", (await overlays(scene))[0] ?? "")).toBe("");
  });

  it("takes disks alone of a running domain, without stopping it", async () => {
    const scene = await startBareScene();
    const directory = scene.directory.file("own");
    const snapshot = await scene.create({ name: "d", diskOnly: true, directory, disks: [{ disk: "vdb" }] });
    expect(snapshot).toMatchObject({ consistency: "crash", pausedMs: 0, directory });
    expect(snapshot).not.toHaveProperty("memory");
    expect(snapshot.disks.map(({ target }) => target)).toEqual(["vdb"]);
    expect(await readdir(directory)).toEqual(["vdb-d.qcow2"]);
    expect(scene.vm.events.filter(({ name }) => name === "STOP")).toEqual([]);
    await expect(scene.create({ name: "e", diskOnly: true, directory })).rejects.toMatchObject({
      code: "ALREADY_EXISTS",
    });
  });

  it("freezes the guest's file systems for disks alone, if asked", async () => {
    const scene = await startBareScene();
    const agent = untilTestEnds(await ScriptedGuestAgent.listen(scene.directory.file("qga")));
    const snapshot = await scene.create({ name: "q", diskOnly: true, quiesce: true });
    expect(snapshot).toMatchObject({ consistency: "filesystem", pausedMs: 0 });
    expect(agent.commands).toContain("guest-fsfreeze-freeze");
    expect(agent.frozen).toBe(false);
    expect(await scene.context.store.operations("vm")).toEqual([]);
  });

  it("takes an inactive domain, whose next start is on the overlays", async () => {
    const scene = await startBareScene();
    await scene.vm.quit();
    const snapshot = await scene.create({ name: "off" });
    expect(snapshot).toMatchObject({ state: "inactive", consistency: "clean", pausedMs: 0 });
    expect(snapshot.disks[0]?.bitmaps).toEqual([CHECKPOINT_BITMAP]);
    expect(await scene.leftovers()).toEqual(["snapshots.json", "vda-off.qcow2", "vdb-off.qcow2"]);
    const { layers } = await scene.context.domainSnapshots.read("vm");
    const disks: TestDisk[] = layers.map(({ target, active }) => ({ target, path: active, format: "qcow2" }));
    const next = untilTestEnds(await TestVm.start({ directory: scene.directory.path, name: "next", disks }));
    expect((await next.guestRead("vdb", 0, FILL_BYTES, FILL_PATTERN)).ok).toBe(true);
    expect((await next.guestWrite("vda", 0, 65_536, 0x77)).ok).toBe(true);
    const node = await nodeOf(next, layers[0]?.active ?? "");
    expect(node?.["dirty-bitmaps"]).toMatchObject([
      { name: CHECKPOINT_BITMAP, recording: true, count: 65_536 },
    ]);
    await expectPattern(scene.vm.disk("vda").path, "qcow2", FILL_PATTERN);
  });

  it("gives way to a guest that is started meanwhile", async () => {
    const scene = await startBareScene();
    await scene.vm.quit();
    const taking = scene.create({ name: "late" }, { takers: startedMeanwhile(scene) });
    await expect(taking).rejects.toMatchObject({
      code: expect.stringMatching(/^DISK_(IN_USE|CHANGED)$/) as string,
    });
    await scene.expectUntouched();
  });

  it("saves memory whatever migrations are set up to be, and leaves that as it was", async () => {
    const scene = await startBareScene();
    const { vm } = scene;
    const capabilities = async () =>
      (await vm.qmp("query-migrate-capabilities")) as { capability: string; state: boolean }[];
    const known = new Set((await capabilities()).map(({ capability }) => capability));
    const settings = [
      ["postcopy-ram", "postcopy-preempt"],
      ["multifd", "zero-copy-send"],
      // QEMU 10.0 has these.
      ["return-path", "switchover-ack"],
      ["mapped-ram"],
    ].filter((names) => names.every((name) => known.has(name)));
    for (const [index, names] of settings.entries()) {
      const set = (state: boolean) =>
        vm.qmp("migrate-set-capabilities", {
          capabilities: names.map((capability) => ({ capability, state })),
        });
      await set(true);
      const before = await capabilities();
      const { memory } = await scene.create({ name: `s${index}` });
      expect(memory?.sizeBytes).toBeGreaterThan(0);
      expect(await capabilities()).toEqual(before);
      await set(false);
    }
    expect(settings.length).toBeGreaterThan(1);
  });

  it("keeps a paused guest paused, and takes it as it is", async () => {
    const scene = await startCounterScene(["qcow2"]);
    const { guest } = scene;
    await guest.vm.qmp("stop");
    const snapshot = await scene.create({ name: "p", live: true });
    expect(snapshot).toMatchObject({ state: "paused", live: false, pausedMs: 0 });
    expect(await scene.status()).toBe("paused");
    expect(await scene.create({ name: "again" })).toMatchObject({ state: "paused", parent: "p" });
    const before = guest.counter.count();
    await guest.vm.qmp("cont");
    await scene.expectCounting();
    const second = await scene.load(snapshot);
    await second.vm.qmp("cont");
    await second.counter.waitTurns(3);
    expect(second.counter.count()).toBeGreaterThanOrEqual(before);
    expect(second.counter.mismatches()).toEqual([]);
  });
});

/** Starts the domain just after its overlays have been made. */
function startedMeanwhile({ context: { takers }, vm }: BareScene): SnapshotTakers {
  const open = async (domain: string): Promise<SnapshotTaker> => {
    const taker = await takers.open(domain);
    const addOverlays = taker.addOverlays.bind(taker);
    taker.addOverlays = async (...args) => {
      await addOverlays(...args);
      await vm.restart();
    };
    return taker;
  };
  return { open };
}
