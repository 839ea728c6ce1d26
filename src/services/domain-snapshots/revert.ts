import { join, resolve } from "node:path";
import {
  type DomainSnapshot,
  type DomainSnapshotOptions,
  type DomainSnapshots,
  filesOfDisk,
  type RevertCost,
  type RevertDomainSnapshotRequest,
  type RevertOutcome,
  type SnapshotState,
} from "../../model/domain-snapshot.js";
import { CHECKPOINT_GRANULARITY } from "../../model/checkpoint.js";
import { machineEnds, type MovedPath, movedPaths } from "../../model/machine-ends.js";
import { type ReplacedDisk, rewriteArguments } from "../../model/machine-arguments.js";
import type { MachineStart } from "../../model/machine-start.js";
import type { RevertJournal } from "../../model/operation.js";
import {
  bitmapToCarry,
  costOfRevert,
  documentAfterRevert,
  machineDifferences,
  type RevertedDisk,
  type RevertFacts,
} from "../../model/revert-plan.js";
import type { DomainState } from "../../model/snapshot-plan.js";
import type { UndoEntry } from "../../model/undo.js";
import type { Machine } from "../../ports/machines.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import { randomId } from "../../shared/ids.js";
import { requireDomain, type ServiceContext, withDomain } from "../context.js";
import type { DomainSession } from "../domain-session.js";
import { internalRevertCost, revertInternal } from "./internal.js";
import { readSnapshot, refuseDeleting, refuseOpenSnapshots } from "./read-snapshot.js";
import { repeatedRevert, withLastRevert } from "./repeated.js";
import { Operation } from "../operation.js";
import { unwind } from "../unwind.js";
import { checkVolumes } from "./check-volumes.js";
import { finishRevert } from "./finish-revert.js";
import { startAgain } from "./quit-first.js";

