import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import type { IntactEntry } from "../../../src/model/backup.js";
import { isIntact } from "../../../src/model/backup.js";
import { BLOCK_SIZE } from "../../../src/model/extents.js";
import type { BackupRequest } from "../../../src/services/backup-run.js";
import { runBackup } from "../../../src/services/backup-run.js";
import { recoverAll } from "../../../src/services/recovery.js";
import { FleeceError } from "../../../src/shared/errors.js";
import { FakeWorld } from "../../support/fake-agent.js";

/**
 * What happens at one point of a backup. `fail`: the call fails. `disconnect`: QMP breaks, QEMU goes on. `stop`, `crash`:
 * QEMU ends. `start`: an inactive domain starts. `abort`: the caller gives up. `kill`: our process executes nothing more.
 */
export type Fault = "none" | "fail" | "disconnect" | "stop" | "crash" | "start" | "abort" | "kill";

export interface Scenario {
  readonly fault: Fault;
  /** At which of the points that the backup passes, from 0. */
  readonly at: number;
  /** With an earlier backup, the one under test is incremental. */
  readonly level: "full" | "incremental";
  readonly running: boolean;
  /** QEMU crashes after the earlier backup: the one under test must compare. */
  readonly lost?: boolean;
  readonly disks?: readonly string[];
  readonly quiesce?: true;
  /** QEMU pushes the disks. */
  readonly staged?: true;
}

export interface Passed {
  readonly points: readonly string[];
  /** What is not as it should be afterwards. */
  readonly problems: readonly string[];
}

const BLOCKS = 28;
const DISKS = [
  { target: "vda", sizeBytes: BLOCKS * BLOCK_SIZE + 512 },
  { target: "sdb", sizeBytes: (BLOCKS - 1) * BLOCK_SIZE + 3 * 512 },
];

/** Where a write of the guest could get lost: around the freeze, and where bitmaps are merged. */
const MOMENT = /bitmap|filter|scratch|cont|access|copy/;

/** A file system in memory where there is one: the journal is synced some 20 times per backup. */
const TEMPORARY = existsSync("/dev/shm") ? "/dev/shm/fl-" : "/tmp/fl-";

