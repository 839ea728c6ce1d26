import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { DomainSnapshotDirectory } from "../../src/drivers/domain-snapshot-directory.js";
import type { DiskMode, IntactEntry } from "../../src/model/backup.js";
import type { DomainSnapshot } from "../../src/model/domain-snapshot.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import { restoreBackup } from "../../src/services/backup-read.js";
import { runBackup } from "../../src/services/backup-run.js";
import { startExports } from "../../src/services/block-exports.js";
import { createBlockSnapshot, deleteBlockSnapshot } from "../../src/services/block-snapshots.js";
import { listCheckpoints, removeCheckpoint } from "../../src/services/checkpoint-delete.js";
import type { ServiceContext } from "../../src/services/context.js";
import { inspectDomain } from "../../src/services/domains.js";
import { preflight } from "../../src/services/preflight.js";
import { imageInfo, qemuImg, writeImage } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { startSite, type Site } from "../support/site.js";
import type { DiskFormat } from "../support/vm-arguments.js";
import { TestVm } from "../support/vm.js";

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;

interface Node {
  readonly "node-name": string;
  readonly "dirty-bitmaps"?: readonly { readonly name?: string; readonly recording: boolean }[];
}

/** A domain with one disk, whose layers the test makes with plain commands, and what the disk must hold. */
class Layered {
  readonly at: Site;
  readonly context: ServiceContext;
  readonly #documents: DomainSnapshotDirectory;
  readonly #home: string;
  readonly #homeFormat: DiskFormat;
  vm: TestVm;
  /** What the guest has written. */
  content = Buffer.alloc(SIZE);
  /** Blocks written since `forget`. */
  written = new Set<number>();
  /** Where the disk is, and its node if the domain runs. */
  active: { file: string; format: DiskFormat; node: string };
  #overlays = 0;

  private constructor(at: Site, context: ServiceContext, format: DiskFormat) {
    this.at = at;
    this.context = context;
    this.vm = at.vm;
    this.#documents = new DomainSnapshotDirectory(at.directory.file("state"));
    this.#home = at.directory.file(`vda.${format}`);
    this.#homeFormat = format;
    this.active = { file: this.#home, format, node: "vda-format" };
  }

  static async start(format: DiskFormat = "qcow2", exports: "auto" | "staged" = "auto"): Promise<Layered> {
    const at = await startSite({ disks: [{ target: "vda", format, sizeBytes: SIZE }], exports });
    const ignore = (): void => undefined;
    const log = { debug: ignore, info: ignore, warn: ignore };
    return new Layered(at, await startAgent(await loadConfig(at.configPath), log), format);
  }

  async write(block: number, pattern: number): Promise<void> {
    const offset = block * BLOCK_SIZE + 512;
    this.content.fill(pattern, offset, offset + 1024);
    this.written.add(block);
    if (!this.vm.running) {
      await writeImage(this.active.file, this.active.format, `write -P ${pattern} ${offset} 1024`);
      return;
    }
    expect(await this.vm.guestWrite("vda", offset, 1024, pattern)).toMatchObject({ ok: true });
  }

  forget(): void {
    this.written = new Set();
  }

  /** What `domain-snapshot create` does to a disk, running or not. */
  async snapshot({ carries = true } = {}): Promise<void> {
    const { file: base, format, node } = this.active;
    const bitmaps = await this.#bitmaps();
    const overlay = await this.#makeOverlay(
      { file: base, format },
      carries ? bitmaps.filter(({ recording }) => recording).map(({ name }) => name) : [],
    );
    if (this.vm.running) {
      await this.vm.qmp("blockdev-add", {
        ...{ driver: "qcow2", "node-name": overlay.node, backing: null, discard: "unmap" },
        file: { driver: "file", filename: overlay.file },
      });
      await this.vm.qmp("blockdev-snapshot", { node, overlay: overlay.node });
    }
    this.active = overlay;
    const document = await this.#documents.read("vm");
    const snapshot: DomainSnapshot = {
      ...{ name: `s${this.#overlays}`, description: "", timeMs: 1, state: "running", kind: "external" },
      ...{ live: false, pausedMs: 0, clones: [] },
      disks: [
        { target: "vda", file: base, format, sizeBytes: SIZE, bitmaps: bitmaps.map(({ name }) => name) },
      ],
    };
    await this.#documents.write({ ...document, snapshots: [...document.snapshots, snapshot] });
    await this.#writeLayers();
  }

  /** What `domain-snapshot revert` does to a disk whose domain is off. */
  async revertTo(file: string, content: Buffer): Promise<void> {
    const { bitmaps } = await imageInfo(file, "qcow2");
    const recording = bitmaps.filter(({ flags }) => flags.includes("auto")).map(({ name }) => name);
    this.active = await this.#makeOverlay({ file, format: "qcow2" }, recording);
    this.content = Buffer.from(content);
    await this.#writeLayers();
  }

