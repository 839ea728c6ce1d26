import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { basename } from "node:path";
import { expect } from "vitest";
import { loadConfig, startAgent } from "../../../src/agent.js";
import type {
  CreateDomainSnapshotRequest,
  DomainSnapshots,
  RevertDomainSnapshotRequest,
  SnapshotKind,
  SnapshotState,
} from "../../../src/model/domain-snapshot.js";
import { listBackups } from "../../../src/services/backup-catalog.js";
import { restoreBackup, verifyBackup } from "../../../src/services/backup-read.js";
import { runBackup } from "../../../src/services/backup-run.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { cloneDomainSnapshot } from "../../../src/services/domain-snapshots/clone.js";
import { createDomainSnapshot } from "../../../src/services/domain-snapshots/create.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { revertCost, revertDomainSnapshot } from "../../../src/services/domain-snapshots/revert.js";
import { type ErrorCode, isFleeceError } from "../../../src/shared/errors.js";
import { domainConfig, writeConfig } from "../../support/config-file.js";
import { createImage, qemuImg } from "../../support/image-tool.js";
import { endMachines, machinesOf } from "../../support/machines-of.js";
import { type JsonObject, Monitor } from "../../support/monitor.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import { type DiskFormat, qemuIoPath, type TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";

const KIB = 1024;
const MIB = 1024 * KIB;
const DOMAIN = "vm";

/** What is asked of a new snapshot. `one`: of one disk only. */
export type Asked = "plain" | "live" | "diskOnly" | "one" | "internal" | "internalDisks";

type Contents = ReadonlyMap<string, Buffer>;

interface ModelSnapshot {
  readonly parent: string | undefined;
  readonly kind: SnapshotKind;
  readonly state: SnapshotState;
  readonly hasMemory: boolean;
  readonly contents: Contents;
  /** Per disk, the external snapshot whose file is right below this one's. */
  readonly bases: ReadonlyMap<string, string>;
}

interface ModelClone {
  readonly directory: string;
  readonly contents: Contents;
  /** The snapshot that its files are based on; those of an internal one are copies. */
  readonly base: string | undefined;
}

/**
 * A real VM with three disks and no guest, whose domain snapshots, backups and clones are made by the services; and beside it the
 * naive model: the bytes of everything, and which file is based on which.
 */
export class SnapshotWorld implements AsyncDisposable {
  readonly #kind: SnapshotKind;
  readonly #directory: TemporaryDirectory;
  readonly #configPath: string;
  readonly #disks: readonly TestDisk[];
  readonly #vms: TestVm[] = [];
  /** What happened, for the message of a failure. */
  readonly history: string[] = [];
  /** What was reached, over all runs. */
  readonly counts = new Map<string, number>();
  #state: SnapshotState = "inactive";
  #current: string | undefined;
  #contents: Map<string, Buffer>;
  #bases = new Map<string, string>();
  #snapshots = new Map<string, ModelSnapshot>();
  readonly #backups = new Map<string, Contents>();
  #clones: readonly ModelClone[] = [];
  #names = 0;

  private constructor(parts: {
    kind: SnapshotKind;
    directory: TemporaryDirectory;
    configPath: string;
    disks: readonly TestDisk[];
    contents: Map<string, Buffer>;
  }) {
    this.#kind = parts.kind;
    this.#directory = parts.directory;
    this.#configPath = parts.configPath;
    this.#disks = parts.disks;
    this.#contents = parts.contents;
  }

