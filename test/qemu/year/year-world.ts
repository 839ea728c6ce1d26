import { execFile } from "node:child_process";
import { mkdir, readdir, readFile, rm, statfs } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect } from "vitest";
import { loadConfig, startAgent } from "../../../src/agent.js";
import type { IntactEntry } from "../../../src/model/backup.js";
import { endedWell, type RunRecord } from "../../../src/model/run-record.js";
import { listBackups, protectBackup } from "../../../src/services/backup-catalog.js";
import { restoreBackup } from "../../../src/services/backup-read.js";
import type { ServiceContext } from "../../../src/services/context.js";
import { requireJob } from "../../../src/services/jobs/job-runner.js";
import { keepSchedule } from "../../../src/services/jobs/scheduler.js";
import type { BlockState } from "../../support/block-state.js";
import { domainConfig, writeConfig } from "../../support/config-file.js";
import { startFleece } from "../../support/fleece.js";
import { copyToRaw, createImage, fillImage } from "../../support/image-tool.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { mountTmpfs } from "../../support/mount.js";
import { SkippingClock } from "../../support/skipping-clock.js";
import { TemporaryDirectory } from "../../support/temporary-directory.js";
import type { TestDisk } from "../../support/vm-arguments.js";
import { TestVm } from "../../support/vm.js";
import { type KnownBackup, naiveRetention } from "./naive-retention.js";
import type { Random } from "./random.js";

const run = promisify(execFile);
const KIB = 1024;
const DOMAIN = "vm";
const JOB = "nightly";
const TIME_ZONE = "Europe/Berlin";
const POLICY = { daily: 5, weekly: 4, monthly: 6, maximumChainLength: 9 };
const preloads = ["./shift-clock.mjs", "../../faults/support/steps.mjs"].map(
  (file) => `--import ${fileURLToPath(new URL(file, import.meta.url))}`,
);

interface Agent {
  readonly context: ServiceContext;
  readonly stop: AbortController;
  readonly schedule: Promise<void>;
}

interface Backup extends KnownBackup {
  /** The bytes of each disk at its moment. */
  readonly disks: ReadonlyMap<string, Buffer>;
}

/** What must not grow with the nights. */
export interface Traces {
  /** Of the state directory, without the records of runs and what is named after a backup. */
  readonly stateFiles: readonly string[];
  readonly runFiles: readonly string[];
  readonly nodesPerDisk: number;
  readonly openFiles: number;
}

/**
 * A running VM, and an agent in this process whose time the test decides; beside them the naive model: the bytes of the disks
 * now, and those of every backup that there must be.
 */
export class YearWorld {
  readonly clock: SkippingClock;
  readonly #directory: TemporaryDirectory;
  readonly #random: Random;
  readonly #canFill: boolean;
  #vm: TestVm;
  #pristine: BlockState;
  #reserve = "1M";
  #agent: Agent | undefined;
  readonly #contents = new Map<string, Buffer>();
  #backups: Backup[] = [];
  /** Moments of the schedule that have had their run. */
  readonly #handled = new Set<number>();
  /** What happened, for the message of a failure. */
  readonly history: string[] = [];

  private constructor(parts: {
    directory: TemporaryDirectory;
    random: Random;
    canFill: boolean;
    vm: TestVm;
    pristine: BlockState;
    now: number;
  }) {
    this.#directory = parts.directory;
    this.#random = parts.random;
    this.#canFill = parts.canFill;
    this.#vm = parts.vm;
    this.#pristine = parts.pristine;
    this.clock = new SkippingClock(parts.now);
  }

