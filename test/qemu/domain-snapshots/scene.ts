import { readFile, rm } from "node:fs/promises";
import { expect } from "vitest";
import { startAgent } from "../../../src/agent.js";
import { bitmapName, parseBitmapName } from "../../../src/model/checkpoint.js";
import { parseConfig } from "../../../src/model/config.js";
import type { DomainSnapshot, DomainSnapshots } from "../../../src/model/domain-snapshot.js";
import { StorageDaemon } from "../../../src/drivers/storage-daemon.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { createImage, imageInfo, qemuImg, writeImage } from "../../support/image-tool.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { DiskFormat } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";

export const BLOCK = 65_536;
export const BLOCKS = 32;
export const TARGETS = ["vda", "vdb"] as const;
export type Target = (typeof TARGETS)[number];

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined };

/** The agent of a domain `vm` whose disks are `<target>.img`; the first one of a format. */
export async function makeContext(
  directory: TemporaryDirectory,
  format: DiskFormat = "qcow2",
): Promise<ServiceContext> {
  const at = (name: string): string => directory.file(name);
  const disks = TARGETS.map((target) => {
    const kind = target === "vda" ? format : "qcow2";
    return `{target: ${target}, file: ${at(`${target}.img`)}, format: ${kind}}`;
  });
  const text = `{stateDir: ${at("state")}, scratchDir: ${at("scratch")}, runtimeDir: ${at("run")},
    domains: [{name: vm, qmp: ${at("vm.qmp")}, disks: [${disks.join(", ")}]}],
    repositories: [{name: default, path: ${at("backups")}}]}`;
  return await startAgent(parseConfig(text, at("fleece.yaml")), quiet);
}

/** What a disk holds, block by block, and which blocks were written since each checkpoint. */
interface Moment {
  readonly content: Map<Target, number[]>;
  readonly written: Map<string, Map<Target, Set<number>>>;
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

/**
 * A domain with two disks whose snapshots are made by hand, as their document describes them, and a naive model of what every
 * snapshot and the present must hold. No guest runs: QEMU's own monitor writes.
 */
export class Scene implements AsyncDisposable {
  readonly directory: TemporaryDirectory;
  readonly context: ServiceContext;
  readonly formats: Record<Target, DiskFormat>;
  vm: TestVm | undefined;
  #now: Moment = { content: new Map(), written: new Map() };
  readonly #moments = new Map<string, Moment>();
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
    this.formats = { vda: format, vdb: "qcow2" };
  }

