import { existsSync, renameSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { DomainSnapshot, DomainSnapshotProgress } from "../../../src/model/domain-snapshot.js";
import { restoreBackup } from "../../../src/services/backup-read.js";
import { runBackup } from "../../../src/services/backup-run.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { inspectDomain } from "../../../src/services/domains.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { domainConfig } from "../../support/config-file.js";
import { compareImages, imageInfo, qemuImg, writeImage } from "../../support/image-tool.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { Monitor } from "../../support/monitor.js";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { DiskFormat, TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { leftoversOf, startQuietAgent } from "./support/quiet-agent.js";
import { ALL_FAULTS } from "../../support/sample.js";

const MIB = 1024 * 1024;
const BLOCK = 65_536;
const DOMAIN = "vm";

interface SceneOptions extends Pick<TestDisk, "bus" | "iothread"> {
  /** For qemu-img. */
  readonly options?: readonly string[];
}

/** A domain with one disk of another program's format, whose size QEMU may have rounded. */
class Scene {
  readonly directory: TemporaryDirectory;
  readonly context: ServiceContext;
  readonly home: TestDisk;
  readonly sizeBytes: number;
  vm: TestVm;

  private constructor(parts: {
    directory: TemporaryDirectory;
    context: ServiceContext;
    home: TestDisk;
    sizeBytes: number;
    vm: TestVm;
  }) {
    ({
      directory: this.directory,
      context: this.context,
      home: this.home,
      sizeBytes: this.sizeBytes,
      vm: this.vm,
    } = parts);
  }

  static async start(format: DiskFormat, { options = [], ...disk }: SceneOptions = {}): Promise<Scene> {
    const directory = await temporaryDirectory();
    const home: TestDisk = { target: "vda", path: directory.file(`vda.${format}`), format, ...disk };
    await qemuImg("create", "-q", "-f", format, ...options, home.path, String(9 * MIB));
    const { size: sizeBytes } = await imageInfo(home.path, format);
    const content = directory.file("content.raw");
    await qemuImg("create", "-q", "-f", "raw", content, String(sizeBytes));
    await writeImage(content, "raw", `write -P 1 0 ${MIB}`, `write -P 1 ${sizeBytes - 512} 512`);
    await qemuImg("convert", "-q", "-f", "raw", "-O", format, ...options, content, home.path);
    for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
    untilTestEnds({ [Symbol.asyncDispose]: () => endMachines(directory.path) });
    const vm = untilTestEnds(await TestVm.start({ directory: directory.path, disks: [home] }));
    const context = await startQuietAgent(directory, domainConfig(DOMAIN, vm));
    return new Scene({ directory, context, home, sizeBytes, vm });
  }

  /** At the beginning, and at the very end, which is no multiple of a cluster in rounded images. */
  async write(pattern: number): Promise<void> {
    const ranges = [`0 ${BLOCK}`, `${this.sizeBytes - 512} 512`];
    if (this.vm.running) {
      for (const range of ranges) {
        expect(await this.vm.guestIo("vda", `write -P ${pattern} ${range}`)).toMatchObject({ ok: true });
      }
      return;
    }
    const { file, format } = await this.present();
    await writeImage(file, format, ...ranges.map((range) => `write -P ${pattern} ${range}`));
  }

  async present(): Promise<{ readonly file: string; readonly format: DiskFormat }> {
    const { layers } = await this.context.domainSnapshots.read(DOMAIN);
    const [{ active, format } = { active: this.home.path, format: this.home.format }] = layers;
    return { file: active, format };
  }

  async expectContent(pattern: number): Promise<void> {
    const { file, format } = await this.present();
    await expectContent(file, format, pattern, this.sizeBytes);
  }

  create(
    name: string,
    options: { readonly diskOnly?: boolean; readonly live?: boolean } = {},
  ): Promise<DomainSnapshot> {
    return createDomainSnapshot(this.context, { domain: DOMAIN, name, ...options });
  }

  async remove(name: string): Promise<void> {
    await deleteDomainSnapshot(this.context, { domain: DOMAIN, name });
  }
}

async function expectContent(
  file: string,
  format: DiskFormat,
  pattern: number,
  sizeBytes: number,
): Promise<void> {
  expect((await imageInfo(file, format)).size).toBe(sizeBytes);
  const read = [`read -P ${pattern} 0 ${BLOCK}`, `read -P 1 ${BLOCK} ${MIB - BLOCK}`];
  const end = `read -P ${pattern} ${sizeBytes - 512} 512`;
  await writeImage(file, format, ...[...read, end]);
}

/** `npm run test:faults` has all of them; the default test run the one that rounds sizes. */
const FORMATS = ALL_FAULTS ? (["vpc", "vhdx", "vmdk", "vdi"] as const) : (["vpc"] as const);

describe.each(FORMATS)("A disk whose image is %s", (format) => {
  it("is snapshotted by overlays, reverted, and merged back into its image", async () => {
    const scene = await Scene.start(format);
    const { context, directory, home, sizeBytes } = scene;
    // By its geometry; the overlay must have the same size, or the disk would change under the guest.
    if (format === "vpc") expect(sizeBytes).toBe(9_469_952);
    await expect(scene.create("m", { live: true })).rejects.toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringContaining(`vda is, or is based on, ${format}`) as string,
    });
    expect(await leftoversOf(directory, context)).toEqual([]);

    const one = await scene.create("one");
    expect(one).toMatchObject({ state: "running", memory: { kind: "external" } });
    expect(one.disks).toMatchObject([{ file: home.path, format, sizeBytes }]);
    expect(await runState(scene)).toBe("running");
    await scene.write(2);
    expect(await scene.create("two")).toMatchObject({ memory: { kind: "external" } });
    await scene.write(3);
    const { state, pid } = await revertDomainSnapshot(context, { domain: DOMAIN, name: "one", force: true });
    expect([state, await machinesOf(directory.path)]).toEqual(["running", [pid]]);
    for (const name of ["two", "one"]) await scene.remove(name);
    expect(await scene.present()).toEqual({ file: home.path, format });
    expect((await inspectDomain(context, DOMAIN)).disks).toMatchObject([
      { format, file: home.path, sizeBytes, checkpoints: [] },
    ]);
    expect(await leftoversOf(directory, context)).toEqual(["snapshots.json"]);
    await endMachine(scene);
    await scene.expectContent(1);
  });

  it("is snapshotted while the domain is off, and the storage daemon merges it back", async () => {
    const scene = await Scene.start(format);
    const { context, home, sizeBytes } = scene;
    await scene.vm.quit();
    const off = await scene.create("off");
    expect(off).toMatchObject({ state: "inactive", disks: [{ file: home.path, format, sizeBytes }] });
    await scene.write(2);
    expect((await revertDomainSnapshot(context, { domain: DOMAIN, name: "off", force: true })).state).toBe(
      "inactive",
    );
    await scene.expectContent(1);
    await scene.write(3);
    await scene.remove("off");
    expect(await scene.present()).toEqual({ file: home.path, format });
    await scene.expectContent(3);
  });

  it("is backed up by its changes while its QEMU runs, and compared afterwards", async () => {
    const scene = await Scene.start(format);
    const { context, directory, home } = scene;
    const modes: string[] = [];
    const backUp = async (): Promise<void> => {
      const { id, manifest } = await runBackup(context, { domain: DOMAIN });
      modes.push(...manifest.disks.map(({ mode, sourceFormat }) => `${mode} ${sourceFormat}`));
      const [restored] = await restoreBackup(context, { id, directory: directory.file(id) });
      expect(restored).toMatchObject({ format: "raw", sizeBytes: scene.sizeBytes });
      const { file = "" } = restored ?? {};
      if (scene.vm.running) await scene.vm.guestFlush("vda");
      const same = await compareImages(home.path, format, file, "raw");
      expect(same).toMatchObject({ identical: true });
    };
    await backUp();
    await scene.write(2);
    await backUp();
    await scene.vm.quit();
    await scene.write(3);
    await backUp();
    expect(modes).toEqual([`whole ${format}`, `changes ${format}`, `compare ${format}`]);
    expect(await context.store.operations(DOMAIN)).toEqual([]);
  });
});