  /** The newest layer goes back into the one below, with its bitmaps. */
  async commit(): Promise<void> {
    const { node } = this.active;
    const base = "vda-format";
    const own = await this.#bitmaps();
    for (const { name } of await this.#bitmaps(base)) {
      await this.vm.qmp("block-dirty-bitmap-disable", { node: base, name });
    }
    await this.vm.qmp("block-commit", { ...{ "job-id": "c", device: node, "base-node": base } });
    await this.vm.waitForEvent("BLOCK_JOB_READY", { timeoutMs: 30_000 });
    await this.vm.qmp("block-dirty-bitmap-add", { node: base, name: "meanwhile" });
    await this.vm.qmp("job-complete", { id: "c" });
    await this.vm.waitForEvent("BLOCK_JOB_COMPLETED", { timeoutMs: 30_000 });
    const inBase = new Set((await this.#bitmaps(base)).map(({ name }) => name));
    for (const { name, recording } of own) {
      if (!inBase.has(name))
        await this.vm.qmp("block-dirty-bitmap-add", { node: base, name, persistent: true, disabled: true });
      const bitmaps = [{ node, name }, ...(recording ? ["meanwhile"] : [])];
      await this.vm.qmp("block-dirty-bitmap-merge", { node: base, target: name, bitmaps });
      if (recording) await this.vm.qmp("block-dirty-bitmap-enable", { node: base, name });
    }
    await this.vm.qmp("block-dirty-bitmap-remove", { node: base, name: "meanwhile" });
    await this.vm.qmp("blockdev-del", { "node-name": node });
    this.active = { file: this.#home, format: this.#homeFormat, node: base };
    const document = await this.#documents.read("vm");
    await this.#documents.write({ ...document, snapshots: [] });
    await this.#writeLayers();
  }

  /** Again with the file that the disk is in, or with another. */
  async boot(file = this.active.file, format = this.active.format): Promise<void> {
    const disks = [{ target: "vda", path: file, format }];
    this.vm = untilTestEnds(await TestVm.start({ directory: this.at.directory.path, disks }));
    this.active = { ...this.active, node: "vda-format" };
  }

  async backUp(mode: DiskMode, parent?: IntactEntry): Promise<IntactEntry> {
    const entry = await runBackup(this.context, { domain: "vm" });
    expect(entry.manifest.disks.map((disk) => [disk.mode, disk.reason])).toEqual([
      [mode, expect.any(String)],
    ]);
    expect(entry.manifest.parent).toBe(parent?.id);
    await this.#expectContent(entry);
    return entry;
  }

  async checkpoints(): Promise<readonly string[]> {
    return (await listCheckpoints(this.context, "vm")).map(({ name }) => name);
  }

  /** The blocks that an export marks as changed. */
  async changedSince(since: string): Promise<ReadonlySet<number>> {
    await createBlockSnapshot(this.context, { domain: "vm", name: "look", leaseMs: 600_000 });
    const [address] = await startExports(this.context, { domain: "vm", snapshot: "look", since });
    if (address === undefined) throw new Error("Expected an export");
    const changed = new Set<number>();
    const reader = await this.context.readers.open(address);
    for await (const extent of reader.extents()) {
      if (!extent.changed) continue;
      const last = Math.floor((extent.offset + extent.length - 1) / BLOCK_SIZE);
      for (let block = Math.floor(extent.offset / BLOCK_SIZE); block <= last; block++) changed.add(block);
    }
    await reader.close();
    await deleteBlockSnapshot(this.context, "vm", "look", "success");
    return changed;
  }

  async #expectContent({ id }: IntactEntry): Promise<void> {
    const directory = this.at.directory.file(`restored-${id}`);
    const [restored] = await restoreBackup(this.context, { id, directory, format: "raw" });
    expect(this.content.equals(await readFile(restored?.file ?? ""))).toBe(true);
  }

  async #bitmaps(node = this.active.node): Promise<readonly { name: string; recording: boolean }[]> {
    if (!this.vm.running) {
      if (this.active.format === "raw") return [];
      const { bitmaps } = await imageInfo(this.active.file, "qcow2");
      return bitmaps.map(({ name, flags }) => ({ name, recording: flags.includes("auto") }));
    }
    const nodes = (await this.vm.qmp("query-named-block-nodes", { flat: true })) as readonly Node[];
    const bitmaps = nodes.find((listed) => listed["node-name"] === node)?.["dirty-bitmaps"] ?? [];
    return bitmaps.flatMap(({ name, recording }) => (name === undefined ? [] : [{ name, recording }]));
  }

  async #makeOverlay(base: { file: string; format: DiskFormat }, bitmaps: readonly string[]) {
    this.#overlays++;
    const file = this.at.directory.file(`vda-s${this.#overlays}.qcow2`);
    await qemuImg("create", "-q", "-f", "qcow2", "-u", "-b", base.file, "-F", base.format, file, `${SIZE}`);
    for (const bitmap of bitmaps) await qemuImg("bitmap", "--add", file, bitmap);
    return { file, format: "qcow2" as const, node: `overlay-${this.#overlays}` };
  }