  static async create(options: SceneOptions = {}): Promise<Scene> {
    const { running = false, format = "qcow2", vmName = "vm", prepare } = options;
    const directory = await TemporaryDirectory.create();
    await prepare?.(directory);
    const at = (name: string): string => directory.file(name);
    const context = await makeContext(directory, format);
    const scene = new Scene(directory, context, { format, vmName });
    for (const target of TARGETS) {
      await createImage(at(`${target}.img`), BLOCKS * BLOCK, { format: scene.formats[target] });
      scene.#now.content.set(target, new Array<number>(BLOCKS).fill(0));
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
    return { home, file: layers?.active ?? home, format: layers?.format ?? this.formats[target] };
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
    for (let index = block; index < block + count; index++) {
      const content = this.#now.content.get(target);
      if (content !== undefined) content[index] = pattern;
      for (const byTarget of this.#now.written.values()) byTarget.get(target)?.add(index);
    }
  }

  /** A new recording bitmap on each qcow2 disk; the one before it stops. */
  async checkpoint(name: string): Promise<void> {
    const bitmap = bitmapName({ name, order: ++this.#order, timeMs: 1 });
    const written = new Map<Target, Set<number>>();
    for (const target of TARGETS) {
      const { file, format } = await this.layer(target);
      if (format !== "qcow2") continue;
      written.set(target, new Set());
      const old = (await bitmapsOf(file)).filter(({ recording }) => recording);
      if (this.vm === undefined) {
        await qemuImg("bitmap", "-f", "qcow2", "--add", file, bitmap);
        for (const { name: each } of old) await qemuImg("bitmap", "-f", "qcow2", "--disable", file, each);
      } else {
        const node = await this.node(target);
        const listed = (await this.bitmapsInQemu(node)).filter(({ recording }) => recording);
        await this.vm.qmp("transaction", {
          actions: [
            { type: "block-dirty-bitmap-add", data: { node, name: bitmap, persistent: true } },
            ...listed.map((each) => ({
              type: "block-dirty-bitmap-disable",
              data: { node, name: each.name },
            })),
          ],
        });
      }
    }
    this.#now.written.set(bitmap, written);
  }

  /** The node that the device uses. */
  async node(target: Target): Promise<string> {
    const devices = (await this.vm?.qmp("query-block")) as {
      qdev: string;
      inserted: { "node-name": string };
    }[];
    const device = devices.find(({ qdev }) => qdev.includes(`/${target}/`) || qdev === target);
    if (device === undefined) throw new Error(`Expected a device ${target}`);
    return device.inserted["node-name"];
  }

  async bitmapsInQemu(node: string): Promise<{ name: string; recording: boolean }[]> {
    const nodes = (await this.vm?.qmp("query-named-block-nodes", { flat: true })) as {
      "node-name": string;
      "dirty-bitmaps"?: { name: string; recording: boolean }[];
    }[];
    return nodes.find((each) => each["node-name"] === node)?.["dirty-bitmaps"] ?? [];
  }

  /** An external snapshot without memory. */
  async snapshot(name: string): Promise<void> {
    const all = await this.document();
    const actions = [];
    const layers = [];
    const disks: DomainSnapshot["disks"][number][] = [];
    for (const target of TARGETS) {
      const { file, format, home } = await this.layer(target);
      const overlay = this.directory.file(`${target}-${name}-${this.#files++}.qcow2`);
      const node = this.vm === undefined ? undefined : await this.node(target);
      const bitmaps = node === undefined ? await bitmapsOf(file, format) : await this.bitmapsInQemu(node);
      await this.#overlay(
        overlay,
        file,
        format,
        bitmaps.filter(({ recording }) => recording).map((each) => each.name),
      );
      if (node !== undefined) {
        const added = `${target}-${this.#files}`;
        await this.vm?.qmp("blockdev-add", {
          driver: "qcow2",
          "node-name": added,
          backing: null,
          discard: "unmap",
          file: { driver: "file", filename: overlay },
        });
        actions.push({ type: "blockdev-snapshot", data: { node, overlay: added } });
      }
      const names = bitmaps
        .toSorted((a, b) => Number(a.recording) - Number(b.recording))
        .map((each) => each.name);
      disks.push({ target, file, format, sizeBytes: BLOCKS * BLOCK, bitmaps: names });
      layers.push({ target, home, active: overlay, format: "qcow2" as const });
    }
    await this.vm?.qmp("transaction", { actions });
    const snapshot: DomainSnapshot = {
      ...{ name, description: "", timeMs: 1, state: "inactive", kind: "external", live: false, pausedMs: 0 },
      ...(all.current === undefined ? {} : { parent: all.current }),
      disks,
      clones: [],
    };
    await this.context.domainSnapshots.write({
      ...all,
      layers,
      current: name,
      snapshots: [...all.snapshots, snapshot],
    });
    this.#moments.set(name, copyOf(this.#now));
  }

  /** Of an inactive domain. What was written since the last snapshot is given up. */
  async revert(name: string): Promise<void> {
    const all = await this.document();
    const snapshot = all.snapshots.find((each) => each.name === name);
    const moment = this.#moments.get(name);
    if (snapshot === undefined || moment === undefined) throw new Error(`Expected a snapshot ${name}`);
    const layers = [];
    const given: string[] = [];
    for (const { target, file, format, bitmaps } of snapshot.disks) {
      const { home, file: old } = await this.layer(target as Target);
      const overlay = this.directory.file(`${target}-r${this.#files++}.qcow2`);
      await this.#overlay(overlay, file, format, bitmaps.slice(-1));
      layers.push({ target, home, active: overlay, format: "qcow2" as const });
      if (old !== home) given.push(old);
    }
    await this.context.domainSnapshots.write({ ...all, layers, current: name });
    for (const file of given) await rm(file);
    this.#now = copyOf(moment);
  }

  /** The product has taken this one, and nothing was written since. */
  remember(name: string): void {
    this.#moments.set(name, copyOf(this.#now));
  }

  /** The product has put the disks back. */
  returned(name: string): void {
    const moment = this.#moments.get(name);
    if (moment === undefined) throw new Error(`Expected a snapshot ${name}`);
    this.#now = copyOf(moment);
  }

  forget(name: string): void {
    this.#moments.delete(name);
  }

  names(): string[] {
    return [...this.#moments.keys()];
  }

  /** Everything that can be read is what the model says; and of an inactive domain, no change is missing in a bitmap. */
  async check({ bitmaps = "exact" }: { readonly bitmaps?: Bitmaps } = {}): Promise<void> {
    const all = await this.document();
    expect(all.snapshots.map(({ name }) => name)).toEqual(this.names());
    for (const { name, disks, deleting, kind } of all.snapshots) {
      if (deleting === true || kind === "internal") continue;
      for (const { target, file, format } of disks) {
        const expected = this.#moments.get(name)?.content.get(target as Target);
        expect(await blocksOf(file, format), `${target} of ${name}`).toEqual(expected);
      }
    }
    for (const target of TARGETS) {
      if (this.vm !== undefined) await this.vm.guestFlush(target);
      const { file, format } = await this.layer(target);
      expect(await blocksOf(file, format), `the present of ${target}`).toEqual(this.#now.content.get(target));
      if (this.vm === undefined && format === "qcow2") await this.checkBitmaps(target, bitmaps);
    }
    expect(await this.context.store.operations("vm")).toEqual([]);
  }

  async checkBitmaps(target: Target, bitmaps: Bitmaps): Promise<void> {
    if (bitmaps === "lost") return;
    const { file } = await this.layer(target);
    const tracked = [...this.#now.written].filter(([, byTarget]) => byTarget.has(target));
    if (tracked.length === 0) return;
    const names = tracked.map(([name]) => name);
    const since = await changedSince(this.directory.file("run"), file, names);
    for (const [checkpoint, byTarget] of tracked) {
      const expected = [...(byTarget.get(target) ?? [])].toSorted((x, y) => x - y);
      const found = since.get(checkpoint) ?? [];
      const counted = bitmaps === "exact" ? found : found.filter((block) => expected.includes(block));
      expect(counted, `${target} since ${checkpoint}`).toEqual(expected);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm?.[Symbol.asyncDispose]();
    await this.directory[Symbol.asyncDispose]();
  }

  async #overlay(overlay: string, base: string, format: string, bitmaps: string[]): Promise<void> {
    const size = String(BLOCKS * BLOCK);
    await qemuImg("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", format, overlay, size);
    for (const bitmap of bitmaps) await qemuImg("bitmap", "-f", "qcow2", "--add", overlay, bitmap);
  }
}

/** Three snapshots in a row, each with a checkpoint before it and writes between. */
export async function row(scene: Scene): Promise<void> {
  for (const [index, name] of ["one", "two", "three"].entries()) {
    for (const target of TARGETS) await scene.write(target, index * 4, 6, 10 + index);
    await scene.checkpoint(`cp-${name}`);
    for (const target of TARGETS) await scene.write(target, index * 3 + 1, 2, 20 + index);
    await scene.snapshot(name);
  }
  for (const target of TARGETS) await scene.write(target, 0, 2, 99);
}

function copyOf({ content, written }: Moment): Moment {
  return {
    content: new Map([...content].map(([target, blocks]) => [target, [...blocks]])),
    written: new Map(
      [...written].map(([name, byTarget]) => [
        name,
        new Map([...byTarget].map(([target, blocks]) => [target, new Set(blocks)])),
      ]),
    ),
  };
}

async function bitmapsOf(
  file: string,
  format: DiskFormat = "qcow2",
): Promise<{ name: string; recording: boolean }[]> {
  if (format !== "qcow2") return [];
  const { bitmaps } = await imageInfo(file, format);
  return bitmaps.map(({ name, flags }) => ({ name, recording: flags.includes("auto") }));
}

/** The byte that fills each block; -1 for one that is not of one byte. */
export async function blocksOf(file: string, format: string): Promise<number[]> {
  const raw = `${file}.${Math.random().toString(36).slice(2)}.raw`;
  try {
    await qemuImg("convert", "-U", "-q", "-f", format, "-O", "raw", file, raw);
    const content = await readFile(raw);
    return Array.from({ length: content.length / BLOCK }, (_, index) => {
      const block = content.subarray(index * BLOCK, (index + 1) * BLOCK);
      return block.every((byte) => byte === block[0]) ? (block[0] ?? -1) : -1;
    });
  } finally {
    await rm(raw, { force: true });
  }
}

/** Blocks that the bitmaps of all layers of an inactive disk call changed, by the bitmap of the checkpoint. */
async function changedSince(
  runtime: string,
  file: string,
  checkpoints: readonly string[],
): Promise<Map<string, number[]>> {
  const directory = `${runtime}/t-${Math.random().toString(36).slice(2)}`;
  await using daemon = await StorageDaemon.start({ directory, lifetime: "process" });
  await daemon.execute("blockdev-add", {
    ...{ driver: "qcow2", "node-name": "top", "read-only": true },
    file: { driver: "file", filename: file, "read-only": true },
  });
  const nodes = await daemon.execute("query-named-block-nodes", { flat: true });
  const order = (name: string): number => parseBitmapName(name)?.order ?? -1;
  const found = new Map<string, number[]>();
  for (const [index, checkpoint] of checkpoints.entries()) {
    const sources = nodes.flatMap((node) =>
      (node["dirty-bitmaps"] ?? []).flatMap(({ name = "" }) =>
        order(name) >= order(checkpoint) ? [{ node: node["node-name"] ?? "", name }] : [],
      ),
    );
    expect(
      sources.some(({ name }) => name === checkpoint),
      `${checkpoint} in ${file}`,
    ).toBe(true);
    const name = `merged${index}`;
    await daemon.execute("block-dirty-bitmap-add", { node: "top", name, disabled: true });
    await daemon.execute("block-dirty-bitmap-merge", { node: "top", target: name, bitmaps: sources });
    await daemon.execute("block-export-add", {
      ...{ type: "nbd", id: name, "node-name": "top", name, bitmaps: [name] },
    });
    const context = `x-dirty-bitmap=qemu:dirty-bitmap:${name}`;
    const options = `driver=nbd,server.type=unix,server.path=${daemon.nbdSocketPath},export=${name},${context}`;
    const map = JSON.parse(await qemuImg("map", "--output=json", "--image-opts", options)) as {
      start: number;
      length: number;
      data: boolean;
    }[];
    const changed = map.filter(({ data }) => !data);
    found.set(
      checkpoint,
      changed.flatMap(({ start, length }) =>
        Array.from({ length: length / BLOCK }, (_, block) => start / BLOCK + block),
      ),
    );
  }
  return found;
}