  /** `kind`: of most snapshots. External ones are tried with a raw disk, which internal ones cannot have. */
  static async create(kind: SnapshotKind): Promise<SnapshotWorld> {
    const directory = await TemporaryDirectory.create();
    const format = kind === "external" ? "raw" : "qcow2";
    const disks: TestDisk[] = [
      { target: "vda", path: directory.file("a.qcow2"), format: "qcow2" },
      { target: "vdb", path: directory.file("b.qcow2"), format: "qcow2" },
      { target: "vdc", path: directory.file(`c.${format}`), format },
    ];
    const sizes = [2 * MIB + 512, MIB + 35 * 512, MIB + 4 * KIB];
    const contents = new Map<string, Buffer>();
    for (const [index, { target, path, format: imageFormat }] of disks.entries()) {
      const size = sizes[index] ?? MIB;
      await createImage(path, size, { format: imageFormat });
      contents.set(target, Buffer.alloc(size));
    }
    for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
    const configPath = await writeConfig(directory.path, {
      domains: [domainConfig(DOMAIN, { qmpPath: directory.file("vm.qmp"), disks })],
      more: { runtimeDir: directory.file("run") },
    });
    const world = new SnapshotWorld({ kind, directory, configPath, disks, contents });
    await world.togglePower();
    return world;
  }