  async #writeLayers(): Promise<void> {
    const { file: active, format } = this.active;
    const document = await this.#documents.read("vm");
    await this.#documents.write({
      ...document,
      layers: [{ target: "vda", home: this.#home, active, format }],
    });
  }
}

function readBytes({ manifest }: IntactEntry): number {
  return manifest.disks[0]?.readBytes ?? -1;
}

describe("Backups over domain snapshots", () => {
  it("go on with changes over two running overlays, over a restart, and while the domain is off", async () => {
    const disk = await Layered.start();
    await disk.write(1, 1);
    const full = await disk.backUp("whole");
    await disk.write(2, 2);
    await disk.snapshot();
    await disk.write(3, 3);
    const second = await disk.backUp("changes", full);
    expect(readBytes(second)).toBe(2 * BLOCK_SIZE);
    await disk.write(4, 4);
    await disk.snapshot();
    await disk.write(5, 5);
    const third = await disk.backUp("changes", second);
    expect(readBytes(third)).toBe(2 * BLOCK_SIZE);
    const home = disk.at.directory.file("vda.qcow2");
    expect((await inspectDomain(disk.context, "vm")).disks[0]).toMatchObject({
      file: home,
      activeFile: disk.active.file,
      frozenFiles: [disk.at.directory.file("vda-s1.qcow2"), home],
    });

    await disk.vm.quit();
    await disk.boot();
    await disk.write(6, 6);
    const fourth = await disk.backUp("changes", third);
    expect(readBytes(fourth)).toBe(BLOCK_SIZE);

    await disk.write(7, 7);
    await disk.vm.quit();
    await disk.write(8, 8);
    const fifth = await disk.backUp("changes", fourth);
    expect(readBytes(fifth)).toBe(2 * BLOCK_SIZE);
    await disk.snapshot();
    await disk.write(9, 9);
    expect(readBytes(await disk.backUp("changes", fifth))).toBe(BLOCK_SIZE);
    expect(await disk.checkpoints()).toHaveLength(6);
  });

  it.each(["auto", "staged"] as const)(
    "show in an export (%s) exactly what was written in all layers, also after checkpoints in between are deleted",
    async (exports) => {
      const disk = await Layered.start("qcow2", exports);
      await disk.write(1, 1);
      const full = await disk.backUp("whole");
      disk.forget();
      await disk.write(2, 2);
      const second = await disk.backUp("changes", full);
      await disk.write(3, 3);
      const third = await disk.backUp("changes", second);
      await disk.write(4, 4);
      await disk.snapshot();
      await disk.write(5, 5);
      expect(await disk.changedSince(full.manifest.checkpoint)).toEqual(disk.written);
      await removeCheckpoint(disk.context, "vm", second.manifest.checkpoint);
      await removeCheckpoint(disk.context, "vm", third.manifest.checkpoint);
      expect(await disk.checkpoints()).toEqual([full.manifest.checkpoint]);
      await disk.write(6, 6);
      expect(await disk.changedSince(full.manifest.checkpoint)).toEqual(disk.written);
      const fourth = await disk.backUp("changes", full);
      expect(readBytes(fourth)).toBe(disk.written.size * BLOCK_SIZE);

      await disk.vm.quit();
      await disk.write(7, 7);
      expect(await disk.checkpoints()).toEqual([full.manifest.checkpoint, fourth.manifest.checkpoint]);
      expect(await disk.changedSince(full.manifest.checkpoint)).toEqual(disk.written);
      await removeCheckpoint(disk.context, "vm", full.manifest.checkpoint);
      expect(await disk.checkpoints()).toEqual([fourth.manifest.checkpoint]);
      expect(await disk.changedSince(fourth.manifest.checkpoint)).toEqual(new Set([7]));
    },
  );

  it("go on with changes after the overlay was committed, and after a revert to an older snapshot", async () => {
    const disk = await Layered.start();
    const full = await disk.backUp("whole");
    await disk.write(1, 1);
    await disk.snapshot();
    await disk.write(2, 2);
    const second = await disk.backUp("changes", full);
    await disk.write(3, 3);
    await disk.commit();
    await disk.write(4, 4);
    const third = await disk.backUp("changes", second);
    expect(readBytes(third)).toBe(2 * BLOCK_SIZE);

    await disk.write(5, 5);
    const kept = Buffer.from(disk.content);
    await disk.snapshot();
    await disk.write(6, 6);
    const abandoned = await disk.backUp("changes", third);
    await disk.write(7, 7);
    await disk.vm.quit();
    await disk.revertTo(disk.at.directory.file("vda.qcow2"), kept);
    await disk.boot();
    await disk.write(8, 8);
    const after = await disk.backUp("changes", third);
    expect(readBytes(after)).toBe(2 * BLOCK_SIZE);
    expect(after.manifest.reason).toContain(abandoned.id);
    await disk.write(9, 9);
    expect(readBytes(await disk.backUp("changes", after))).toBe(BLOCK_SIZE);
  });

  it("compare, and know changes again, after an overlay of another program and after QEMU was killed", async () => {
    const disk = await Layered.start();
    const full = await disk.backUp("whole");
    await disk.write(1, 1);
    await disk.snapshot({ carries: false });
    await disk.write(2, 2);
    const second = await disk.backUp("compare", full);
    expect(second.manifest.reason).toContain("does not go on in");
    expect(await disk.checkpoints()).toEqual([second.manifest.checkpoint]);
    await disk.write(3, 3);
    const third = await disk.backUp("changes", second);

    await disk.snapshot();
    await disk.write(4, 4);
    await disk.vm.guestFlush("vda");
    await disk.vm.kill();
    await disk.boot();
    await disk.write(5, 5);
    const fourth = await disk.backUp("compare", third);
    await disk.write(6, 6);
    expect(readBytes(await disk.backUp("changes", fourth))).toBe(BLOCK_SIZE);
  });

  it("leave the bitmaps of a template below the disk's first image alone", async () => {
    const disk = await Layered.start();
    await disk.vm.quit();
    const home = disk.active.file;
    const template = disk.at.directory.file("template.qcow2");
    await qemuImg("create", "-q", "-f", "qcow2", template, String(SIZE));
    await writeImage(template, "qcow2", `write -P 7 0 ${BLOCK_SIZE}`);
    disk.content.fill(7, 0, BLOCK_SIZE);
    await qemuImg("bitmap", "--add", template, "fleece:1:7:7:of-another-domain");
    await qemuImg("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", template, home);
    await disk.boot();
    const full = await disk.backUp("whole");
    await disk.write(1, 1);
    const second = await disk.backUp("changes", full);
    await disk.snapshot();
    await disk.write(2, 2);
    const third = await disk.backUp("changes", second);
    await disk.vm.quit();
    await disk.write(3, 3);
    const fourth = await disk.backUp("changes", third);
    expect(readBytes(fourth)).toBe(BLOCK_SIZE);
    const own = [full, second, third, fourth].map(({ manifest }) => manifest.checkpoint);
    expect(await disk.checkpoints()).toEqual(own);
    expect((await inspectDomain(disk.context, "vm")).disks[0]?.frozenFiles).toEqual([home]);
  });

  it("compare when a raw image below has lost its bitmaps with QEMU, but not for what an overlay has", async () => {
    const disk = await Layered.start("raw");
    const full = await disk.backUp("whole");
    await disk.write(1, 1);
    await disk.snapshot();
    await disk.write(2, 2);
    await disk.vm.quit();
    await disk.boot();
    await disk.write(3, 3);
    const second = await disk.backUp("compare", full);
    expect(second.manifest.reason).toContain("is not in");
    await disk.write(4, 4);
    await disk.vm.quit();
    await disk.boot();
    expect(readBytes(await disk.backUp("changes", second))).toBe(BLOCK_SIZE);
  });

  it("compare and warn when the domain was started with an image that domain snapshots have frozen", async () => {
    const disk = await Layered.start();
    const full = await disk.backUp("whole");
    const frozen = Buffer.from(disk.content);
    await disk.snapshot();
    await disk.write(1, 1);
    const second = await disk.backUp("changes", full);
    await disk.vm.quit();
    const { active } = disk;
    const home = disk.at.directory.file("vda.qcow2");
    await disk.boot(home);
    const { findings } = await preflight(disk.context, { domain: "vm" });
    const warning = findings.find(({ code }) => code === "DISK_OTHER_LAYER");
    expect(warning?.found).toBe(
      `Disk vda is in ${home}, but by its domain snapshots it should be in ${active.file}`,
    );
    expect(warning?.advice).toContain("damages them");
    disk.content = frozen;
    await disk.write(9, 9);
    const third = await disk.backUp("compare", second);
    await disk.vm.quit();
    // The frozen image has changed, so nothing of the overlay's bitmaps counts.
    disk.content.fill(1, BLOCK_SIZE + 512, BLOCK_SIZE + 512 + 1024);
    disk.active = active;
    await disk.boot();
    expect((await disk.backUp("compare", third)).manifest.reason).not.toContain("should be");
  });
});