/** Plays one scenario in a world of its own and says what is wrong at its end. */
export async function play(scenario: Scenario): Promise<Passed> {
  const directory = await mkdtemp(TEMPORARY);
  try {
    return await new Play(
      new FakeWorld(directory, { disks: DISKS, running: scenario.running, staged: scenario.staged === true }),
      scenario,
    ).run();
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

class Play {
  readonly #world: FakeWorld;
  readonly #scenario: Scenario;
  readonly #points: string[] = [];
  readonly #problems: string[] = [];
  readonly #stop = new AbortController();
  #die: () => void = () => undefined;
  readonly #killed = new Promise<"killed">((resolve) => {
    this.#die = () => resolve("killed");
  });
  #dead = false;
  #writes = 0;

  constructor(world: FakeWorld, scenario: Scenario) {
    this.#world = world;
    this.#scenario = scenario;
  }

  async run(): Promise<Passed> {
    const { level } = this.#scenario;
    for (let write = 0; write < 10; write++) this.#guestWrites();
    const earlier =
      level === "full" ? undefined : await runBackup(this.#world.process().context, this.#request());
    for (let write = 0; write < 3; write++) this.#guestWrites();
    if (this.#scenario.lost === true) {
      this.#world.domain.crash();
      this.#world.domain.start();
      this.#guestWrites();
    }
    const victim = this.#world.process((point) => this.#pass(point));
    const request = { ...this.#request(), signal: this.#stop.signal };
    const outcome = await Promise.race([
      runBackup(victim.context, request).then(
        (entry) => entry,
        (error: unknown) => ({ error }),
      ),
      this.#killed,
    ]);
    if (outcome === "killed") await victim.die();
    else if (this.#world.guest === "paused" || this.#world.guest === "frozen")
      this.#problems.push(`the guest is ${this.#world.guest} when the command has ended`);
    await recoverAll(this.#world.process().context);
    await this.#checkTraces("after the recovery");
    const published = await this.#checkBackups(earlier);
    if (!(outcome === "killed" || "error" in outcome) && !published)
      this.#problems.push("a success is not listed");
    this.#checkCheckpoints(earlier, published);
    await this.#checkNext(earlier ?? published);
    return { points: this.#points, problems: this.#problems };
  }

  #request(): BackupRequest {
    const { disks, quiesce } = this.#scenario;
    return {
      domain: "vm",
      ...(disks === undefined ? {} : { disks }),
      ...(quiesce === undefined ? {} : { quiesce }),
    };
  }

  get #targets(): readonly string[] {
    return this.#scenario.disks ?? DISKS.map(({ target }) => target);
  }

  async #pass(point: string): Promise<void> {
    if (this.#dead) await new Promise(() => undefined);
    const isFault = this.#points.push(point) - 1 === this.#scenario.at;
    if (this.#world.guest === "running" && MOMENT.test(point)) this.#guestWrites();
    if (isFault) await this.#strike(point);
  }

  async #strike(point: string): Promise<void> {
    const { domain } = this.#world;
    switch (this.#scenario.fault) {
      case "none":
        return;
      case "fail":
        throw new FleeceError("QEMU_FAILED", `Made to fail at ${point}`);
      case "disconnect":
        domain.disconnect();
        return;
      case "stop":
        domain.stop();
        return;
      case "crash":
        domain.crash();
        return;
      case "start":
        domain.start();
        for (const { target, sizeBytes } of DISKS) domain.write(target, 0, sizeBytes, 0xee);
        return;
      case "abort":
        this.#stop.abort(new FleeceError("INTERRUPTED", "Cancelled"));
        return;
      case "kill":
        this.#dead = true;
        this.#die();
        await new Promise(() => undefined);
    }
  }

  /** Each write goes to a block that was not written for as long as possible, so that none hides the loss of another. */
  #guestWrites(): void {
    const number = this.#writes++;
    for (const { target, sizeBytes } of DISKS) {
      const offset = ((number * 10) % (BLOCKS - 1)) * BLOCK_SIZE + (number % 5) * 4096;
      const isZeroed = number % 4 === 3;
      if (offset + 512 > sizeBytes) continue;
      if (isZeroed) this.#world.domain.write(target, offset - (offset % BLOCK_SIZE), BLOCK_SIZE, 0);
      else this.#world.domain.write(target, offset, 512, 1 + (number % 250));
    }
  }

  async #checkTraces(when: string): Promise<void> {
    const clean = {
      nodes: [],
      bitmaps: [],
      roots: [],
      exports: [],
      nbdSocketPath: undefined,
      status: "running",
      frozen: false,
      jobs: [],
    };
    const expected = {
      qemu: this.#world.domain.qemu === undefined ? undefined : clean,
      host: { files: [], directories: [], daemons: [] },
      journal: [],
    };
    const found = await this.#world.traces();
    if (JSON.stringify(found) !== JSON.stringify(expected)) {
      this.#problems.push(`left ${when}: ${JSON.stringify(found)} (${this.#world.log.join("; ")})`);
    }
  }

  /** Everything listed restores to its moment. Returns the backup under test, if it is listed. */
  async #checkBackups(earlier: IntactEntry | undefined): Promise<IntactEntry | undefined> {
    const listed = (await this.#world.repository.list("vm")).filter(isIntact);
    for (const entry of listed) this.#checkContent(entry);
    return listed.find(({ id }) => id !== earlier?.id);
  }

  #checkContent({ id, manifest }: IntactEntry): void {
    const moment = this.#world.domain.moments.get(manifest.checkpoint);
    for (const { target } of manifest.disks) {
      const frozen = moment?.get(target);
      const restored = this.#world.repository.content(id, target);
      if (frozen?.equals(restored) !== true) {
        const at = restored.findIndex((byte, index) => byte !== frozen?.[index]);
        this.#problems.push(
          `${manifest.level} backup ${id}: ${target} differs from its moment at byte ${at}`,
        );
      }
    }
  }

  #checkCheckpoints(earlier: IntactEntry | undefined, published: IntactEntry | undefined): void {
    if (this.#scenario.fault === "crash") return;
    const lasting = this.#scenario.lost === true ? undefined : earlier;
    const kept = [lasting, published].flatMap((entry) => (entry === undefined ? [] : [entry.id]));
    for (const target of this.#targets) {
      const { checkpoints } = this.#world.domain.disk(target).state(true);
      const found = checkpoints.map(({ name, recording }) => `${name}${recording ? " recording" : ""}`);
      const wanted = kept.map((name, index) => (index === kept.length - 1 ? `${name} recording` : name));
      if (found.join() !== wanted.join()) {
        this.#problems.push(`${target} has checkpoints [${found.join()}] instead of [${wanted.join()}]`);
      }
    }
  }

  /** The next backup is incremental if there is one to base it on, and holds what the disks hold now. */
  async #checkNext(base: IntactEntry | undefined): Promise<void> {
    const { domain, repository } = this.#world;
    if (this.#scenario.running && domain.qemu === undefined) domain.start();
    this.#guestWrites();
    const { context } = this.#world.process();
    const next = await runBackup(context, this.#request());
    this.#checkContent(next);
    for (const target of this.#targets) {
      if (!repository.content(next.id, target).equals(domain.disk(target).content)) {
        this.#problems.push(
          `the next backup (${next.manifest.level}) of ${target} is not what the disk holds`,
        );
      }
    }
    const expected = base === undefined ? "full" : "incremental";
    if (next.manifest.level !== expected) {
      this.#problems.push(`the next backup is ${next.manifest.level}: ${next.manifest.reason}`);
    }
    await this.#checkTraces("after the next backup");
  }
}
