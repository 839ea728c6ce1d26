import { mkdirSync } from "node:fs";
import { QemuDiskTargets } from "../../src/drivers/disk-targets.js";
import { outputDirectories } from "../../src/drivers/output-directory.js";
import { runMessage } from "../../src/api/jobs.js";
import { toJson as messageToJson } from "../../src/api/json.js";
import type { RunRecord } from "../../src/model/run-record.js";
import { LOCAL_CLIENT } from "../../src/model/access.js";
import { QemuTakers } from "../../src/drivers/machine/takers.js";
import { systemClock } from "../../src/drivers/system-clock.js";
import { DomainSnapshotDirectory } from "../../src/drivers/domain-snapshot-directory.js";
import { QemuInternalSnapshots } from "../../src/drivers/machine/internal-snapshots.js";
import { QemuLayerMergers } from "../../src/drivers/machine/layer-merger.js";
import { snapshotFiles } from "../../src/drivers/machine/snapshot-files.js";
import { programs } from "../../src/drivers/programs.js";
import { webhooks } from "../../src/drivers/webhooks.js";
import { StateDirectory } from "../../src/drivers/state-directory.js";
import { type BackupLimits, NO_LIMITS } from "../../src/model/backup-limits.js";
import type { RetentionPolicy } from "../../src/model/retention.js";
import { noMeter } from "../../src/ports/meter.js";
import type { DomainLock, OperationOwner, StateStore } from "../../src/ports/state-store.js";
import type { ServiceContext } from "../../src/services/context.js";
import { JobRunner } from "../../src/services/jobs/job-runner.js";
import type { FakeDiskSpec, Gate } from "./fake-domain.js";
import { lvmVolumes } from "../../src/drivers/lvm/volumes.js";
import { FakeDomain } from "./fake-domain.js";
import { gated } from "./fake-faults.js";
import { fakeBootMachines, fakeMachines } from "./fake-machines.js";
import { fakeImages } from "./fake-images.js";
import { FakeRepository } from "./fake-repository.js";

const toJson = (record: RunRecord): Promise<string> =>
  Promise.resolve(JSON.stringify(messageToJson("JobRun", runMessage(record))));

/** A domain, a repository and a real state directory: what outlives any process of ours. */
export class FakeWorld {
  readonly domain: FakeDomain;
  readonly repository: FakeRepository;
  readonly stateDir: string;
  readonly log: string[] = [];
  /** Of the configuration. */
  retention: RetentionPolicy | undefined;
  /** Of the configuration. */
  sampleShare = 0;
  /** Of the configuration. */
  limits: BackupLimits = NO_LIMITS;
  #processes = 0;

  constructor(
    directory: string,
    options: {
      readonly disks: readonly FakeDiskSpec[];
      readonly running?: boolean;
      readonly staged?: boolean;
    },
  ) {
    this.stateDir = `${directory}/state`;
    mkdirSync(this.stateDir, { recursive: true });
    this.domain = new FakeDomain(options.disks, options);
    for (const disk of this.domain.disks.values()) disk.staged = options.staged === true;
    this.repository = new FakeRepository(this.domain);
  }

  /** A new process of ours. Everything it does passes the gate, until another one is started. */
  process(gate: Gate = () => undefined): FakeProcess {
    this.domain.gate = gate;
    return new FakeProcess(this, gate, ++this.#processes);
  }

  /** What may be left of operations: nothing but the repository's backups and the checkpoints should be. */
  async traces(): Promise<unknown> {
    return { ...Object(this.domain.traces()), journal: await new StateDirectory(this.stateDir).operations() };
  }

  get guest(): string {
    if (this.domain.qemu?.frozen === true) return "frozen";
    return this.domain.qemu?.status ?? "inactive";
  }
}

/** The services as one process sees them. */
export class FakeProcess {
  readonly context: ServiceContext;
  readonly #world: FakeWorld;
  readonly #store: MortalStore;

  constructor(world: FakeWorld, gate: Gate, number: number) {
    const { domain, repository } = world;
    this.#world = world;
    this.#store = new MortalStore(world.stateDir, number);
    const note = (_: object, message: string): void => void world.log.push(message);
    const context: Omit<ServiceContext, "jobs"> = {
      store: gated<StateStore>(this.#store, "store", gate),
      domainSnapshots: new DomainSnapshotDirectory(world.stateDir),
      takers: new QemuTakers({ domains: [], clock: systemClock, runtimeRoot: world.stateDir }),
      machines: fakeMachines,
      bootMachines: fakeBootMachines,
      bootTests: new Map(),
      layers: new QemuLayerMergers({ domains: [], runtimeRoot: world.stateDir }),
      snapshotFiles,
      internals: new QemuInternalSnapshots([]),
      volumes: lvmVolumes,
      host: gated(domain.host, "host", gate),
      clock: {
        now: () => domain.now(),
        monotonicMs: () => domain.now(),
        hostTime: () => ({ start: "host", ms: domain.now() }),
        sleep: domain.sleep,
      },
      log: { debug: note, info: note, warn: note },
      meter: noMeter,
      client: LOCAL_CLIENT,
      drivers: domain,
      readers: gated(domain.readers, "readers", gate),
      images: gated(fakeImages, "images", gate),
      outputs: gated(outputDirectories, "outputs", gate),
      diskTargets: new QemuDiskTargets(),
      repositories: new Map([[repository.name, gated(repository, "repository", gate)]]),
      domains: [domain.name],
      machineFiles: new Map(),
      quiesce: new Map([
        [domain.name, { byDefault: false, timeoutMs: 10_000, onFailure: "continue" as const }],
      ]),
      scratchDir: "/scratch",
      scratch: domain.host.scratch,
      scratchLimits: new Map([[domain.name, undefined]]),
      retention: () => world.retention,
      parallelDisks: 2,
      sampleShare: world.sampleShare,
      limits: world.limits,
      programs,
      webhooks,
    };
    const limits = { domains: 2, repositories: new Map<string, number>() };
    this.context = { ...context, jobs: { list: [], limits, runner: new JobRunner(context), toJson } };
  }

  /** What the kernel does when a process is killed; the caller sees to it that its code does not go on. */
  async die(): Promise<void> {
    this.#world.domain.disconnect();
    this.#world.domain.endImages();
    this.#world.repository.dropLocks();
    await this.#store.die();
  }
}

/** A real state directory used by a process that may die before this one. */
class MortalStore extends StateDirectory {
  static readonly #living = new Set<number>();
  readonly #number: number;
  readonly #locks = new Set<DomainLock>();

  constructor(root: string, number: number) {
    super(root);
    this.#number = number;
    MortalStore.#living.add(number);
  }

  override async lockDomain(domain: string, purpose: string): Promise<DomainLock> {
    const lock = await super.lockDomain(domain, purpose);
    this.#locks.add(lock);
    return lock;
  }

  override self(): OperationOwner {
    return { pid: this.#number, startTicks: 0 };
  }

  override isAlive({ pid }: OperationOwner): boolean {
    return MortalStore.#living.has(pid);
  }

  async die(): Promise<void> {
    MortalStore.#living.delete(this.#number);
    for (const lock of this.#locks) await lock.release();
  }
}
