import { rm } from "node:fs/promises";
import { expect } from "vitest";
import { bitmapName } from "../../../src/model/checkpoint.js";
import type { DomainSnapshot, DomainSnapshots } from "../../../src/model/domain-snapshot.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createImage, imageInfo, qemuImg, writeImage } from "../../support/image-tool.js";
import type { JsonObject } from "../../support/monitor.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { DiskFormat } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { blocksOf, changedSince } from "./support/disk-content.js";
import { startQuietAgent } from "./support/quiet-agent.js";
import { BLOCK, BLOCKS, SceneModel, type Target, TARGETS } from "./support/scene-model.js";

/** The agent of a domain `vm` whose disks are `<target>.img`; the first one of a format. */
export function startSceneAgent(
  directory: TemporaryDirectory,
  format: DiskFormat = "qcow2",
): Promise<ServiceContext> {
  const disks = TARGETS.map((target) => {
    const file = directory.file(`${target}.img`);
    return { target, file, format: target === "vda" ? format : "qcow2" };
  });
  return startQuietAgent(directory, { name: "vm", qmp: directory.file("vm.qmp"), disks });
}

/** `more`: they may call blocks changed that were not. */
export type Bitmaps = "exact" | "more" | "lost";

export interface SceneOptions {
  readonly running?: boolean;
  /** Of the first disk. */
  readonly format?: DiskFormat;
  /** The domain's monitor is `vm.qmp`; that of QEMU has the name of the machine. Default: `vm`. */
  readonly vmName?: string;
  /** Before there is an image. */
  readonly prepare?: (directory: TemporaryDirectory) => Promise<void>;
}

interface ListedBitmap {
  readonly name: string;
  readonly recording: boolean;
}

/**
 * A domain with two disks whose snapshots are made by hand, as their document describes them, and a naive model of what every
 * snapshot and the present must hold. No guest runs: QEMU's own monitor writes.
 */
export class Scene implements AsyncDisposable {
  readonly directory: TemporaryDirectory;
  readonly context: ServiceContext;
  /** To be told what the product does: `scene` tells it only what it does itself. */
  readonly model = new SceneModel();
  vm: TestVm | undefined;
  readonly #formats: Record<Target, DiskFormat>;
  readonly #vmName: string;
  #order = 0;
  #files = 0;

  private constructor(
    directory: TemporaryDirectory,
    context: ServiceContext,
    { format, vmName }: { readonly format: DiskFormat; readonly vmName: string },
  ) {
    this.#vmName = vmName;
    this.directory = directory;
    this.context = context;
    this.#formats = { vda: format, vdb: "qcow2" };
  }

