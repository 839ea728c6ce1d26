import { stat } from "node:fs/promises";
import type { DiskConfig, DomainConfig } from "../../model/config.js";
import type { DomainSnapshots, SnapshotMachine } from "../../model/domain-snapshot.js";
import { presentDisk } from "../../model/present-disk.js";
import type {
  InternalDisk,
  InternalOptions,
  InternalSnapshots,
  InternalSnapshotter,
} from "../../ports/internal-snapshots.js";
import type { JobInfo, QmpSession, TransactionAction } from "../../qmp/index.js";
import { isQmpError } from "../../qmp/index.js";
import { errorMessage, FleeceError } from "../../shared/errors.js";
import { freeBytes } from "../free-bytes.js";
import { withQmpErrors } from "../qmp-errors.js";
import { changeImageBitmap, imageInfo, runTool } from "../qemu-tools.js";
import { configOf, disksOf, reachDomain } from "../reach-domain.js";
import { assignTargets } from "../running/targets.js";
import { type BlockFacts, type LocatedDisk, layersOf, locateDisks } from "../running/block-graph.js";
import { readMachine } from "./machine-facts.js";
import { checkIdle, queryFacts } from "./running-qemu.js";

type LoadOptions = Parameters<InternalSnapshotter["load"]>[1];

export class QemuInternalSnapshots implements InternalSnapshots {
  readonly #domains: readonly DomainConfig[];

  constructor(domains: readonly DomainConfig[]) {
    this.#domains = domains;
  }

  async open(all: DomainSnapshots, signal?: AbortSignal): Promise<InternalSnapshotter> {
    const config = configOf(this.#domains, all.domain);
    const reached = await reachDomain(config, signal);
    if (!reached.running) return new InactiveSnapshotter(all, disksOf(config, reached));
    const { qmp, qmpSocketPath } = reached;
    const { status } = await withQmpErrors(`QEMU of domain ${all.domain}`, () => qmp.execute("query-status"));
    const state = status === "running" ? "running" : "paused";
    return new RunningSnapshotter({ config, all, qmp, qmpSocketPath, state });
  }
}

/** By the jobs of QEMU, which tell in their end whether they succeeded: the commands themselves always do. */
class RunningSnapshotter implements InternalSnapshotter {
  readonly state: "running" | "paused";
  readonly #config: DomainConfig;
  readonly #all: DomainSnapshots;
  readonly #qmp: QmpSession;
  readonly #qmpSocketPath: string;

  constructor(parts: {
    readonly config: DomainConfig;
    readonly all: DomainSnapshots;
    readonly qmp: QmpSession;
    readonly qmpSocketPath: string;
    readonly state: "running" | "paused";
  }) {
    this.#config = parts.config;
    this.#all = parts.all;
    this.#qmp = parts.qmp;
    this.#qmpSocketPath = parts.qmpSocketPath;
    this.state = parts.state;
  }

  async checkIdle(): Promise<void> {
    await this.#guarded(() => checkIdle(this.#qmp, this.#config.name));
  }