  /** `at`: in thousandths of the disk. */
  async write(write: {
    readonly disk: number;
    readonly at: number;
    readonly length: number;
    readonly pattern: number;
  }): Promise<void> {
    const { disk, at, length, pattern } = write;
    if (this.#state === "inactive") return;
    const { target } = this.#disk(disk);
    const content = this.#contents.get(target) ?? Buffer.alloc(0);
    const start = Math.floor((at / 1000) * (content.length - 1));
    const end = Math.min(content.length, start + length);
    await this.#guestIo(target, `write -P ${pattern} ${start} ${end - start}`);
    this.#contents.set(target, Buffer.from(content).fill(pattern, start, end));
  }

  async create(wish: {
    readonly external: Asked;
    readonly internal: Asked;
    readonly disk: number;
    readonly other: boolean;
    readonly again: boolean;
  }): Promise<void> {
    const kind = (this.#kind === "external") === wish.other ? "internal" : "external";
    const asked = wish[kind];
    const name = wish.again ? ([...this.#snapshots.keys()][0] ?? "first") : `s${this.#names++}`;
    this.history.push(`  ${asked} ${name}`);
    const isInactive = this.#state === "inactive";
    const { target } = this.#disk(wish.disk);
    const diskOnly = asked === "diskOnly" || asked === "one" || asked === "internalDisks";
    const request: CreateDomainSnapshotRequest = {
      ...{ domain: DOMAIN, name, kind, diskOnly },
      ...(asked === "live" ? { live: true } : {}),
      ...(asked === "one" ? { disks: [{ disk: target }] } : {}),
    };
    const others = [...this.#snapshots.values()].some((snapshot) => snapshot.kind !== kind);
    const isUnstarted = !isInactive && (await this.#status()) === "prelaunch";
    const isRaw = kind === "internal" && (await this.#layers()).some(({ format }) => format === "raw");
    const made = await this.#expectRefusal(createDomainSnapshot(await this.#agent(), request), [
      this.#snapshots.has(name) && "ALREADY_EXISTS",
      others && "UNSUPPORTED",
      isRaw && "UNSUPPORTED",
      isUnstarted && "UNSUPPORTED",
      asked === "live" && isInactive && "INVALID_ARGUMENT",
    ]);
    if (made === undefined) return;
    const hasMemory = !diskOnly && !isInactive;
    expect([made.state, made.kind, made.memory !== undefined]).toEqual([this.#state, kind, hasMemory]);
    const held = asked === "one" ? [target] : this.#disks.map((each) => each.target);
    this.#add(name, { kind, state: this.#state, hasMemory }, held);
    this.#count(`${kind}${hasMemory ? " with memory" : ""} of a ${this.#state} domain`);
  }

  /** Forced at once, or when it is refused without; as somebody does who knows what it costs. */
  async revert(which: number, force: boolean): Promise<void> {
    const chosen = this.#choose(which);
    if (chosen === undefined) return;
    await this.#revert(...chosen, force);
  }

  async #revert(name: string, snapshot: ModelSnapshot, force: boolean): Promise<void> {
    const context = await this.#agent();
    const request: RevertDomainSnapshotRequest = { domain: DOMAIN, name, force };
    const internal = snapshot.kind === "internal";
    const isInactive = this.#state === "inactive";
    const isPart = snapshot.contents.size < this.#disks.length;
    // A second QEMU cannot open the disks that stay.
    const isHeld = isPart && !isInactive && snapshot.state !== "inactive";
    const cost = await this.#expectRefusal(revertCost(context, request), [isHeld && "UNSUPPORTED"]);
    if (cost === undefined) return;
    const { risks } = cost;
    if (isPart) expect(risks).not.toEqual([]);
    const misfit = internal && isInactive === snapshot.hasMemory;
    const outcome = await this.#expectRefusal(revertDomainSnapshot(context, request), [
      misfit && "UNSUPPORTED",
      risks.length > 0 && !force && "FORCE_NEEDED",
    ]);
    if (outcome === undefined) {
      if (!force && risks.length > 0 && !misfit) await this.#revert(name, snapshot, true);
      return;
    }
    this.history.push(
      `  -> ${name}; kept as ${String(outcome.keptAs)}; ended ${outcome.endedCheckpoints.join()}`,
    );
    expect(outcome.keptAs === undefined).toBe(force);
    const present = { kind: snapshot.kind, state: this.#state };
    if (outcome.keptAs !== undefined) {
      expect(this.#snapshots.has(outcome.keptAs)).toBe(false);
      const hasMemory = internal && this.#state !== "inactive";
      this.#add(
        outcome.keptAs,
        { ...present, hasMemory },
        this.#disks.map(({ target }) => target),
      );
    }
    const hasQemu = snapshot.hasMemory || this.#state !== "inactive";
    this.#state = hasQemu ? snapshot.state : "inactive";
    expect(outcome.state).toBe(this.#state);
    this.#current = name;
    for (const [target, content] of snapshot.contents) {
      this.#contents.set(target, content);
      if (!internal) this.#bases.set(target, name);
    }
    this.#count(`${snapshot.kind} revert to ${this.#state}`);
  }

  async delete(which: number): Promise<void> {
    const chosen = this.#choose(which);
    if (chosen === undefined) return;
    const [name, { parent, bases }] = chosen;
    const outcome = await this.#expectRefusal(
      deleteDomainSnapshot(await this.#agent(), { domain: DOMAIN, name }),
      [this.#clones.some(({ base }) => base === name) && "DOMAIN_SNAPSHOT_IN_USE"],
    );
    if (outcome === undefined) return;
    this.history.push(`  -> ${name}: ${outcome.merged.map(({ target, how }) => `${target} ${how}`).join()}`);
    this.#snapshots.delete(name);
    const without = (map: ReadonlyMap<string, string>): Map<string, string> =>
      new Map(
        [...map].flatMap(([target, base]): [string, string][] => {
          const next = base === name ? bases.get(target) : base;
          return next === undefined ? [] : [[target, next]];
        }),
      );
    const others = [...this.#snapshots].map(([each, snapshot]): [string, ModelSnapshot] => [
      each,
      {
        ...snapshot,
        parent: snapshot.parent === name ? parent : snapshot.parent,
        bases: without(snapshot.bases),
      },
    ]);
    this.#snapshots = new Map(others);
    this.#bases = without(this.#bases);
    if (this.#current === name) this.#current = parent;
    this.#count(`deletion, ${this.#state}`);
    for (const { how } of outcome.merged) this.#count(`deletion by ${how}`);
  }

  async clone(which: number): Promise<void> {
    const chosen = this.#choose(which);
    if (chosen === undefined) return;
    const [name, snapshot] = chosen;
    const directory = this.#directory.file(`clone-${this.#names++}`);
    await cloneDomainSnapshot(await this.#agent(), { domain: DOMAIN, name, directory });
    const base = snapshot.kind === "external" ? name : undefined;
    this.#clones = [...this.#clones, { directory, base, contents: snapshot.contents }];
    this.#count(`${snapshot.kind} clone`);
  }

  async removeClone(which: number): Promise<void> {
    const removed = this.#clones[which % Math.max(1, this.#clones.length)];
    if (removed === undefined) return;
    await rm(removed.directory, { recursive: true });
    this.#clones = this.#clones.filter((clone) => clone !== removed);
  }

  /** With a checkpoint. */
  async backup(): Promise<void> {
    const { id, manifest } = await runBackup(await this.#agent(), { domain: DOMAIN });
    const modes = manifest.disks.map(({ target, mode }) => `${target} ${mode}`).join();
    this.history.push(`  -> ${manifest.level} ${id} (${modes}): ${manifest.reason}`);
    this.#backups.set(id, new Map(this.#contents));
    this.#count(`${manifest.level} backup`);
  }

  /** On the files that the document says, as whoever starts the domain must. */
  async togglePower(): Promise<void> {
    if (this.#state === "inactive") {
      const disks = (await this.#layers()).map(({ target, file, format }) => ({
        target,
        path: file,
        format,
      }));
      const directory = this.#directory.path;
      this.#vms.push(await TestVm.start({ directory, disks, memoryMib: 32, extraQmp: 1 }));
      this.#state = "running";
      return;
    }
    // QEMU may close the socket before the reply is read.
    await this.#qmp("quit").catch(() => undefined);
    await expect.poll(() => machinesOf(this.#directory.path), { timeout: 60_000 }).toEqual([]);
    this.#state = "inactive";
  }

  async togglePause(): Promise<void> {
    if (this.#state === "inactive") return;
    await this.#qmp(this.#state === "running" ? "stop" : "cont");
    this.#state = this.#state === "running" ? "paused" : "running";
  }

  /** What must be true after anything. */
  async check(): Promise<void> {
    const all = await this.#document();
    expect(all.current).toBe(this.#current);
    expect(
      all.snapshots.map(({ name, parent, kind, state, memory }) => [
        name,
        parent,
        kind,
        state,
        memory !== undefined,
      ]),
    ).toEqual(
      [...this.#snapshots].map(([name, { parent, kind, state, hasMemory }]) => [
        name,
        parent,
        kind,
        state,
        hasMemory,
      ]),
    );
    await this.#checkMachine();
    await this.#checkContents(all);
    await this.#checkFiles(all);
    await this.#checkBackups();
  }

  /** The product's own reading of every backup: verify and restore. */
  async checkRestores(): Promise<void> {
    const context = await this.#agent();
    for (const [id, contents] of this.#backups) {
      await verifyBackup(context, id);
      const directory = this.#directory.file(`restored-${id}`);
      for (const { target, file } of await restoreBackup(context, { id, directory, format: "raw" })) {
        expectSame(await readFile(file), contents.get(target), `restored ${target} of ${id}`);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const vm of this.#vms) await vm[Symbol.asyncDispose]();
    // What a revert starts outlives this process on purpose.
    await endMachines(this.#directory.path);
    await this.#directory[Symbol.asyncDispose]();
  }

  #disk(index: number): TestDisk {
    const disk = this.#disks[index % this.#disks.length];
    if (disk === undefined) throw new Error(`Expected a disk, got none for ${index}`);
    return disk;
  }

  #choose(which: number): [string, ModelSnapshot] | undefined {
    const all = [...this.#snapshots];
    const chosen = all[which % Math.max(1, all.length)];
    if (chosen !== undefined) this.history.push(`  of ${chosen[0]}`);
    return chosen;
  }

  /** The present becomes a snapshot; external ones leave their files to it. */
  #add(
    name: string,
    what: Pick<ModelSnapshot, "kind" | "state" | "hasMemory">,
    held: readonly string[],
  ): void {
    const of = <T>(map: ReadonlyMap<string, T>): Map<string, T> =>
      new Map([...map].filter(([target]) => held.includes(target)));
    const bases = what.kind === "external" ? of(this.#bases) : new Map<string, string>();
    this.#snapshots.set(name, {
      ...what,
      parent: this.#current,
      contents: of(this.#contents),
      bases,
    });
    this.#current = name;
    if (what.kind === "external") for (const target of held) this.#bases.set(target, name);
  }

  /** Undefined if it was refused, which must be with one of the codes; and if there is one, it must be refused. */
  async #expectRefusal<T>(action: Promise<T>, codes: readonly (ErrorCode | false)[]): Promise<T | undefined> {
    const expected = codes.filter((code) => code !== false);
    let outcome: T;
    try {
      outcome = await action;
    } catch (error) {
      if (!expected.some((code) => isFleeceError(error, code))) throw error;
      this.history.push(`  -> refused: ${isFleeceError(error) ? error.message : ""}`);
      this.#count("refused");
      return undefined;
    }
    expect(expected, "codes of a refusal that did not come").toEqual([]);
    return outcome;
  }

  async #checkMachine(): Promise<void> {
    const machines = await machinesOf(this.#directory.path);
    expect(machines, "QEMUs").toHaveLength(this.#state === "inactive" ? 0 : 1);
    if (this.#state === "inactive") return;
    const status = await this.#status();
    // A QEMU that was started for disks alone, and is to be paused, has not run yet.
    expect(status === "prelaunch" ? "paused" : status).toBe(this.#state);
    for (const { target } of this.#disks) await this.#guestIo(target, "flush");
  }

  async #status(): Promise<string> {
    const { status } = (await this.#qmp("query-status")) as { readonly status: string };
    return status;
  }

  async #checkContents(all: DomainSnapshots): Promise<void> {
    for (const { target, file, format } of await this.#layers()) {
      expectSame(await this.#read(file, format), this.#contents.get(target), `the present of ${target}`);
    }
    for (const { name, kind, disks } of all.snapshots) {
      const contents = this.#snapshots.get(name)?.contents ?? new Map<string, Buffer>();
      expect(disks.map(({ target }) => target)).toEqual([...contents.keys()]);
      for (const { target, file, format } of disks) {
        const inside = kind === "internal" ? ["-l", `snapshot.name=${name}`] : [];
        expectSame(await this.#read(file, format, inside), contents.get(target), `${target} of ${name}`);
      }
    }
    for (const { directory, contents } of this.#clones) {
      for (const [target, content] of contents) {
        const image = await this.#read(`${directory}/${target}.qcow2`, "qcow2");
        expectSame(image, content, `${target} of ${directory}`);
      }
    }
  }

  /** Every overlay is based on what the model says, and there are no other files. */
  async #checkFiles(all: DomainSnapshots): Promise<void> {
    const fileOf = (name: string, target: string): string | undefined =>
      all.snapshots.find((each) => each.name === name)?.disks.find((disk) => disk.target === target)?.file;
    const chainFrom = (target: string, file: string, bases: ReadonlyMap<string, string>): string[] => {
      const base = bases.get(target);
      const below = base === undefined ? undefined : fileOf(base, target);
      if (base === undefined || below === undefined) return [file];
      return [file, ...chainFrom(target, below, this.#snapshots.get(base)?.bases ?? new Map())];
    };
    const expected: [string, string[]][] = [];
    for (const { target, file } of await this.#layers())
      expected.push([file, chainFrom(target, file, this.#bases)]);
    for (const { name, kind, disks } of all.snapshots) {
      if (kind === "internal") continue;
      const bases = this.#snapshots.get(name)?.bases ?? new Map<string, string>();
      for (const { target, file } of disks) expected.push([file, chainFrom(target, file, bases)]);
    }
    for (const [file, chain] of expected)
      expect(await backingChain(file), `the chain of ${file}`).toEqual(chain);
    const memories = all.snapshots.flatMap(({ memory }) =>
      memory?.kind === "external" ? [memory.file] : [],
    );
    const homes = this.#disks.map(({ path }) => path);
    const named = [...expected.map(([file]) => file).filter((file) => !homes.includes(file)), ...memories];
    const found = await this.#list(`state/domain-snapshots/${DOMAIN}`);
    expect(found.filter((name) => name !== "snapshots.json")).toEqual(
      [...new Set(named.map((file) => basename(file)))].toSorted(),
    );
    for (const name of ["scratch", "run", `state/operations/${DOMAIN}`]) {
      expect(await this.#list(name), name).toEqual([]);
    }
  }

  async #checkBackups(): Promise<void> {
    const listed = await listBackups(await this.#agent());
    expect(listed.map(({ id }) => id).toSorted()).toEqual([...this.#backups.keys()].toSorted());
    for (const [id, contents] of this.#backups) {
      for (const [target, content] of contents) {
        const image = this.#directory.file(`backups/${DOMAIN}/${id}/${target}.qcow2`);
        expectSame(await this.#read(image, "qcow2"), content, `${target} of backup ${id}`);
      }
    }
  }

  async #layers(): Promise<{ target: string; file: string; format: DiskFormat }[]> {
    const { layers } = await this.#document();
    return this.#disks.map(({ target, path, format }) => {
      const layer = layers.find((each) => each.target === target);
      return { target, file: layer?.active ?? path, format: layer?.format ?? format };
    });
  }

  async #document(): Promise<DomainSnapshots> {
    return (await this.#agent()).domainSnapshots.read(DOMAIN);
  }

  /** As every command does: recovery comes first. */
  async #agent(): Promise<ServiceContext> {
    const note = (facts: object, message: string): void =>
      void this.history.push(`  -> log: ${message} ${JSON.stringify(facts)}`);
    return startAgent(await loadConfig(this.#configPath), {
      debug: () => undefined,
      info: () => undefined,
      warn: note,
    });
  }

  /** By QEMU's own tool, also while the domain runs. */
  async #read(file: string, format: string, more: readonly string[] = []): Promise<Buffer> {
    const raw = this.#directory.file("compare.raw");
    await qemuImg("convert", "-U", "-f", format, ...more, "-O", "raw", file, raw);
    return readFile(raw);
  }

  async #guestIo(target: string, command: string): Promise<void> {
    const device = qemuIoPath({ target, path: "", format: "qcow2" });
    const reply = await this.#qmp("human-monitor-command", {
      "command-line": `qemu-io -d ${device} "${command}"`,
    });
    expect(String(reply)).not.toMatch(/error|failed/i);
  }

  /** The socket that every QEMU of the domain has for the test: also those that the product started. */
  async #qmp(command: string, args?: JsonObject): Promise<unknown> {
    await using monitor = await Monitor.connect(
      this.#directory.file("vm-2.qmp"),
      AbortSignal.timeout(60_000),
    );
    return await monitor.execute(command, args);
  }

  async #list(directory: string): Promise<string[]> {
    return (await readdir(this.#directory.file(directory)).catch(() => [])).toSorted();
  }

  #count(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
  }
}

async function backingChain(file: string): Promise<string[]> {
  const text = await qemuImg("info", "-U", "--backing-chain", "--output=json", file);
  return (JSON.parse(text) as { filename: string }[]).map(({ filename }) => filename);
}

/** Vitest's words about two megabytes would say nothing. */
function expectSame(found: Buffer, expected: Buffer | undefined, what: string): void {
  expect(found.length, `the size of ${what}`).toBe(expected?.length);
  const at = found.findIndex((byte, index) => byte !== expected?.[index]);
  if (at < 0) return;
  throw new Error(`Expected ${expected?.[at]} at ${at} in ${what}, got ${found[at]}`);
}
