import { createHash } from "node:crypto";
import { mkdir, readdir } from "node:fs/promises";
import { expect } from "vitest";
import { loadConfig, startAgent } from "../../../src/agent.js";
import type { BackupLevel } from "../../../src/model/backup.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import type { ReaderFactory } from "../../../src/ports/block-io.js";
import { deleteBackup, listBackups } from "../../../src/services/backup-catalog.js";
import { restoreBackup, verifyBackup } from "../../../src/services/backup-read.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { listCheckpoints, removeCheckpoint } from "../../../src/services/checkpoint-delete.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { FleeceError, isFleeceError } from "../../../src/shared/errors.js";
import type { BlockState } from "../../support/block-state.js";
import { domainConfig, writeConfig } from "../../support/config-file.js";
import { startFleece } from "../../support/fleece.js";
import { createImage, fileDigest, fillImage, qemuImg } from "../../support/image-tool.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";

const KIB = 1024;
const MIB = 1024 * KIB;
const DOMAIN = "vm";

export interface Change {
  readonly kind: "write" | "zero" | "unmap" | "discard";
  readonly disk: number;
  /** In thousandths of the disk. */
  readonly at: number;
  readonly length: number;
  readonly pattern: number;
}

/**
 * A real VM with three disks, and beside it the naive model: the bytes each disk holds, and for every backup that the
 * repository lists the bytes they held at its moment.
 */
export class World implements AsyncDisposable {
  readonly #directory: TemporaryDirectory;
  readonly #configPath: string;
  readonly #vm: TestVm;
  readonly #disks: readonly TestDisk[];
  readonly #contents: Map<string, Buffer>;
  readonly #moments = new Map<string, ReadonlyMap<string, string>>();
  readonly #pristine: BlockState;
  /** What happened, for the message of a failure. */
  readonly history: string[] = [];
  backups = 0;
  incrementals = 0;
  /** Targets whose recording bitmap somebody took away, until the next backup. */
  readonly #untracked = new Set<string>();

  private constructor(parts: {
    directory: TemporaryDirectory;
    configPath: string;
    vm: TestVm;
    contents: Map<string, Buffer>;
    pristine: BlockState;
  }) {
    this.#directory = parts.directory;
    this.#configPath = parts.configPath;
    this.#vm = parts.vm;
    this.#disks = parts.vm.disks;
    this.#contents = parts.contents;
    this.#pristine = parts.pristine;
  }

  static async create(options: { withRaw: boolean }): Promise<World> {
    const directory = await TemporaryDirectory.create();
    const format = options.withRaw ? "raw" : "qcow2";
    const disks: TestDisk[] = [
      { target: "vda", path: directory.file("a.qcow2"), format: "qcow2", bus: "virtio-blk" },
      { target: "sdb", path: directory.file("b.qcow2"), format: "qcow2", bus: "scsi" },
      { target: "hdc", path: directory.file(`c.${format}`), format, bus: "ide" },
    ];
    const sizes = [5 * MIB + 512, 3 * MIB + 35 * 512, 2 * MIB + 4096 + 512];
    const contents = new Map<string, Buffer>();
    for (const [index, disk] of disks.entries()) {
      const size = sizes[index] ?? MIB;
      await createImage(disk.path, size, { format: disk.format });
      // Half of each disk holds data, so that zeroing and discarding have something to take away.
      const filled = { offset: 0, length: 512 * Math.floor(size / 1024), pattern: 0x11 + index };
      await fillImage(disk.path, disk.format, filled);
      contents.set(disk.target, Buffer.alloc(size).fill(filled.pattern, 0, filled.length));
    }
    for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
    const vm = await TestVm.start({ directory: directory.path, disks });
    const configPath = await writeConfig(directory.path, {
      domains: [domainConfig(DOMAIN, vm)],
      more: { runtimeDir: directory.file("run") },
    });
    return new World({ directory, configPath, vm, contents, pristine: await vm.blockState() });
  }

