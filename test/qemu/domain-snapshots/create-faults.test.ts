import { chmod, mkdir, readdir, truncate, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { loadConfig } from "../../../src/agent.js";
import { QemuTakers } from "../../../src/drivers/machine/takers.js";
import { systemClock } from "../../../src/drivers/system-clock.js";
import type { DomainSnapshotProgress } from "../../../src/model/domain-snapshot.js";
import type { SnapshotFiles } from "../../../src/ports/snapshot-files.js";
import type { SnapshotTakers } from "../../../src/ports/snapshot-taker.js";
import { mountTmpfs } from "../../support/mount.js";
import { ALL_FAULTS } from "../../support/sample.js";
import { type BareScene, FILL_BYTES, FILL_PATTERN, startBareScene } from "./bare-scene.js";

/** Fails unless a snapshot can be taken now: nothing of a former one is in its way. */
async function expectPossible(scene: BareScene): Promise<void> {
  const snapshot = await scene.create({ name: "after" });
  expect(snapshot.memory).toBeDefined();
  expect(await scene.status()).toBe("running");
  expect((await scene.vm.guestRead("vda", 0, FILL_BYTES, FILL_PATTERN)).ok).toBe(true);
}

async function takersOf(
  { directory }: BareScene,
  limit: { readonly convergeWithinMs?: number } = {},
): Promise<QemuTakers> {
  const { domains } = await loadConfig(directory.file("fleece.yaml"));
  return new QemuTakers({ domains, clock: systemClock, runtimeRoot: directory.file("run"), ...limit });
}

function expectRefusedStop(error: unknown): void {
  expect(error).toMatchObject({ message: expect.stringContaining("stop failed: Refused") as string });
}

/** Calls `action` once, when a phase begins. */
function at(phase: DomainSnapshotProgress["phase"], action: () => void): (p: DomainSnapshotProgress) => void {
  let done = false;
  return (progress) => {
    if (progress.phase !== phase || done) return;
    done = true;
    action();
  };
}

describe("createDomainSnapshot when something fails", () => {
  it.each([
    ...["blockdev-add", "query-migrate-capabilities", "migrate-set-parameters"],
    ...["stop", "migrate", "transaction"],
  ])("leaves nothing, and the guest running, when QEMU refuses %s", async (command) => {
    const scene = await startBareScene({ proxied: true });
    scene.proxy.refuse(new RegExp(`"execute":"${command}"`));
    await expect(scene.create({ name: "s" })).rejects.toMatchObject({ code: "QEMU_FAILED" });
    expect(scene.proxy.hasRefused).toBe(true);
    await scene.expectUntouched();
    await expectPossible(scene);
  });

  it("completes the snapshot when the guest can be continued only at the second try", async () => {
    const scene = await startBareScene({ proxied: true });
    scene.proxy.refuse(/"execute":"cont"/);
    const snapshot = await scene.create({ name: "s" });
    expect(scene.proxy.hasRefused).toBe(true);
    expect(snapshot.memory).toBeDefined();
    expect(await scene.status()).toBe("running");
    expect(await scene.context.store.operations("vm")).toEqual([]);
  });

  it.each([false, true])(
    "lets the guest go on when it is cancelled in the midst (live: %s)",
    async (live) => {
      const scene = await startBareScene();
      const stop = new AbortController();
      const onProgress = at("memory", () => stop.abort(new Error("No more")));
      await expect(scene.create({ name: "s", live }, { signal: stop.signal, onProgress })).rejects.toThrow(
        "No more",
      );
      await scene.expectUntouched();
      await expectPossible(scene);
    },
  );

  it("lets the guest go on when there is no room for its memory after all", async ({ skip }) => {
    const scene = await startBareScene();
    const full = scene.directory.file("full");
    await mkdir(full);
    if (!(await mountTmpfs(full, "size=64k"))) skip("cannot mount here");
    await expect(scene.create({ name: "s", memoryPath: full })).rejects.toMatchObject({ code: "NO_SPACE" });
    await scene.expectUntouched();
    const { snapshotFiles } = scene.context;
    const lying: SnapshotFiles = {
      ...snapshotFiles,
      place: async (path) => ({
        device: path,
        freeBytes: (await snapshotFiles.place(path)) === undefined ? 0 : 2 ** 40,
      }),
    };
    await expect(
      scene.create({ name: "s", memoryPath: `${full}/s.save` }, { snapshotFiles: lying }),
    ).rejects.toMatchObject({ code: "NO_SPACE" });
    expect(await readdir(full)).toEqual([]);
    await scene.expectUntouched();
    await expectPossible(scene);
  });

  it("lets the guest go on when its memory is not copied to the end", async () => {
    const scene = await startBareScene();
    const bin = scene.directory.file("bin");
    await mkdir(bin);
    await writeFile(
      `${bin}/cat`,
      "#!/bin/sh\nhead -c 1000\necho 'cat: write error: Input/output error' >&2\nexit 1\n",
    );
    await chmod(`${bin}/cat`, 0o755);
    vi.stubEnv("PATH", `${bin}:${process.env["PATH"] ?? ""}`);
    onTestFinished(() => void vi.unstubAllEnvs());
    await expect(scene.create({ name: "s" })).rejects.toMatchObject({
      code: "MEMORY_SAVE_FAILED",
      message: expect.stringContaining("write error: Input/output error") as unknown,
    });
    await scene.expectUntouched();
    vi.unstubAllEnvs();
    await expectPossible(scene);
  });

  it("keeps the disks when the memory turns out to be lost after they have changed", async () => {
    const scene = await startBareScene();
    const { snapshotFiles } = scene.context;
    const losing: SnapshotFiles = {
      ...snapshotFiles,
      sealMemory: async (path, sizeBytes) => {
        await truncate(path, 100);
        return snapshotFiles.sealMemory(path, sizeBytes);
      },
    };
    await expect(scene.create({ name: "s" }, { snapshotFiles: losing })).rejects.toMatchObject({
      code: "MEMORY_SAVE_FAILED",
    });
    const { snapshots, current } = await scene.context.domainSnapshots.read("vm");
    expect(current).toBe("s");
    expect(snapshots).toMatchObject([{ name: "s", consistency: "crash" }]);
    expect(snapshots[0]).not.toHaveProperty("memory");
    expect(await scene.leftovers()).toEqual(["snapshots.json", "vda-s.qcow2", "vdb-s.qcow2"]);
    await expectPossible(scene);
  });

  it("leaves nothing when QEMU is killed while it saves", async () => {
    const scene = await startBareScene();
    const onProgress = at("memory", () => process.kill(scene.vm.pid, "SIGKILL"));
    await expect(scene.create({ name: "s" }, { onProgress })).rejects.toMatchObject({
      code: "DOMAIN_UNREACHABLE",
    });
    expect(await scene.leftovers()).toEqual([]);
    await scene.vm.restart();
    expect((await scene.vm.guestRead("vdb", 0, FILL_BYTES, FILL_PATTERN)).ok).toBe(true);
    await expectPossible(scene);
  });

  it("has the snapshot when QEMU is killed just before the disks change: overlays and disks show the same", async () => {
    const scene = await startBareScene();
    const { takers } = scene.context;
    const killing: SnapshotTakers = {
      open: async (...args) => {
        const taker = await takers.open(...args);
        const take = taker.take.bind(taker);
        taker.take = (plan, options) =>
          take(plan, {
            ...options,
            beforeDisks: async (moment) => {
              await options.beforeDisks(moment);
              await scene.vm.kill();
            },
          });
        return taker;
      },
    };
    const snapshot = await scene.create({ name: "s" }, { takers: killing });
    expect(snapshot.memory).toBeDefined();
    const { layers } = await scene.context.domainSnapshots.read("vm");
    expect(layers.map(({ active }) => dirname(active))).toEqual(
      layers.map(() => scene.directory.file("state/domain-snapshots/vm")),
    );
    expect(await scene.context.store.operations("vm")).toEqual([]);
  });

  it("stops a live guest that changes its memory for too long", async () => {
    const scene = await startBareScene({ proxied: true });
    const patient = await takersOf(scene);
    const hasty = await takersOf(scene, { convergeWithinMs: 0 });
    scene.proxy.refuse(/"execute":"stop"/);
    expect(await scene.create({ name: "patient", live: true }, { takers: patient })).toMatchObject({
      live: true,
    });
    expect(scene.proxy.hasRefused).toBe(false);
    // So slowly that it has not come to its end when the guest is stopped.
    scene.proxy.rewrite(/"max-bandwidth":\d+/, '"max-bandwidth":100000');
    await expect(scene.create({ name: "s", live: true }, { takers: hasty })).rejects.toThrow(
      /stop failed: Refused/,
    );
    expect(await scene.status()).toBe("running");
    // QEMU 7.2 aborts here if it has not taken its images back.
    expect((await scene.vm.guestWrite("vdb", 4 << 20, 65_536, 0x11)).ok).toBe(true);
    expect(await scene.create({ name: "hasty", live: true }, { takers: hasty })).toMatchObject({
      state: "running",
    });
    expect(await scene.status()).toBe("running");
  });

  it("keeps a live guest's images usable when its save is broken off near its end", async () => {
    const scene = await startBareScene({ proxied: true });
    const takers = await takersOf(scene, { convergeWithinMs: 0 });
    for (let round = 0; round < (ALL_FAULTS ? 40 : 4); round += 1) {
      scene.proxy.refuse(/"execute":"stop"/);
      // QEMU may be faster than our word.
      await scene.create({ name: `s${round}`, live: true }, { takers }).catch(expectRefusedStop);
      expect(await scene.status()).toBe("running");
      expect((await scene.vm.guestWrite("vdb", 4 << 20, 65_536, round)).ok).toBe(true);
    }
  });

  it("refuses a second one while a block job works, and names it", async () => {
    const scene = await startBareScene();
    await scene.vm.qmp("blockdev-add", { driver: "null-co", "node-name": "sink", size: 8 << 20 });
    await scene.vm.qmp("blockdev-backup", {
      "job-id": "theirs",
      device: "vda-format",
      target: "sink",
      sync: "full",
      speed: 1,
    });
    await expect(scene.create()).rejects.toMatchObject({
      code: "DOMAIN_BUSY",
      message: expect.stringContaining("theirs") as string,
    });
    expect(await scene.leftovers()).toEqual([]);
  });
});