describe("The memory of a guest that has such an image", () => {
  it.each([
    ["scsi", "paused"],
    ["virtio-blk", "running"],
  ] as const)("is saved with its %s disk in an iothread, and it stays %s", async (bus, state) => {
    const scene = await Scene.start("vpc", { bus, iothread: true });
    if (state === "paused") await scene.vm.qmp("stop");
    expect(await scene.create("one")).toMatchObject({ state, memory: { kind: "external" } });
    expect(await runState(scene)).toBe(state);
    await expectNoStandIns(scene);
    await scene.vm.quit();
    await scene.expectContent(1);
  });

  it("is saved amid incremental backups, which go on", async () => {
    const scene = await Scene.start("vpc");
    const { context, directory } = scene;
    await runBackup(context, { domain: DOMAIN });
    await scene.write(2);
    await scene.create("one");
    const { id, manifest } = await runBackup(context, { domain: DOMAIN });
    expect(manifest.disks).toMatchObject([{ mode: "changes" }]);
    const [restored] = await restoreBackup(context, { id, directory: directory.file(id) });
    await expectContent(restored?.file ?? "", "qcow2", 2, scene.sizeBytes);
  });
});

describe("An image that cannot be opened again", () => {
  it("keeps the guest from going on, until it can be", async () => {
    const scene = await Scene.start("vpc");
    const { context, directory, home, vm } = scene;
    const away = directory.file("away");
    const request = { domain: DOMAIN, name: "s" };
    const onProgress = ({ phase }: DomainSnapshotProgress): void => {
      if (phase === "memory" && !existsSync(away)) renameSync(home.path, away);
    };
    await expect(createDomainSnapshot(context, request, { onProgress })).rejects.toMatchObject({
      code: "QEMU_FAILED",
      message: expect.stringContaining(home.path) as string,
    });
    expect(await runState(scene)).toBe("postmigrate");
    renameSync(away, home.path);
    // The guard's work: before any other command.
    await expect.poll(() => runState(scene), { timeout: 60_000 }).toBe("running");
    expect(await vm.guestIo("vda", `read -P 1 0 ${MIB}`)).toMatchObject({ ok: true });
    await recoverAll(context);
    expect(await leftoversOf(directory, context)).toEqual([]);
    await scene.create("after");
    await expectNoStandIns(scene);
  });
});