  async change(changes: readonly Change[]): Promise<void> {
    if (!this.#vm.running) return;
    for (const change of changes) await this.#apply(change);
  }

  /**
   * A backup by the services in this process. `frozen` happens in the guest after the moment and before anything is read,
   * so that the readers meet all of it; `during` happens while they read.
   */
  async backup(
    level: BackupLevel | undefined,
    { frozen, during }: { frozen: readonly Change[]; during: readonly Change[] },
  ): Promise<void> {
    const moment = this.#digests();
    let changed: Promise<void> | undefined;
    let concurrent: Promise<void> | undefined;
    const context = await this.#agent();
    const readers: ReaderFactory = {
      open: async (address, signal) => {
        await (changed ??= this.change(frozen));
        return context.readers.open(address, signal);
      },
    };
    const entry = await runBackup(
      { ...context, readers },
      {
        domain: DOMAIN,
        ...(level === undefined ? {} : { level }),
        onProgress: ({ step }) => {
          if (step === "disk") concurrent ??= this.change(during);
        },
      },
    );
    await concurrent;
    this.backups++;
    if (entry.manifest.level === "incremental") this.incrementals++;
    this.#untracked.clear();
    this.history.push(`  -> ${entry.manifest.level} ${entry.id}: ${entry.manifest.reason}`);
    if (level === "full") expect(entry.manifest.level).toBe("full");
    this.#moments.set(entry.id, moment);
  }

  /** A backup that is cancelled after some steps. It may be too late: then it counts. */
  async cancelledBackup(afterSteps: number): Promise<void> {
    const moment = this.#digests();
    const cancel = new AbortController();
    let steps = 0;
    try {
      const entry = await runBackup(await this.#agent(), {
        domain: DOMAIN,
        signal: cancel.signal,
        onProgress: () => {
          if (steps++ === afterSteps) cancel.abort(new FleeceError("INTERRUPTED", "Cancelled by the test"));
        },
      });
      this.#moments.set(entry.id, moment);
    } catch (error) {
      if (!isFleeceError(error, "INTERRUPTED")) throw error;
      this.history.push("  -> cancelled");
    }
  }