  async disks(): Promise<readonly InternalDisk[]> {
    return await this.#guarded(async () => {
      const { facts, located } = await this.#locate();
      return await Promise.all([...located].map(([target, disk]) => describe(facts, target, disk)));
    });
  }

  machine(): Promise<SnapshotMachine> {
    return this.#guarded(() => readMachine(this.#qmp, this.#qmpSocketPath));
  }

  async save(name: string, { memory, ...options }: InternalOptions & { memory: boolean }): Promise<void> {
    await this.#guarded(async () => {
      const nodes = await this.#nodes();
      const [vmstate] = nodes;
      if (vmstate === undefined) throw new FleeceError("UNSUPPORTED", "The domain has no disk");
      if (memory) {
        const start = { tag: name, vmstate, devices: nodes };
        await this.#job(options, "save", (id) =>
          this.#qmp.execute("snapshot-save", { "job-id": id, ...start }),
        );
        return;
      }
      const actions = nodes.map((device): TransactionAction => {
        return { type: "blockdev-snapshot-internal-sync", data: { device, name } };
      });
      await this.#qmp.execute("transaction", { actions });
    });
  }

  /** Nothing may be written between the end of the bitmaps and the load, so the guest stops first. */
  async load(name: string, options: LoadOptions): Promise<void> {
    await this.#guarded(async () => {
      const { facts, located } = await this.#locate();
      const disks = [...located.values()];
      const vmstate = disks.find(({ diskNode }) => memoryOf(facts, diskNode, name) > 0)?.diskNode;
      if (vmstate === undefined) throw noMemory(name);
      const job = { isStarted: false };
      if (this.state === "running") await options.undo.register({ kind: "vm-held" });
      try {
        await this.#qmp.execute("stop");
        const actions = disks.flatMap(({ diskNode: node, layers: [{ bitmaps }] }) =>
          bitmaps.flatMap((bitmap): TransactionAction[] =>
            bitmap.name === undefined
              ? []
              : [{ type: "block-dirty-bitmap-remove", data: { node, name: bitmap.name } }],
          ),
        );
        if (actions.length > 0) await this.#qmp.execute("transaction", { actions });
        const start = { tag: name, vmstate, devices: disks.map(({ diskNode }) => diskNode) };
        await this.#job(options, "load", async (id) => {
          await options.beforeReplacing?.();
          await this.#qmp.execute("snapshot-load", { "job-id": id, ...start });
          job.isStarted = true;
        });
      } catch (error) {
        const isRefused = !job.isStarted && (!isQmpError(error) || error.code === "QMP_COMMAND_FAILED");
        throw isRefused ? error : loadError(name, error);
      }
    });
  }

  async remove(name: string, options: InternalOptions): Promise<void> {
    await this.#guarded(async () => {
      const devices = await this.#nodes();
      await this.#job(options, "remove", (id) =>
        this.#qmp.execute("snapshot-delete", { "job-id": id, tag: name, devices }),
      );
    });
  }

  /** A load that failed leaves `restore-vm`. */
  async resume(): Promise<void> {
    await this.#guarded(async () => {
      const { status } = await this.#qmp.execute("query-status");
      if (status === "paused" || status === "restore-vm") await this.#qmp.execute("cont");
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#qmp.close();
  }

  async #nodes(): Promise<string[]> {
    const { located } = await this.#locate();
    return [...located.values()].map(({ diskNode }) => diskNode);
  }

  async #locate(): Promise<{ facts: BlockFacts; located: ReadonlyMap<string, LocatedDisk> }> {
    const facts = await queryFacts(this.#qmp);
    const { located } = await assignTargets(this.#config, this.#all, locateDisks(facts));
    return { facts, located };
  }

  async #job(
    { id, undo }: InternalOptions,
    verb: "save" | "load" | "remove",
    start: (job: string) => Promise<unknown>,
  ): Promise<JobInfo> {
    const job = `fleece-${id}-${verb}`;
    await undo.register({ kind: "vm-job", id: job });
    // QEMU stands still meanwhile, as long as storage takes; it cannot be cancelled.
    return await this.#qmp.withDeadline(JOB_TIMEOUT_MS, async () => {
      await start(job);
      const ended = await this.#qmp.followJob(job);
      // A load is over for the journal only when its document is written: nothing may fail in between for want of space.
      if (verb !== "load") await undo.settle({ kind: "vm-job", id: job });
      return ended;
    });
  }

  #guarded<T>(action: () => Promise<T>): Promise<T> {
    return withQmpErrors(`QEMU of domain ${this.#config.name}`, action);
  }
}

const JOB_TIMEOUT_MS = 600_000;