describe("A VMDK that an appliance brought along", () => {
  it("cannot be written over, so that a deletion leaves it and gives its content to the overlay", async () => {
    const scene = await Scene.start("vmdk", { options: ["-o", "subformat=streamOptimized"] });
    await scene.vm.quit();
    await scene.create("off");
    await scene.write(2);
    await scene.remove("off");
    const { file, format } = await scene.present();
    expect([format, (await imageInfo(file, format)).backing]).toEqual(["qcow2", undefined]);
    await scene.expectContent(2);
  });

  it("is neither backed up nor snapshotted while the domain is off, if its data is in other files", async () => {
    const scene = await Scene.start("vmdk", { options: ["-o", "subformat=monolithicFlat"] });
    const flat = scene.directory.file("vda-flat.vmdk");
    await scene.create("running", { diskOnly: true });
    await scene.remove("running");
    await scene.vm.quit();
    const refusal = { code: "UNSUPPORTED", message: expect.stringContaining(flat) as string };
    await expect(scene.create("off")).rejects.toMatchObject(refusal);
    await expect(runBackup(scene.context, { domain: DOMAIN })).rejects.toMatchObject(refusal);
    await scene.expectContent(1);
  });
});

async function runState({ vm }: Scene): Promise<string> {
  return ((await vm.qmp("query-status")) as { readonly status: string }).status;
}

/** What the snapshot needed in QEMU is gone. */
async function expectNoStandIns({ vm }: Scene): Promise<void> {
  const nodes = (await vm.qmp("query-named-block-nodes", { flat: true })) as readonly {
    readonly drv: string;
  }[];
  expect(nodes.map(({ drv }) => drv).toSorted()).toEqual(["file", "file", "qcow2", "vpc"]);
}

async function endMachine({ vm, directory }: Scene): Promise<void> {
  const monitor = await Monitor.connect(vm.qmpPath, AbortSignal.timeout(60_000));
  await monitor.execute("quit").catch(() => undefined);
  monitor.close();
  await expect.poll(() => machinesOf(directory.path), { timeout: 60_000 }).toEqual([]);
}