  /** The whole command, killed without warning; what it managed to publish must be right all the same. */
  async killedBackup(afterMs: number): Promise<void> {
    const moment = this.#digests();
    const command = await startFleece(["--embedded", "backup", "run", DOMAIN], {
      configPath: this.#configPath,
    });
    await Promise.race([command.result(), new Promise((resolve) => setTimeout(resolve, afterMs))]);
    const { signal } = await command.kill("SIGKILL");
    this.history.push(`  -> ${signal === null ? "ended before the kill" : "killed"}`);
    const context = await this.#agent();
    for (const { id } of await listBackups(context)) {
      if (!this.#moments.has(id)) this.#moments.set(id, moment);
    }
  }

  async deleteCheckpoint(which: number): Promise<void> {
    const context = await this.#agent();
    const checkpoints = await listCheckpoints(context, DOMAIN);
    const chosen = checkpoints[which % Math.max(1, checkpoints.length)];
    if (chosen === undefined) return;
    this.history.push(`  -> ${chosen.name}`);
    await removeCheckpoint(context, DOMAIN, chosen.name);
    const left = (await listCheckpoints(context, DOMAIN)).map(({ name }) => name);
    expect(left).toEqual(checkpoints.map(({ name }) => name).filter((name) => name !== chosen.name));
  }

  async deleteBackup(which: number): Promise<void> {
    const context = await this.#agent();
    const ids = [...this.#moments.keys()];
    const id = ids[which % Math.max(1, ids.length)];
    if (id === undefined) return;
    try {
      await deleteBackup(context, id);
      this.#moments.delete(id);
      this.history.push(`  -> ${id}`);
    } catch (error) {
      if (!isFleeceError(error, "BACKUP_HAS_CHILDREN")) throw error;
    }
  }

  async restartVm(): Promise<void> {
    await this.#vm.restart();
  }

  async togglePower(): Promise<void> {
    if (this.#vm.running) await this.#vm.quit();
    else await this.#vm.restart();
  }

  /** As a crash of QEMU; what the guest has flushed survives it, but no bitmap does. */
  async killQemu(): Promise<void> {
    if (!this.#vm.running) return;
    for (const { target } of this.#disks) await this.#vm.guestFlush(target);
    await this.#vm.kill();
    await this.#vm.restart();
  }

  /** Somebody removes the bitmap that records. */
  async loseBitmap(disk: number): Promise<void> {
    if (!this.#vm.running) return;
    const { target } = this.#disks[disk % this.#disks.length] ?? { target: "vda" };
    const node = this.#vm.nodeName(target);
    const { bitmaps } = await this.#vm.blockState();
    const recording = bitmaps.find((bitmap) => bitmap.node === node && bitmap.recording);
    if (recording === undefined) return;
    await this.#vm.qmp("block-dirty-bitmap-remove", { node, name: recording.name });
    this.#untracked.add(target);
    this.history.push(`  -> ${target}: ${recording.name}`);
  }

  /** What must be true after anything: all that is listed is right, and nothing else is left. */
  async check(): Promise<void> {
    const context = await this.#agent();
    const listed = await listBackups(context);
    expect(listed.map(({ id }) => id).toSorted()).toEqual([...this.#moments.keys()].toSorted());
    for (const { id } of listed) {
      for (const [target, digest] of this.#moments.get(id) ?? []) {
        const image = this.#directory.file(`backups/${DOMAIN}/${id}/${target}.qcow2`);
        expect(await this.#imageDigest(image), `disk ${target} of backup ${id}`).toBe(digest);
      }
    }
    await this.#checkTraces();
  }

  /** The product's own reading of every backup: verify and restore. */
  async checkRestores(): Promise<void> {
    const context = await this.#agent();
    for (const [id, moment] of this.#moments) {
      await verifyBackup(context, id);
      const to = this.#directory.file(`restored-${id}`);
      const disks = await restoreBackup(context, { id, directory: to, format: "raw" });
      for (const { target, file } of disks) {
        expect(await fileDigest(file), `restored ${target} of ${id}`).toBe(moment.get(target));
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#vm[Symbol.asyncDispose]();
    await this.#directory[Symbol.asyncDispose]();
  }

  /** As every command does: recovery comes first. */
  async #agent(): Promise<ServiceContext> {
    const note = (facts: object, message: string): void =>
      void this.history.push(`  -> log: ${message} ${JSON.stringify(facts)}`);
    return startAgent(await loadConfig(this.#configPath), { debug: () => undefined, info: note, warn: note });
  }

  async #apply({ kind, disk, at, length, pattern }: Change): Promise<void> {
    const { target } = this.#disks[disk % this.#disks.length] ?? { target: "vda" };
    const content = this.#contents.get(target) ?? Buffer.alloc(0);
    let start = Math.floor((at / 1000) * (content.length - 1));
    let end = Math.min(content.length, start + length);
    if (kind === "discard") {
      // Parts of clusters are not discarded: whole ones make the result sure.
      start = Math.floor(start / BLOCK_SIZE) * BLOCK_SIZE;
      end = Math.min(content.length, Math.ceil(end / BLOCK_SIZE) * BLOCK_SIZE);
    }
    const verdict = await {
      write: () => this.#vm.guestWrite(target, start, end - start, pattern),
      zero: () => this.#vm.guestWriteZeroes(target, start, end - start),
      unmap: () => this.#vm.guestWriteZeroes(target, start, end - start, { unmap: true }),
      discard: () => this.#vm.guestDiscard(target, start, end - start),
    }[kind]();
    expect(verdict.ok, `the guest's ${kind}: ${verdict.text}`).toBe(true);
    content.fill(kind === "write" ? pattern : 0, start, end);
  }

  async #checkTraces(): Promise<void> {
    expect(await this.#files("scratch"), "scratch files").toEqual([]);
    expect(await this.#files("run"), "runtime directories").toEqual([]);
    const records = await this.#files("state/operations/vm");
    expect(records, "journal records").toEqual([]);
    const partial = (await this.#files("backups/vm")).filter((name) => /partial|deleted/.test(name));
    expect(partial, "unfinished backups").toEqual([]);
    if (!this.#vm.running) return;
    const state = await this.#vm.blockState();
    const strange = state.bitmaps.filter(
      ({ node, name }) => !node.endsWith("-format") || !name.startsWith("fleece:1:"),
    );
    expect(strange, "bitmaps that are no checkpoints").toEqual([]);
    for (const { target } of this.#disks) {
      if (this.#untracked.has(target)) continue;
      const bitmaps = state.bitmaps.filter(
        ({ node, inconsistent }) => node === this.#vm.nodeName(target) && !inconsistent,
      );
      const recording = bitmaps.filter((bitmap) => bitmap.recording);
      expect(recording.length, `recording bitmaps of ${target}`).toBe(Math.min(1, bitmaps.length));
    }
    expect({ ...state, bitmaps: [] }).toEqual({ ...this.#pristine, bitmaps: [] });
    expect(await this.#vm.qmp("query-status")).toMatchObject({ status: "running" });
  }

  #files(name: string): Promise<string[]> {
    return readdir(this.#directory.file(name)).catch(() => []);
  }

  #digests(): ReadonlyMap<string, string> {
    const digest = (content: Buffer): string => createHash("sha256").update(content).digest("hex");
    return new Map([...this.#contents].map(([target, content]) => [target, digest(content)]));
  }

  /** By QEMU's own tool, which knows nothing of ours. */
  async #imageDigest(image: string): Promise<string> {
    const raw = this.#directory.file("compare.raw");
    await qemuImg("convert", "-f", "qcow2", "-O", "raw", image, raw);
    return fileDigest(raw);
  }
}