  static async create(options: SceneOptions = {}): Promise<Scene> {
    const { running = false, format = "qcow2", vmName = "vm", prepare } = options;
    const directory = await TemporaryDirectory.create();
    await prepare?.(directory);
    const scene = new Scene(directory, await startSceneAgent(directory, format), { format, vmName });
    for (const target of TARGETS) {
      const { home } = await scene.layer(target);
      await createImage(home, BLOCKS * BLOCK, { format: scene.#formats[target] });
    }
    if (running) await scene.start();
    return scene;
  }

  document(): Promise<DomainSnapshots> {
    return this.context.domainSnapshots.read("vm");
  }

  async layer(target: Target): Promise<{ file: string; format: DiskFormat; home: string }> {
    const home = this.directory.file(`${target}.img`);
    const layers = (await this.document()).layers.find((each) => each.target === target);
    return { home, file: layers?.active ?? home, format: layers?.format ?? this.#formats[target] };
  }

  async start(): Promise<void> {
    const disks = [];
    for (const target of TARGETS) {
      const { file, format } = await this.layer(target);
      disks.push({ target, path: file, format });
    }
    this.vm = await TestVm.start({ directory: this.directory.path, disks, name: this.#vmName });
  }

  /** As a crash would; what was flushed is in the files. */
  async kill(): Promise<void> {
    await this.vm?.kill();
    this.vm = undefined;
  }

  async stop(): Promise<void> {
    await this.vm?.quit();
    this.vm = undefined;
  }

  async write(target: Target, block: number, length: number, pattern: number): Promise<void> {
    const count = Math.min(length, BLOCKS - block);
    if (this.vm === undefined) {
      const { file, format } = await this.layer(target);
      await writeImage(file, format, `write -P ${pattern} ${block * BLOCK} ${count * BLOCK}`);
    } else {
      const verdict = await this.vm.guestWrite(target, block * BLOCK, count * BLOCK, pattern);
      expect(verdict.ok, verdict.text).toBe(true);
    }
    this.model.write(target, block, count, pattern);
  }

  /** A new recording bitmap on each qcow2 disk; the one before it stops. */
  async checkpoint(name: string): Promise<void> {
    const bitmap = bitmapName({ name, order: ++this.#order, timeMs: 1 });
    const tracked: Target[] = [];
    for (const target of TARGETS) {
      const { file, format } = await this.layer(target);
      if (format !== "qcow2") continue;
      tracked.push(target);
      const old = (await this.#bitmapsOn(target)).filter(({ recording }) => recording);
      if (this.vm === undefined) {
        await qemuImg("bitmap", "-f", "qcow2", "--add", file, bitmap);
        for (const each of old) await qemuImg("bitmap", "-f", "qcow2", "--disable", file, each.name);
      } else {
        const node = await nodeOf(this.vm, target);
        await this.vm.qmp("transaction", {
          actions: [
            { type: "block-dirty-bitmap-add", data: { node, name: bitmap, persistent: true } },
            ...old.map((each) => ({ type: "block-dirty-bitmap-disable", data: { node, name: each.name } })),
          ],
        });
      }
    }
    this.model.track(bitmap, tracked);
  }

  /** An external snapshot without memory. */
  async snapshot(name: string): Promise<void> {
    const all = await this.document();
    const actions: JsonObject[] = [];
    const layers = [];
    const disks: DomainSnapshot["disks"][number][] = [];
    for (const target of TARGETS) {
      const { file, format, home } = await this.layer(target);
      const listed = await this.#bitmapsOn(target);
      const recording = listed.filter((bitmap) => bitmap.recording).map((bitmap) => bitmap.name);
      const frozen = listed.filter((bitmap) => !bitmap.recording).map((bitmap) => bitmap.name);
      const overlay = await this.#makeOverlay(`${target}-${name}`, { file, format }, recording);
      if (this.vm !== undefined) actions.push(await switchTo(this.vm, target, overlay));
      const bitmaps = [...frozen, ...recording];
      disks.push({ target, file, format, sizeBytes: BLOCKS * BLOCK, bitmaps });
      layers.push({ target, home, active: overlay, format: "qcow2" as const });
    }
    await this.vm?.qmp("transaction", { actions });
    const snapshot: DomainSnapshot = {
      ...{ name, description: "", timeMs: 1, state: "inactive", kind: "external", live: false, pausedMs: 0 },
      ...(all.current === undefined ? {} : { parent: all.current }),
      disks,
      clones: [],
    };
    const snapshots = [...all.snapshots, snapshot];
    await this.context.domainSnapshots.write({ ...all, layers, current: name, snapshots });
    this.model.remember(name);
  }

  /** Of an inactive domain. What was written since the last snapshot is given up. */
  async revert(name: string): Promise<void> {
    const all = await this.document();
    const snapshot = all.snapshots.find((each) => each.name === name);
    if (snapshot === undefined) throw new Error(`Expected a snapshot ${name}`);
    const layers = [];
    const given: string[] = [];
    for (const { target, file, format, bitmaps } of snapshot.disks) {
      const { home, file: old } = await this.layer(target as Target);
      const overlay = await this.#makeOverlay(`${target}-r`, { file, format }, bitmaps.slice(-1));
      layers.push({ target, home, active: overlay, format: "qcow2" as const });
      if (old !== home) given.push(old);
    }
    await this.context.domainSnapshots.write({ ...all, layers, current: name });
    for (const file of given) await rm(file);
    this.model.returned(name);
  }

  /** Everything that can be read is what the model says; and of an inactive domain, no change is missing in a bitmap. */
  async check({ bitmaps = "exact" }: { readonly bitmaps?: Bitmaps } = {}): Promise<void> {
    const all = await this.document();
    expect(all.snapshots.map(({ name }) => name)).toEqual(this.model.names());
    for (const { name, disks, deleting, kind } of all.snapshots) {
      if (deleting === true || kind === "internal") continue;
      for (const { target, file, format } of disks) {
        const expected = this.model.content(target as Target, name);
        expect(await blocksOf(file, format), `${target} of ${name}`).toEqual(expected);
      }
    }
    for (const target of TARGETS) {
      if (this.vm !== undefined) await this.vm.guestFlush(target);
      const { file, format } = await this.layer(target);
      expect(await blocksOf(file, format), `the present of ${target}`).toEqual(this.model.content(target));
      if (this.vm !== undefined || format !== "qcow2" || bitmaps === "lost") continue;
      await this.#checkBitmaps(target, file, bitmaps);
    }
    expect(await this.context.store.operations("vm")).toEqual([]);
  }

  async #checkBitmaps(target: Target, file: string, bitmaps: "exact" | "more"): Promise<void> {
    const written = this.model.writtenSince(target);
    if (written.size === 0) return;
    const since = await changedSince(this.directory.file("run"), file, [...written.keys()]);
    for (const [checkpoint, expected] of written) {
      const found = since.get(checkpoint) ?? [];
      const counted = bitmaps === "exact" ? found : found.filter((block) => expected.includes(block));
      expect(counted, `${target} since ${checkpoint}`).toEqual(expected);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm?.[Symbol.asyncDispose]();
    await this.directory[Symbol.asyncDispose]();
  }

  async #bitmapsOn(target: Target): Promise<ListedBitmap[]> {
    if (this.vm !== undefined) return bitmapsInQemu(this.vm, target);
    const { file, format } = await this.layer(target);
    if (format !== "qcow2") return [];
    const { bitmaps } = await imageInfo(file, format);
    return bitmaps.map(({ name, flags }) => ({ name, recording: flags.includes("auto") }));
  }

  async #makeOverlay(
    name: string,
    { file, format }: { readonly file: string; readonly format: string },
    bitmaps: readonly string[],
  ): Promise<string> {
    const overlay = this.directory.file(`${name}-${this.#files++}.qcow2`);
    const size = String(BLOCKS * BLOCK);
    await qemuImg("create", "-q", "-u", "-f", "qcow2", "-b", file, "-F", format, overlay, size);
    for (const bitmap of bitmaps) await qemuImg("bitmap", "-f", "qcow2", "--add", overlay, bitmap);
    return overlay;
  }
}

/** Three snapshots in a row, each with a checkpoint before it and writes between. */
export async function makeRow(scene: Scene): Promise<void> {
  for (const [index, name] of ["one", "two", "three"].entries()) {
    for (const target of TARGETS) await scene.write(target, index * 4, 6, 10 + index);
    await scene.checkpoint(`cp-${name}`);
    for (const target of TARGETS) await scene.write(target, index * 3 + 1, 2, 20 + index);
    await scene.snapshot(name);
  }
  for (const target of TARGETS) await scene.write(target, 0, 2, 99);
}

/** The node that the device uses. */
async function nodeOf(vm: TestVm, target: Target): Promise<string> {
  const devices = (await vm.qmp("query-block")) as { qdev: string; inserted: { "node-name": string } }[];
  const device = devices.find(({ qdev }) => qdev.includes(`/${target}/`) || qdev === target);
  if (device === undefined) throw new Error(`Expected a device ${target}`);
  return device.inserted["node-name"];
}

async function bitmapsInQemu(vm: TestVm, target: Target): Promise<ListedBitmap[]> {
  const node = await nodeOf(vm, target);
  const nodes = (await vm.qmp("query-named-block-nodes", { flat: true })) as {
    "node-name": string;
    "dirty-bitmaps"?: ListedBitmap[];
  }[];
  return nodes.find((each) => each["node-name"] === node)?.["dirty-bitmaps"] ?? [];
}

/** Opens the overlay, and resolves to what puts it on the disk in a transaction. */
async function switchTo(vm: TestVm, target: Target, overlay: string): Promise<JsonObject> {
  const node = await nodeOf(vm, target);
  const added = overlay.split("/").at(-1)?.replace(".qcow2", "") ?? "";
  await vm.qmp("blockdev-add", {
    ...{ driver: "qcow2", "node-name": added, backing: null, discard: "unmap" },
    file: { driver: "file", filename: overlay },
  });
  return { type: "blockdev-snapshot", data: { node, overlay: added } };
}