  static async create(now: number, random: Random): Promise<YearWorld> {
    const directory = untilTestEnds(await TemporaryDirectory.create());
    for (const name of ["backups", "scratch"]) await mkdir(directory.file(name));
    const canFill = await mountTmpfs(directory.file("backups"), "size=256m");
    const contents = new Map<string, Buffer>();
    const disks = [
      await newDisk(directory, contents, "vda", 1024 * KIB + 512),
      await newDisk(directory, contents, "vdb", 640 * KIB),
    ];
    const vm = await TestVm.start({ directory: directory.path, disks });
    const world = new YearWorld({ directory, random, canFill, vm, pristine: await vm.blockState(), now });
    for (const [target, content] of contents) world.#contents.set(target, content);
    untilTestEnds({ [Symbol.asyncDispose]: () => world.#end() });
    await world.startAgent();
    return world;
  }

  get canFill(): boolean {
    return this.#canFill;
  }

  isHandled(scheduledMs: number): boolean {
    return this.#handled.has(scheduledMs);
  }

  /** As a service starts: what is left of the one before it is put in order first. */
  async startAgent(): Promise<void> {
    const configPath = await this.#configure();
    const note = (facts: object, message: string): void =>
      void this.history.push(`    ${message} ${JSON.stringify(facts)}`);
    const log = { debug: () => undefined, info: () => undefined, warn: note };
    const context = await startAgent(await loadConfig(configPath), log, { clock: this.clock });
    const stop = new AbortController();
    this.#agent = { context, stop, schedule: keepSchedule(context, stop.signal) };
    await this.#settled();
  }

  /** As SIGTERM does: runs are ended and undone. */
  async stopAgent(): Promise<void> {
    const { context, stop, schedule } = this.#running();
    stop.abort();
    await schedule;
    await context.jobs.runner.close();
    this.#agent = undefined;
  }

  /** The agent sees what time it is, and does what is due; resolves with the runs that it has had to do. */
  async passUntil(timeMs: number): Promise<readonly RunRecord[]> {
    const known = await this.recordIds();
    this.skipTo(timeMs);
    return this.runsSince(known);
  }

  /** Time passes while no agent runs. */
  skipTo(timeMs: number): void {
    this.clock.skip(timeMs - this.clock.now());
  }

  /** Somebody sets the clock on the wall; resolves with the runs that the agent has had to do by it. */
  async setClock(timeMs: number): Promise<readonly RunRecord[]> {
    this.clock.set(timeMs);
    // It looks at the clock every ten seconds.
    return this.passUntil(timeMs + 11_000);
  }

  /** What an agent has had to do that was started just now, beside the records that there were. */
  async runsSince(known: ReadonlySet<string>): Promise<readonly RunRecord[]> {
    await this.#settled();
    return this.#ended(known);
  }

  /** Also while no agent runs. */
  async recordIds(): Promise<ReadonlySet<string>> {
    const names = await this.#files("state/notes/runs");
    return new Set(names.map((name) => name.slice(0, name.indexOf("."))));
  }

  async requestRun(): Promise<RunRecord> {
    const { context } = this.#running();
    const { runner } = context.jobs;
    const { ended } = await runner.start(context, {
      job: requireJob(context, JOB),
      trigger: "request",
      retries: 0,
    });
    return ended;
  }

  /** The agent ends while the run for this moment is under way, sooner or later in it. */
  async cutOff(scheduledMs: number): Promise<void> {
    this.clock.skip(scheduledMs + 1000 - this.clock.now());
    const { runner } = this.#running().context.jobs;
    while (!runner.isRunning(JOB)) await moment();
    await moment(this.#random.below(200));
    await this.stopAgent();
  }

  /** A service of the built command, which is killed in the midst of its first run. */
  async killedAgent(scheduledMs: number): Promise<void> {
    await this.stopAgent();
    this.clock.skip(scheduledMs + 1000 - this.clock.now());
    const configPath = await this.#configure();
    const steps = {
      match: /^(rename|rm) \S+\/state\/operations\/\S+\.json$/.source,
      log: this.#directory.file("steps.log"),
      ...{ at: 1 + this.#random.below(6), when: "after", action: "kill" },
    };
    const agent = await startFleece(["serve"], {
      configPath,
      env: {
        NODE_OPTIONS: preloads.join(" "),
        FLEECE_TEST_AHEAD_MS: String(this.clock.aheadMs),
        FLEECE_TEST_STEPS: JSON.stringify(steps),
      },
    });
    const { signal, stderr } = await agent.result();
    expect(signal, stderr).toBe("SIGKILL");
  }

  /** The guest's writes of a day. */
  async writes(count = 1 + this.#random.below(4)): Promise<void> {
    if (!this.#vm.running) return;
    for (const { target } of this.#vm.disks) {
      const content = this.#contentOf(target);
      for (let index = 0; index < count; index++) {
        const start = this.#random.below(content.length);
        const length = Math.min(content.length - start, 1 + this.#random.below(100 * KIB));
        await this.#write(
          target,
          start,
          length,
          this.#random.below(8) === 0 ? 0 : 1 + this.#random.below(255),
        );
      }
      await this.#vm.guestFlush(target);
    }
  }

  async killQemu(): Promise<void> {
    await this.#vm.kill();
    await this.#vm.restart();
  }

  async restartQemu(): Promise<void> {
    await this.#vm.restart();
  }

  async shutDown(): Promise<void> {
    await this.#vm.quit();
  }

  async powerOn(): Promise<void> {
    await this.#vm.restart();
  }

  /** The administrator adds a disk to the machine and to the configuration, as long as there are few. */
  async addDisk(): Promise<void> {
    const target = ["vdc", "vdd"].find((name) => !this.#contents.has(name));
    if (target === undefined) return;
    await this.stopAgent();
    await this.#vm.quit();
    const disk = await newDisk(this.#directory, this.#contents, target, 448 * KIB);
    this.#vm = await TestVm.start({ directory: this.#directory.path, disks: [...this.#vm.disks, disk] });
    this.#pristine = await this.#vm.blockState();
    await this.startAgent();
  }

  async resizeDisk(): Promise<void> {
    const { target } = this.#random.of(this.#vm.disks);
    const content = this.#contentOf(target);
    // Back to what it was before, so that a year of it does not fill the host.
    const size =
      content.length % (1024 * KIB) === 0 ? content.length - 128 * KIB : content.length + 128 * KIB;
    await this.#vm.qmp("block_resize", { "node-name": this.#vm.nodeName(target), size });
    this.#contents.set(target, Buffer.concat([content, Buffer.alloc(128 * KIB)]).subarray(0, size));
  }

  /** `reserve`: more than the file system has. */
  async setReserve(reserve: string): Promise<void> {
    await this.stopAgent();
    this.#reserve = reserve;
    await this.startAgent();
  }

  /** Leaves room for less than what the guest writes then. False where this user may mount nothing that could be full. */
  async fillRepository(): Promise<boolean> {
    if (!this.#canFill) return false;
    const path = this.#directory.file("backups");
    const { bavail, bsize } = await statfs(path);
    await run("fallocate", ["-l", String(bavail * bsize - 192 * KIB), `${path}/ballast`]);
    const { target } = this.#vm.disk("vda");
    await this.#write(target, 0, 512 * KIB, 1 + this.#random.below(255));
    return true;
  }

  async emptyRepository(): Promise<void> {
    await rm(this.#directory.file("backups/ballast"));
  }

  async protectOne(): Promise<void> {
    const chosen = this.#random.of(this.#backups);
    await protectBackup(this.#running().context, chosen.id, true);
    this.#backups = this.#backups.map((backup) => ({ ...backup, isProtected: backup.id === chosen.id }));
    for (const { id, isProtected } of this.#backups) {
      if (!isProtected) await protectBackup(this.#running().context, id, false);
    }
  }

  /** What the run has left is what the model says. Its backup shows the disks as they are now. */
  async expectBackedUp(record: RunRecord): Promise<void> {
    this.history.push(`  -> ${record.trigger} ${record.state} ${JSON.stringify(record.error ?? "")}`);
    expect(endedWell(record), JSON.stringify(record.domains)).toBe(true);
    if (record.scheduledMs !== undefined) this.#handled.add(record.scheduledMs);
    const [part] = record.domains;
    const notes = [...(part?.notes ?? []), ...(record.notes ?? [])];
    expect(notes.filter((note) => !/^disk \S+ was (read in full|stored whole)/.test(note))).toEqual([]);
    expect(notes.join("\n")).not.toContain("a sample");
    if (part?.backup === undefined) throw new Error("Expected a backup in the record of the run");
    await this.#take(part.backup);
    this.#backups = naiveRetention(this.#backups, POLICY);
  }

  expectFailed(record: RunRecord, code: string): void {
    this.history.push(`  -> ${record.trigger} ${record.state}: ${record.error?.message ?? ""}`);
    expect(record).toMatchObject({ state: "failed", error: { code }, domains: [{ attempts: 4 }] });
    if (record.scheduledMs !== undefined) this.#handled.add(record.scheduledMs);
  }

  /** What was published, though nobody could say so, has the content of now. Retention may have got anywhere. */
  async expectCutOff(record: RunRecord): Promise<void> {
    this.history.push(`  -> ${record.trigger} ${record.state}, cut off`);
    if (record.scheduledMs !== undefined) this.#handled.add(record.scheduledMs);
    if (!endedWell(record)) return;
    const [part] = record.domains;
    if (part?.backup === undefined) throw new Error("Expected a backup in the record of the run");
    await this.#take(part.backup);
    const listed = await listBackups(this.#running().context);
    const ids = listed.map(({ id }) => id);
    expect(ids).toEqual(expect.arrayContaining(naiveRetention(this.#backups, POLICY).map(({ id }) => id)));
    this.#backups = this.#backups
      .filter(({ id }) => ids.includes(id))
      .map((backup) => ({ ...backup, parent: listed.find(({ id }) => id === backup.id)?.manifest?.parent }));
  }

  /** What must be true after any night: the backups that there must be, and nothing else. */
  async check(): Promise<void> {
    const listed = await listBackups(this.#running().context);
    const asListed = listed.map((entry) => ({ id: entry.id, parent: entry.manifest?.parent }));
    const expected = this.#backups.map(({ id, parent }) => ({ id, parent }));
    expect(asListed.toSorted(byId), "backups that are listed").toEqual(expected.toSorted(byId));
    expect(await this.#files("scratch"), "scratch files").toEqual([]);
    expect(await this.#files("state/operations"), "journal").toEqual(["vm"]);
    expect(await this.#files("state/operations/vm"), "journal").toEqual([]);
    const inRepository = (await this.#files("backups/vm")).filter((name) => name !== ".lock");
    expect(inRepository, "directories of backups").toEqual(expected.map(({ id }) => id).toSorted());
    if (!this.#vm.running) return;
    const state = await this.#vm.blockState();
    const ids = new Set(expected.map(({ id }) => id));
    for (const { target } of this.#vm.disks) {
      const bitmaps = state.bitmaps.filter(({ node }) => node === this.#vm.nodeName(target));
      const strange = bitmaps.filter(
        ({ name, inconsistent }) => !inconsistent && !ids.has(name.split(":").at(-1) ?? ""),
      );
      expect(strange, `checkpoints of ${target} without a backup`).toEqual([]);
      expect(
        bitmaps.filter(({ recording, inconsistent }) => recording && !inconsistent).length,
      ).toBeLessThanOrEqual(1);
    }
    expect({ ...state, bitmaps: [] }).toEqual({ ...this.#pristine, bitmaps: [] });
  }

  /** Every backup that there is, byte for byte. */
  async checkRestores(): Promise<void> {
    const { context } = this.#running();
    const to = this.#directory.file("restored");
    for (const { id, disks } of this.#backups) {
      const restored = await restoreBackup(context, { id, directory: to, format: "raw" });
      expect(restored.map(({ target }) => target).toSorted()).toEqual([...disks.keys()].toSorted());
      for (const { target, file } of restored) {
        const content = await readFile(file);
        expect(content.equals(disks.get(target) ?? Buffer.alloc(0)), `restored ${target} of ${id}`).toBe(
          true,
        );
      }
      await rm(to, { recursive: true });
    }
  }

  async traces(): Promise<Traces> {
    const ids = new Set(this.#backups.map(({ id }) => id));
    const stateFiles = await readdir(this.#directory.file("state"), { recursive: true });
    return {
      stateFiles: stateFiles
        .filter(
          (name) => !name.startsWith("notes/runs/") && !ids.has(name.split("/").at(-1)?.split(".")[0] ?? ""),
        )
        .toSorted(),
      runFiles: await this.#files("run"),
      nodesPerDisk: (await this.#vm.blockState()).nodes.length / this.#vm.disks.length,
      openFiles: (await readdir("/proc/self/fd")).length,
    };
  }

  async #take(entry: IntactEntry): Promise<void> {
    const { id, manifest } = entry;
    const timeMs = Date.parse(manifest.time);
    expect(Math.abs(this.clock.now() - timeMs), "the moment of the backup").toBeLessThan(10 * 60_000);
    this.history.push(`  -> ${manifest.level} ${id} on ${manifest.parent ?? "nothing"}: ${manifest.reason}`);
    expect(manifest.disks.map(({ target }) => target).toSorted()).toEqual(
      [...this.#contents.keys()].toSorted(),
    );
    const disks = new Map([...this.#contents].map(([target, content]) => [target, Buffer.from(content)]));
    // By QEMU's own tool, which knows nothing of ours.
    for (const [target, content] of disks) {
      const raw = this.#directory.file("compare.raw");
      await copyToRaw(this.#directory.file(`backups/${DOMAIN}/${id}/${target}.qcow2`), "qcow2", raw);
      expect((await readFile(raw)).equals(content), `disk ${target} of backup ${id}`).toBe(true);
    }
    this.#backups = [...this.#backups, { id, timeMs, parent: manifest.parent, isProtected: false, disks }];
  }

  /** Resolves when the schedule has been looked at. */
  async #settled(): Promise<void> {
    const { stop } = this.#running();
    while (!this.clock.isAsleep(stop.signal)) await moment();
  }

  /** What is not among the known, once it has ended; pauses before another try are passed over. */
  async #ended(known: ReadonlySet<string>): Promise<readonly RunRecord[]> {
    const { runner } = this.#running().context.jobs;
    while (runner.isRunning(JOB)) {
      const [record] = await this.#recordsBut(known);
      if (record?.domains[0]?.phase === "pause") this.clock.skip(5 * 60_000);
      await moment();
    }
    return this.#recordsBut(known);
  }

  /** Newest first. */
  async #recordsBut(known: ReadonlySet<string>): Promise<readonly RunRecord[]> {
    const { log } = this.#running().context.jobs.runner;
    const others = (await log.summaries(JOB)).filter(({ id }) => !known.has(id));
    const records = await Promise.all(others.map((one) => log.read(one)));
    return records.filter((record) => record !== undefined);
  }

  async #configure(): Promise<string> {
    return writeConfig(this.#directory.path, {
      domains: [{ ...domainConfig(DOMAIN, this.#vm), retention: { ...POLICY, timeZone: TIME_ZONE } }],
      more: {
        runtimeDir: this.#directory.file("run"),
        // Bitmaps are proved as well: a change that they missed would be a note.
        sample: "10%",
        repositories: [{ name: "default", path: this.#directory.file("backups"), reserve: this.#reserve }],
        jobs: [{ name: JOB, schedule: "30 2 * * *", timeZone: TIME_ZONE, domains: "all" }],
      },
    });
  }

  async #write(target: string, offset: number, length: number, pattern: number): Promise<void> {
    const verdict = await this.#vm.guestWrite(target, offset, length, pattern);
    expect(verdict.ok, `the guest's write: ${verdict.text}`).toBe(true);
    this.#contentOf(target).fill(pattern, offset, offset + length);
  }

  #contentOf(target: string): Buffer {
    const content = this.#contents.get(target);
    if (content === undefined) throw new Error(`There is no disk ${target}`);
    return content;
  }

  #running(): Agent {
    if (this.#agent === undefined) throw new Error("The agent does not run");
    return this.#agent;
  }

  async #files(name: string): Promise<string[]> {
    return (await readdir(this.#directory.file(name)).catch(() => [])).toSorted();
  }

  async #end(): Promise<void> {
    if (this.#agent !== undefined) await this.stopAgent();
    await this.#vm[Symbol.asyncDispose]();
  }
}

async function newDisk(
  directory: TemporaryDirectory,
  contents: Map<string, Buffer>,
  target: string,
  size: number,
): Promise<TestDisk> {
  const path = directory.file(`${target}.qcow2`);
  await createImage(path, size);
  await fillImage(path, "qcow2", { offset: 0, length: 256 * KIB, pattern: 0x5a });
  contents.set(target, Buffer.alloc(size).fill(0x5a, 0, 256 * KIB));
  return { target, path, format: "qcow2" };
}

function moment(ms = 5): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function byId(a: { readonly id: string }, b: { readonly id: string }): number {
  return a.id < b.id ? -1 : 1;
}