/** What a revert would cost now. Changes nothing. Fails with DOMAIN_SNAPSHOT_NOT_FOUND. */
export async function revertCost(
  context: ServiceContext,
  request: RevertDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<RevertCost> {
  const domain = requireDomain(context, request.domain);
  if (await isInternal(context, request)) return internalRevertCost(context, request);
  return withDomain(context, domain, "the cost of a revert", async (session) => {
    await using scene = await lookAt(context, session, request, options.signal);
    refuseSharedDisks(scene, request);
    return costOfRevert(scene.facts);
  });
}

/**
 * Takes a domain back to one of its snapshots. Nothing is stopped before all that a revert needs is known to be whole; the present
 * QEMU is kept until the new one has loaded everything, and goes on if that fails. Fails with DAMAGED, FORCE_NEEDED, UNSUPPORTED or
 * MEMORY_LOAD_FAILED, and the domain is as before. A repeat with the same key finds what was done.
 */
export async function revertDomainSnapshot(
  context: ServiceContext,
  request: RevertDomainSnapshotRequest,
  options: DomainSnapshotOptions = {},
): Promise<RevertOutcome> {
  const domain = requireDomain(context, request.domain);
  if (await isInternal(context, request)) return revertInternal(context, request, options);
  const purpose = `revert to domain snapshot ${request.name}`;
  return withDomain(context, domain, purpose, async (session) => {
    const reverted = repeatedRevert(await context.domainSnapshots.read(domain), request);
    if (reverted !== undefined) return reverted;
    await refuseOpenSnapshots(context, domain);
    await using scene = await lookAt(context, session, request, options.signal);
    refuseSharedDisks(scene, request);
    await checkFiles(context, scene.facts.snapshot, options);
    const cost = costOfRevert(scene.facts);
    if (cost.risks.length > 0 && request.force !== true) throw forceNeeded(scene.facts.snapshot, cost.risks);
    return await new Revert(context, session, scene, { cost, request, options }).run();
  });
}

async function isInternal(
  context: ServiceContext,
  { domain, name }: RevertDomainSnapshotRequest,
): Promise<boolean> {
  return (await readSnapshot(context, domain, name)).snapshot.kind === "internal";
}

interface Scene extends AsyncDisposable {
  readonly facts: RevertFacts;
  readonly old: Machine | undefined;
  readonly oldStatus: "running" | "paused" | "other" | undefined;
}

/** The monitor serves one client at a time: what the driver knows comes first, and then it is ours. */
async function lookAt(
  context: ServiceContext,
  session: DomainSession,
  request: RevertDomainSnapshotRequest,
  signal: AbortSignal | undefined,
): Promise<Scene> {
  const { domain } = session;
  const { all, snapshot } = await readSnapshot(context, domain, request.name);
  refuseDeleting(snapshot, "reverted to");
  const present = await inspect(session, signal);
  const old = await context.machines.open(domain, signal);
  try {
    const facts = {
      ...{ all, snapshot, present, force: request.force === true, nowMs: context.clock.now() },
      machine: await old?.facts(),
    };
    const oldStatus = await old?.status();
    return { facts, old, oldStatus, [Symbol.asyncDispose]: async () => old?.close() };
  } catch (error) {
    await old?.close();
    throw error;
  }
}

async function inspect(
  session: DomainSession,
  signal: AbortSignal | undefined,
): Promise<DomainState | undefined> {
  try {
    return await (await session.driver(signal)).inspect(signal);
  } catch (error) {
    // Inactive, and the configuration lists no disks; if it is more than that, opening its monitor fails, too.
    if (isFleeceError(error, "DOMAIN_UNREACHABLE")) return undefined;
    throw error;
  } finally {
    await session.close();
  }
}

/** A disk that stays as it is would be open in both QEMUs. */
function refuseSharedDisks({ facts, old }: Scene, { to }: RevertDomainSnapshotRequest): void {
  const { snapshot, present, all } = facts;
  if (old === undefined || (to ?? snapshot.state) === "inactive") return;
  const held = new Set(snapshot.disks.map(({ target }) => target));
  const shared = (present?.disks ?? []).map(({ target }) => target).filter((target) => !held.has(target));
  if (shared.length === 0) return;
  throw new FleeceError(
    "UNSUPPORTED",
    `Domain snapshot ${snapshot.name} does not hold ${shared.join(", ")}, which the running domain ${all.domain} writes to: stop the domain first`,
    { facts: { domain: all.domain, snapshot: snapshot.name, targets: shared.join(", ") } },
  );
}

async function checkFiles(
  { snapshotFiles, volumes }: ServiceContext,
  { disks, memory }: DomainSnapshot,
  { signal, onProgress }: DomainSnapshotOptions,
): Promise<void> {
  await checkVolumes(volumes, disks, signal);
  for (const disk of disks) {
    onProgress?.({ phase: "checking", target: disk.target });
    await snapshotFiles.checkImage(disk, signal);
  }
  if (memory?.kind !== "external") return;
  const totalBytes = memory.sizeBytes;
  await snapshotFiles.checkMemory(memory, {
    signal,
    onProgress: (doneBytes) => onProgress?.({ phase: "checking", doneBytes, totalBytes }),
  });
}

function forceNeeded({ name }: DomainSnapshot, risks: readonly string[]): FleeceError {
  return new FleeceError(
    "FORCE_NEEDED",
    `Reverting to domain snapshot ${name} needs force: ${risks.join("; ")}`,
    {
      facts: { snapshot: name, risks },
    },
  );
}

/** One revert, from what is known to its end. */
class Revert {
  readonly #context: ServiceContext;
  readonly #session: DomainSession;
  readonly #scene: Scene;
  readonly #cost: RevertCost;
  readonly #request: RevertDomainSnapshotRequest;
  readonly #options: DomainSnapshotOptions;
  readonly #id = randomId(8);

  constructor(
    context: ServiceContext,
    session: DomainSession,
    scene: Scene,
    parts: {
      readonly cost: RevertCost;
      readonly request: RevertDomainSnapshotRequest;
      readonly options: DomainSnapshotOptions;
    },
  ) {
    this.#context = context;
    this.#session = session;
    this.#scene = scene;
    this.#cost = parts.cost;
    this.#request = parts.request;
    this.#options = parts.options;
  }

  async run(): Promise<RevertOutcome> {
    const { facts, old } = this.#scene;
    const { clock, store } = this.#context;
    const { snapshot } = facts;
    const disks = await this.#nameOverlays();
    const launch = this.#planLaunch(disks);
    const planned = documentAfterRevert(facts, this.#cost, disks);
    const preparing: RevertJournal = {
      ...{ kind: "domain-snapshot-revert", name: snapshot.name, phase: "preparing", to: launch.to },
      ...{ ...planned, moved: launch.moved },
      ...(launch.again === undefined ? {} : { again: launch.again }),
      ...(old === undefined ? {} : { old: { pid: old.process.pid, startTicks: old.process.startTicks } }),
      ...(launch.start === undefined ? {} : { arguments: launch.start.arguments }),
    };
    const header = { id: this.#id, domain: this.#session.domain, startedAtMs: clock.now() };
    const operation = await Operation.begin(store, { ...header, subject: preparing });
    let subject = preparing;
    let hasQuit = false;
    let machine: Machine | undefined;
    let stoppedAtMs = clock.monotonicMs();
    try {
      await this.#makeOverlays(operation, disks);
      if (launch.again === undefined) {
        machine = await this.#start(operation, launch);
        stoppedAtMs = clock.monotonicMs();
        await this.#holdOld(launch);
      } else {
        this.#options.signal?.throwIfAborted();
        stoppedAtMs = clock.monotonicMs();
        subject = { ...preparing, phase: "quitting" };
        await operation.setSubject(subject);
        hasQuit = true;
        await this.#quitOld();
        machine = await this.#start(operation, launch);
      }
      if (machine !== undefined && snapshot.memory !== undefined) {
        this.#options.onProgress?.({ phase: "loading" });
        await machine.load(this.#signalOf(launch));
      }
      this.#signalOf(launch)?.throwIfAborted();
      const done = { ...this.#cost, state: launch.to, ...pidOf(machine) };
      const document = withLastRevert(planned.document, this.#request, done);
      subject = { ...preparing, phase: "switched", document };
      await operation.setSubject(subject);
      await this.#context.domainSnapshots.write(subject.document);
    } catch (error) {
      if (hasQuit) {
        await machine?.close();
        const isDecided = subject.phase === "switched";
        throw await this.#startAgain(operation, { ...preparing, phase: "quitting" }, isDecided, error);
      }
      if (subject !== preparing) await this.#undecide(operation, preparing);
      await this.#goBack(operation, machine);
      throw error;
    }
    this.#options.onProgress?.({ phase: "finishing" });
    old?.keepHeld();
    await old?.close();
    await this.#finish(operation, subject, machine);
    const downtimeMs = old === undefined ? 0 : Math.round(clock.monotonicMs() - stoppedAtMs);
    return { ...this.#cost, snapshot, state: launch.to, downtimeMs, ...pidOf(machine) };
  }

  /** `<target>-<name>-r<N>.qcow2`: a snapshot may be reverted to any number of times. */
  async #nameOverlays(): Promise<RevertedDisk[]> {
    const { snapshotFiles, domainSnapshots } = this.#context;
    const { snapshot } = this.#scene.facts;
    const directory = await domainSnapshots.directory(this.#session.domain);
    for (let number = 1; ; number++) {
      const disks = snapshot.disks.map((disk) => ({
        disk,
        overlay: join(directory, `${disk.target}-${snapshot.name}-r${number}.qcow2`),
      }));
      const taken = await Promise.all(disks.map(({ overlay }) => snapshotFiles.exists(overlay)));
      if (!taken.includes(true)) return disks;
    }
  }

  #planLaunch(disks: readonly RevertedDisk[]): Launch {
    const { facts, old } = this.#scene;
    const { all, snapshot } = facts;
    const { domain } = this.#session;
    const { launch, monitor = "" } = this.#context.machines.settings(domain);
    const to = this.#request.to ?? snapshot.state;
    if (to === "inactive") return { to, moved: [] };
    const recorded = snapshot.machine?.arguments;
    const given =
      launch ?? (snapshot.memory === undefined ? undefined : recorded) ?? old?.process.arguments ?? recorded;
    if (given === undefined) {
      // Of an inactive domain only the disks go back, unless more was asked for.
      if (this.#request.to === undefined) return { to: "inactive", moved: [] };
      throw new FleeceError(
        "UNSUPPORTED",
        `Domain ${domain} cannot be started: it does not run, and the configuration has no \`launch\` for it`,
        { facts: { domain } },
      );
    }
    const cwd = launch === undefined ? (old?.process.cwd ?? "/") : "/";
    const reverted = disks.map(({ disk: { target }, overlay }) => ({
      ...{ target, overlay, files: filesOfDisk(all, target) },
    }));
    const others = presentDisks(all).filter(({ target }) => !reverted.some((each) => each.target === target));
    const args = rewriteArguments(given, {
      disks: [...reverted, ...others],
      cwd,
      machineType: snapshot.machine?.type,
      incoming: snapshot.memory !== undefined,
    });
    const ends = machineEnds(args, cwd);
    refuseUnstartable(
      domain,
      ends.inherited,
      "stand for files that only the former starter of QEMU had open",
    );
    if (!ends.paths.includes(resolve(monitor))) {
      throw new FleeceError(
        "UNSUPPORTED",
        `The arguments for the QEMU of domain ${domain} have no monitor on ${monitor}, so that it could not be reached`,
        { facts: { domain } },
      );
    }
    if (old !== undefined && this.#request.quitFirst !== true) {
      refuseUnstartable(
        domain,
        ends.exclusive,
        "claim what the present QEMU has, so that both cannot be kept until the snapshot is loaded; quit-first ends the present one before",
      );
    }
    const again = this.#planAgain();
    const held =
      old === undefined || again !== undefined
        ? []
        : machineEnds(old.process.arguments, old.process.cwd).paths;
    const moved = movedPaths(
      ends.paths.filter((path) => held.includes(path)),
      this.#id,
    );
    const guardPath = moved.find(({ path }) => path === resolve(monitor))?.aside;
    if (guardPath !== undefined && Buffer.byteLength(guardPath) > MAX_SOCKET_PATH_BYTES) {
      throw new FleeceError(
        "UNSUPPORTED",
        `The path of the monitor ${monitor} leaves no room for another name beside it: a socket's path has at most ${MAX_SOCKET_PATH_BYTES} bytes`,
        { facts: { domain } },
      );
    }
    const like = old?.process;
    const memory = snapshot.memory?.kind === "external" ? { memory: snapshot.memory.file } : {};
    return {
      to,
      moved,
      guardPath,
      again,
      start: { domain, arguments: args, like: like === undefined ? undefined : { ...like, cwd }, ...memory },
    };
  }

  /** How the domain goes on if its QEMU has ended first and the new one cannot take over; undefined if it is not to end first. */
  #planAgain(): RevertJournal["again"] {
    const { facts, old, oldStatus } = this.#scene;
    if (old === undefined || this.#request.quitFirst !== true) return undefined;
    const { domain } = this.#session;
    const { arguments: given, cwd } = old.process;
    refuseUnstartable(
      domain,
      machineEnds(given, cwd).inherited,
      "stand for files that only the former starter of QEMU had open",
    );
    const args = rewriteArguments(given, {
      ...{ disks: presentDisks(facts.all), cwd, incoming: false },
      machineType: facts.machine?.type,
    });
    return {
      start: { domain, arguments: args, like: old.process },
      to: oldStatus === "running" ? "running" : "paused",
    };
  }

  async #makeOverlays(operation: Operation, disks: readonly RevertedDisk[]): Promise<void> {
    const owner = this.#scene.old?.process;
    await operation.register(...disks.map(({ overlay }): UndoEntry => ({ kind: "file", path: overlay })));
    for (const { disk, overlay } of disks) {
      this.#options.onProgress?.({ phase: "disks", target: disk.target });
      const bitmap = bitmapToCarry(disk);
      const bitmaps = bitmap === undefined ? [] : [{ bitmap, granularityBytes: CHECKPOINT_GRANULARITY }];
      await this.#context.snapshotFiles.createOverlay(
        { path: overlay, base: disk, bitmaps, owner },
        this.#options.signal,
      );
    }
  }

  /** The old QEMU runs on meanwhile. Its entry comes first, so that it is continued only when the new one is gone. */
  async #start(operation: Operation, launch: Launch): Promise<Machine | undefined> {
    const { start, moved, again } = launch;
    const { machines } = this.#context;
    const { snapshot } = this.#scene.facts;
    if (this.#scene.oldStatus === "running" && again === undefined) {
      await operation.register({ kind: "vm-held" });
    }
    if (start === undefined) return undefined;
    this.#options.onProgress?.({ phase: "preparing" });
    await operation.register({ kind: "machine", arguments: start.arguments, moved });
    await machines.setAside(moved);
    const machine = await machines.start(start, this.#signalOf(launch));
    try {
      const differences =
        snapshot.machine === undefined ? [] : machineDifferences(snapshot.machine, await machine.facts());
      if (differences.length > 0 && this.#request.force !== true) throw forceNeeded(snapshot, differences);
      return machine;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  async #holdOld({ guardPath }: Launch): Promise<void> {
    const { monitor = "" } = this.#context.machines.settings(this.#session.domain);
    await this.#scene.old?.hold(guardPath ?? monitor, this.#options.signal);
  }

  /** A guest that has ended already would gain nothing from it. */
  #signalOf({ again }: Launch): AbortSignal | undefined {
    return again === undefined ? this.#options.signal : undefined;
  }

  async #quitOld(): Promise<void> {
    const { old } = this.#scene;
    await old?.close();
    if (old !== undefined) await this.#context.machines.end(old.process, []);
  }

  /** Returns the error of the revert, which says also what has become of the domain. */
  async #startAgain(
    operation: Operation,
    subject: RevertJournal,
    isDecided: boolean,
    error: unknown,
  ): Promise<unknown> {
    try {
      if (isDecided) await this.#context.domainSnapshots.write(this.#scene.facts.all);
      await operation.setSubject(subject);
      const outcome = await startAgain(this.#context, this.#session, operation, subject);
      if (!(error instanceof FleeceError)) return error;
      const { code, facts } = error;
      return new FleeceError(
        code,
        `${error.message}; its QEMU had ended before, and domain ${this.#session.domain} ${outcome}`,
        { cause: error, facts },
      );
    } catch (failure) {
      this.#context.log.warn(
        { domain: this.#session.domain, operation: operation.record.id },
        errorMessage(failure),
      );
      return error;
    }
  }

  /** There is no way back any more, so what fails once is tried once more before it is left to the next command. */
  async #finish(operation: Operation, subject: RevertJournal, machine: Machine | undefined): Promise<void> {
    try {
      await finishRevert(this.#context, operation, subject, machine);
    } catch (error) {
      this.#context.log.warn(
        { domain: this.#session.domain, operation: operation.record.id },
        errorMessage(error),
      );
      await finishRevert(this.#context, operation, subject);
    }
  }

  /**
   * Before the old guest goes on, nothing may say any more that it is to end: the next command would see to that. Where the journal
   * cannot be written, the record goes, which takes no space. A document whose writing failed may be there all the same.
   */
  async #undecide(operation: Operation, preparing: RevertJournal): Promise<void> {
    const { domainSnapshots, log } = this.#context;
    const { all } = this.#scene.facts;
    try {
      const found = await domainSnapshots.read(all.domain);
      if (JSON.stringify(found) !== JSON.stringify(all)) await domainSnapshots.write(all);
      await operation.setSubject(preparing);
    } catch (error) {
      log.warn({ domain: all.domain, operation: operation.record.id }, errorMessage(error));
      await operation.end();
    }
  }

  /** The guest first; then what was made for the new one. */
  async #goBack(operation: Operation, machine: Machine | undefined): Promise<void> {
    const { log, host } = this.#context;
    const { domain } = this.#session;
    try {
      await this.#scene.old?.release();
    } catch (error) {
      log.warn({ domain }, `The guest could not be continued at once: ${errorMessage(error)}`);
    }
    await machine?.close();
    await this.#scene.old?.close();
    try {
      await unwind(operation, this.#session, host);
    } catch (error) {
      log.warn({ domain, operation: operation.record.id }, errorMessage(error));
    }
  }
}

function pidOf(machine: Machine | undefined): { readonly pid?: number } {
  return machine === undefined ? {} : { pid: machine.process.pid };
}

/** unix(7). */
const MAX_SOCKET_PATH_BYTES = 107;

interface Launch {
  readonly to: SnapshotState;
  /** Left out if no QEMU is started. */
  readonly start?: MachineStart;
  readonly moved: readonly MovedPath[];
  /** Where the old QEMU's monitor is meanwhile. */
  readonly guardPath?: string | undefined;
  /** Set if the old QEMU is to end first. */
  readonly again?: RevertJournal["again"];
}

/** Arguments may name any file that the disk has had. */
function presentDisks(all: DomainSnapshots): readonly ReplacedDisk[] {
  return all.layers.map(({ target, active, format }) => ({
    ...{ target, format, overlay: active, files: filesOfDisk(all, target) },
  }));
}

function refuseUnstartable(domain: string, words: readonly string[], why: string): void {
  if (words.length === 0) return;
  throw new FleeceError(
    "UNSUPPORTED",
    `The QEMU of domain ${domain} cannot be started again: these arguments ${why}: ${words.join("; ")}`,
    {
      facts: { domain },
    },
  );
}