async function describe(facts: BlockFacts, target: string, disk: LocatedDisk): Promise<InternalDisk> {
  const node = facts.nodes.find((each) => each["node-name"] === disk.diskNode);
  const room = await roomOf(disk.file);
  return {
    ...(room === undefined ? {} : { freeBytes: room }),
    target,
    file: disk.file,
    format: disk.format,
    sizeBytes: disk.sizeBytes,
    hasBacking: layersOf(facts, disk.diskNode).length > 1,
    bitmaps: disk.layers[0].bitmaps.flatMap(({ name }) => name ?? []),
    snapshots: (node?.image.snapshots ?? []).map((snapshot) => ({
      name: snapshot.name,
      memoryBytes: snapshot["vm-state-size"],
    })),
  };
}

/** Of a device nobody knows, and what cannot be looked at from here is for QEMU to say. */
async function roomOf(file: string): Promise<number | undefined> {
  try {
    return (await stat(file)).isFile() ? await freeBytes(file) : undefined;
  } catch {
    return undefined;
  }
}

function memoryOf(facts: BlockFacts, diskNode: string, name: string): number {
  const node = facts.nodes.find((each) => each["node-name"] === diskNode);
  return node?.image.snapshots?.find((snapshot) => snapshot.name === name)?.["vm-state-size"] ?? 0;
}

/** Of a load that may have replaced something. */
function loadError(name: string, cause: unknown): FleeceError {
  const isOver = isQmpError(cause, "QMP_JOB_FAILED", "QMP_JOB_LOST");
  const message = `QEMU could not load ${name}: ${errorMessage(cause)}`;
  return new FleeceError(isOver ? "MEMORY_LOAD_FAILED" : "DOMAIN_UNREACHABLE", message, { cause });
}

function noMemory(name: string): FleeceError {
  return new FleeceError(
    "UNSUPPORTED",
    `Domain snapshot ${name} has no memory, and its disks cannot be put back under a running guest: stop the domain first`,
  );
}

/** By `qemu-img snapshot`, disk after disk. */
class InactiveSnapshotter implements InternalSnapshotter {
  readonly state = "inactive";
  readonly #disks: readonly DiskConfig[];

  constructor(all: DomainSnapshots, disks: readonly DiskConfig[]) {
    this.#disks = disks.map(({ target, ...configured }) => {
      const { file, format } = presentDisk(all, target, configured.file) ?? configured;
      return { target, file, format };
    });
  }

  checkIdle(): Promise<void> {
    return Promise.resolve();
  }

  async disks(signal?: AbortSignal): Promise<readonly InternalDisk[]> {
    return await Promise.all(
      this.#disks.map(async ({ target, file, format }) => {
        const info = await imageInfo(file, format, { signal });
        return {
          ...{ target, file, format },
          sizeBytes: info.sizeBytes,
          hasBacking: info.backingFile !== undefined,
          bitmaps: info.bitmaps.map(({ name }) => name),
          snapshots: info.internalSnapshots,
        };
      }),
    );
  }

  machine(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  async save(name: string, { signal }: InternalOptions): Promise<void> {
    for (const { file } of this.#disks) await snapshot(["-c", name], file, signal);
  }

  /** qemu-img, too, refuses as long as there are bitmaps. */
  async load(name: string, { signal, beforeReplacing }: LoadOptions): Promise<void> {
    await beforeReplacing?.();
    for (const { file, bitmaps } of await this.disks(signal)) {
      for (const bitmap of bitmaps) await changeImageBitmap(file, { action: "remove", bitmap }, { signal });
      await snapshot(["-a", name], file);
    }
  }

  async remove(name: string, { signal }: InternalOptions): Promise<void> {
    for (const { file, snapshots } of await this.disks(signal)) {
      if (snapshots.some((each) => each.name === name)) await snapshot(["-d", name], file);
    }
  }

  resume(): Promise<void> {
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

async function snapshot(verb: readonly string[], file: string, signal?: AbortSignal): Promise<void> {
  await runTool("qemu-img", ["snapshot", "-q", ...verb, file], { path: file, signal });
}
