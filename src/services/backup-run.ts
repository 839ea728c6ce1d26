import { isIntact, momentMs, type BackupLevel, type IntactEntry } from "../model/backup.js";
import { hasWaited } from "../model/backup-limits.js";
import type { BackupJournal } from "../model/operation.js";
import { withDamages } from "../model/doubts.js";
import type { DiskDecision, LevelDecision } from "../model/level.js";
import { decideLevel } from "../model/level.js";
import type {
  DiskState,
  DomainState,
  ExportAddress,
  PlannedDisk,
  PlannedExport,
  SnapshotPlan,
} from "../model/snapshot-plan.js";
import { planSnapshot } from "../model/snapshot-plan.js";
import { consistencyOf, quiesceFacts } from "../model/quiesce.js";
import type { BlockDriver, CopySpeed } from "../ports/block-driver.js";
import type { BackupDraft, BackupRepository, DiskSink } from "../ports/repository.js";
import { forEachLimited } from "../shared/async.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { randomId, timedId } from "../shared/ids.js";
import { removeDeadBitmaps } from "./checkpoints.js";
import { ChangeSample, isMissedChange } from "./change-sample.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, requireRepository, withDomain } from "./context.js";
import { chooseDisks } from "./choose-disks.js";
import { logExports } from "./log-exports.js";
import { readDoubts } from "./doubts.js";
import type { DomainSession } from "./domain-session.js";
import { refuseFrozenDisks } from "./open-snapshots.js";
import { Operation } from "./operation.js";
import { keepCheckpointIfPublished } from "./published.js";
import { checkMomentAnew, explainFailedRead } from "./moment.js";
import { BackupPace, type PaceReport, RunPace } from "./pace.js";
import { pull, READS_IN_FLIGHT } from "./pull.js";
import { pushDisk, type PushedDisk } from "./push.js";
import type { ScratchUse } from "./scratch-watch.js";
import { withScratchWatch } from "./scratch-watch.js";
import { checkReserve, withReserveWatch } from "./reserve-watch.js";
import { logMoment, planQuiesce } from "./quiesce.js";
import { freeGuest, unwind } from "./unwind.js";
import { rememberVerification } from "./verifications.js";

export interface BackupRequest {
  readonly domain: string;
  /** Left out: incremental where any disk can be based on an earlier backup, else full. `incremental` fails there. */
  readonly level?: BackupLevel;
  /** Targets; left out: all disks. */
  readonly disks?: readonly string[];
  readonly repository?: string;
  /** Freeze the guest's file systems for the moment; left out: as configured. */
  readonly quiesce?: boolean;
  /** The key of the request, kept in the manifest: a backup that it has taken already is what it gets. */
  readonly request?: string;
  /** Of the job's run that the backup is a part of; left out: its limits are its own. */
  readonly pace?: RunPace;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: BackupProgress) => void;
  /** A sample found a change that bitmaps had not recorded; the backup is taken again at once. */
  readonly onMissedChange?: () => void;
  /** The backup that this one was to be based on is damaged; the backup is taken at once without it. */
  readonly onDamagedParent?: (note: string) => void;
}

export type BackupProgress =
  | {
      readonly step: "started";
      readonly level: BackupLevel;
      readonly reason: string;
      readonly disks: readonly Pick<DiskState, "target" | "sizeBytes">[];
    }
  | ({ readonly step: "scratch" } & ScratchUse)
  | ({ readonly step: "pace" } & PaceReport)
  | {
      readonly step: "disk";
      readonly target: string;
      readonly positionBytes: number;
      readonly readBytes: number;
      readonly storedBytes: number;
    };

/**
 * Takes one backup. Two phases: everything acquired is in the journal first; only when the backup has its final name does
 * its checkpoint count. Any failure before that merges the new checkpoint into its parent, as if it had never been.
 * An inactive domain that is started meanwhile is backed up once more, as the running one that it is then.
 */
export async function runBackup(context: ServiceContext, request: BackupRequest): Promise<IntactEntry> {
  const domain = requireDomain(context, request.domain);
  const repository = requireRepository(context, request.repository);
  planQuiesce(context, domain, request.quiesce);
  await repository.checkWritable();
  await repository.checkKey(undefined, request.signal);
  await checkReserve(repository);
  return withDomain(context, domain, `backup run ${domain}`, async (session) => {
    const lock = await repository.lock(domain);
    try {
      const taken = await takenBy(repository, domain, request.request);
      if (taken !== undefined) return taken;
      return await backUp(context, request, session, repository);
    } finally {
      await lock.release();
    }
  });
}

async function takenBy(
  repository: BackupRepository,
  domain: string,
  request: string | undefined,
): Promise<IntactEntry | undefined> {
  if (request === undefined) return undefined;
  return (await repository.list(domain))
    .filter(isIntact)
    .find(({ manifest }) => manifest.request === request);
}

async function backUp(
  context: ServiceContext,
  request: BackupRequest,
  session: DomainSession,
  repository: BackupRepository,
  damages: ReadonlyMap<string, string> = new Map(),
): Promise<IntactEntry> {
  const { signal } = request;
  const driver = await session.driver(signal);
  const state = await driver.inspect(signal);
  await refuseFrozenDisks(context, session, driver, request.disks);
  const disks = chooseDisks(state, request.disks);
  if (state.mode !== "inactive") await context.scratch.check();
  const entries = await repository.list(session.domain);
  const doubts = withDamages(await readDoubts(context, session.domain, entries), damages);
  const decision = decideLevel(disks, entries, request.level, doubts);
  if (request.level === "incremental" && decision.level === "full") {
    throw new FleeceError("CHECKPOINT_INVALID", `An incremental backup is not possible: ${decision.reason}`, {
      facts: { domain: session.domain },
    });
  }
  for (const [disk, { mode, reason }] of decision.disks) {
    context.log.info({ domain: session.domain, level: decision.level, disk, mode }, reason);
  }
  request.onProgress?.({ step: "started", level: decision.level, reason: decision.reason, disks });
  const startedAtMs = context.clock.now();
  const attempt = new Attempt(context, request, {
    session,
    driver,
    state,
    disks,
    decision,
    repository,
    startedAtMs,
  });
  try {
    return await attempt.run();
  } catch (error) {
    if (signal?.aborted !== true && error instanceof FleeceError && isMissedChange(error)) {
      context.log.warn({ domain: session.domain, ...error.facts }, error.message);
      request.onMissedChange?.();
      // Once a disk at most: it is compared now.
      return backUp(context, request, session, repository, damages);
    }
    if (error instanceof DamagedParent) {
      const { parent, message } = error;
      await rememberVerification(context, parent, message);
      request.onDamagedParent?.(
        `backup ${parent.id} is damaged, and this one is not based on it: ${message}`,
      );
      return backUp(context, request, session, repository, new Map([...damages, [parent.id, message]]));
    }
    if (state.mode !== "inactive" || signal?.aborted === true || !(await runsNow(session))) throw error;
    context.log.warn(
      { domain: session.domain },
      `The domain was started during its backup, which is taken again: ${errorMessage(error)}`,
    );
    // Not for ever: the domain is not inactive any more.
    return backUp(context, request, session, repository, damages);
  }
}

/** By a new look: how the domain was reached before tells nothing of how it can be reached now. */
async function runsNow(session: DomainSession): Promise<boolean> {
  await session.close();
  return session.driver().then(
    ({ mode }) => mode === "running",
    () => false,
  );
}

interface AttemptParts {
  readonly session: DomainSession;
  readonly driver: BlockDriver;
  readonly state: DomainState;
  readonly disks: readonly DiskState[];
  readonly decision: LevelDecision;
  readonly repository: BackupRepository;
  readonly startedAtMs: number;
}

/** What the backup was to be based on cannot be used: it can be taken without. */
class DamagedParent extends FleeceError {
  readonly parent: IntactEntry;

  constructor(parent: IntactEntry, cause: FleeceError) {
    super("DAMAGED", cause.message, { cause, facts: cause.facts });
    this.parent = parent;
  }
}

/** One try at a backup whose level is decided. */
class Attempt {
  readonly #context: ServiceContext;
  readonly #request: BackupRequest;
  readonly #parts: AttemptParts;
  readonly #backupId: string;
  readonly #pace: BackupPace;

  constructor(context: ServiceContext, request: BackupRequest, parts: AttemptParts) {
    this.#context = context;
    this.#request = request;
    this.#parts = parts;
    this.#backupId = timedId(parts.startedAtMs);
    this.#pace = new BackupPace(request.pace ?? new RunPace(context.limits, context.clock), {
      readsAtOnce: READS_IN_FLIGHT,
      onReport: (report) => request.onProgress?.({ step: "pace", ...report }),
    });
  }

  async run(): Promise<IntactEntry> {
    const { session, repository, startedAtMs } = this.#parts;
    const subject = { kind: "backup", backupId: this.#backupId, repository: repository.name } as const;
    const header = { id: randomId(8), domain: session.domain, startedAtMs, subject };
    const operation = Operation.prepare(this.#context.store, header);
    let entry: IntactEntry;
    try {
      entry = await this.#perform(operation);
      this.#context.meter.backupsChanged(session.domain);
    } catch (error) {
      await this.#putInOrder(operation, subject);
      throw error;
    }
    await operation.keepCheckpoint();
    await unwind(operation, session, this.#context.host);
    return entry;
  }

  /** The cause of a failed backup is what people need to read; trouble with tidying up is logged, and journalled. */
  async #putInOrder(operation: Operation, subject: BackupJournal): Promise<void> {
    try {
      await keepCheckpointIfPublished(this.#context.repositories, operation, subject);
      await unwind(operation, this.#parts.session, this.#context.host);
    } catch (trouble) {
      this.#context.log.warn({ operation: operation.record.id }, errorMessage(trouble));
    }
  }

  async #perform(operation: Operation): Promise<IntactEntry> {
    const { driver, state, disks, decision, repository, session } = this.#parts;
    const { signal } = this.#request;
    await removeDeadBitmaps(driver, state);
    const begun = repository.begin(
      {
        id: this.#backupId,
        domain: session.domain,
        disks: disks.map(({ target, format, file, sizeBytes }) => {
          const { mode, reason } = this.#decision(target);
          const pushed = this.#isPushed(target);
          return { target, sourceFormat: format, sourceFile: file, sizeBytes, mode, reason, pushed };
        }),
        ...(decision.level === "incremental" ? { parent: decision.parent } : {}),
        machineFiles: this.#context.machineFiles.get(session.domain) ?? [],
      },
      operation,
      signal,
    );
    const draft = await this.#ofParent(begun);
    try {
      const plan = planSnapshot(state, {
        id: operation.record.id,
        targets: disks.map(({ target }) => target),
        scratchDir: this.#context.scratchDir,
        scratchLimitBytes: this.#context.scratchLimits.get(session.domain),
        checkpoint: { name: this.#backupId, timeMs: this.#context.clock.now() },
        quiesce: planQuiesce(this.#context, session.domain, this.#request.quiesce),
      });
      const frozen = await driver.freeze(plan, operation, signal);
      logMoment(this.#context, session.domain, frozen);
      await draft.keepMachineFiles(signal);
      const offered = this.#staged ? [] : await this.#export(plan, plan.disks, operation, signal);
      const onUse = (use: ScratchUse): void => this.#request.onProgress?.({ step: "scratch", ...use });
      const targets = disks.map(({ target }) => target);
      const onLook = (now: BlockDriver, stop: AbortSignal): Promise<void> =>
        this.#pace.lookAtGuest(now, targets, stop);
      // What has been copied out needs the moment no more, also if the monitor is lost and QEMU is asked by a new one.
      const copied = new Set<string>();
      const moment = {
        get plan() {
          return { ...plan, disks: plan.disks.filter(({ target }) => !copied.has(target)) };
        },
        fingerprints: frozen.fingerprints,
        mode: driver.mode,
      };
      const scratchPeakBytes = await withReserveWatch(this.#context, repository, signal, (stopped) =>
        withScratchWatch(this.#context, { session, moment, signal: stopped, onUse, onLook }, (intact) =>
          forEachLimited(
            plan.disks,
            this.#context.parallelDisks,
            async (disk, stop) => {
              const { target } = disk;
              if (this.#isPushed(target)) {
                const onCopied = () => void copied.add(target);
                return this.#pushDisk(target, { plan, draft, undo: operation, signal: stop, onCopied });
              }
              // Staging takes as long as reading, so the disks of a staged snapshot are offered one by one, under watch.
              const addresses = this.#staged ? await this.#stage(plan, disk, operation, stop) : offered;
              for (const address of addresses.filter((address) => address.target === target)) {
                await this.#pullDisk(address, { draft, timeMs: frozen.timeMs, signal: stop });
              }
            },
            intact,
          ),
        ).catch(async (error: unknown) => {
          throw await explainFailedRead(this.#context, session, moment, error);
        }),
      );
      await checkMomentAnew(session, moment, signal);
      return await draft.publish({
        level: decision.level,
        reason: decision.reason,
        timeMs: frozen.timeMs,
        startedAtMs: this.#parts.startedAtMs,
        finishedAtMs: this.#context.clock.now(),
        consistency: consistencyOf(state.mode, frozen.quiesce),
        heldMs: frozen.heldMs,
        scratchPeakBytes,
        ...(hasWaited(this.#pace.waits) ? { waits: this.#pace.waits } : {}),
        ...quiesceFacts(frozen.quiesce),
        checkpoint: this.#backupId,
        ...(this.#request.request === undefined ? {} : { request: this.#request.request }),
      });
    } catch (error) {
      await this.#giveUp(draft, operation);
      throw error;
    }
  }

  /** The guest comes first: the storage of what was written may hang. Trouble is that of the unwinding, which does the rest. */
  async #giveUp(draft: BackupDraft, operation: Operation): Promise<void> {
    const { log, host } = this.#context;
    for (const action of [() => freeGuest(operation, this.#parts.session, host), () => draft.discard()]) {
      try {
        await action();
      } catch (trouble) {
        log.debug({ operation: operation.record.id }, errorMessage(trouble));
      }
    }
  }

  /** The copy is what costs the guest; it is written to scratch space. */
  async #stage(
    plan: SnapshotPlan,
    disk: PlannedDisk,
    operation: Operation,
    signal: AbortSignal,
  ): Promise<readonly ExportAddress[]> {
    using copying = this.#pace.copying({ writes: false });
    return await this.#export(plan, [disk], operation, signal, copying);
  }

  async #export(
    plan: SnapshotPlan,
    disks: readonly PlannedDisk[],
    operation: Operation,
    signal: AbortSignal | undefined,
    pace?: CopySpeed,
  ): Promise<readonly ExportAddress[]> {
    const exports = disks.map(({ target, nodes }) => ({
      ...{ target, exportName: `${target}-${plan.id}`, nodes, release: true },
      ...this.#changes(target),
    }));
    const addresses = await this.#parts.driver.startExports(plan, exports, operation, signal, pace);
    logExports(this.#context, plan, addresses);
    return addresses;
  }

  #changes(target: string): Pick<PlannedExport, "changes"> {
    const { decision } = this.#parts;
    const disk = this.#decision(target);
    if (decision.level === "full" || disk.mode !== "changes") return {};
    return { changes: { since: decision.parent.manifest.checkpoint, bitmaps: disk.bitmaps } };
  }

  /** Says that damage is the parent's. */
  async #ofParent<T>(action: Promise<T>): Promise<T> {
    const { decision } = this.#parts;
    try {
      return await action;
    } catch (error) {
      if (decision.level === "full" || !isFleeceError(error, "DAMAGED")) throw error;
      throw new DamagedParent(decision.parent, error);
    }
  }

  /** If one disk of a snapshot must be staged, all of them are. */
  get #staged(): boolean {
    return this.#parts.disks.some(({ staged }) => staged === true);
  }

  /** What is compared with the parent must not be in the image before, so it is staged and pulled. */
  #isPushed(target: string): boolean {
    return this.#staged && this.#decision(target).mode !== "compare";
  }

  #decision(target: string): DiskDecision {
    const decision = this.#parts.decision.disks.get(target);
    if (decision !== undefined) return decision;
    throw new FleeceError("INTERNAL", `Expected a disk of the backup, got ${target}`, { facts: { target } });
  }

  async #pullDisk(
    address: ExportAddress,
    { draft, timeMs, signal }: { draft: BackupDraft; timeMs: number; signal: AbortSignal },
  ): Promise<void> {
    const { clock, readers } = this.#context;
    const start = clock.monotonicMs();
    const { target, sizeBytes } = address;
    const sink = draft.disk(target);
    await using reader = await readers.open(address, signal);
    const { mode } = this.#decision(target);
    const onProgress = this.#progressOf(target, sink);
    const isSampled = mode === "changes" && this.#context.sampleShare > 0;
    await using expected = isSampled ? await this.#ofParent(draft.parentExpectations(target)) : undefined;
    const { session, decision } = this.#parts;
    // The clock may have been set back since the parent was taken, and that is not to be believed either.
    const doubtedMs = Math.max(timeMs, decision.level === "full" ? 0 : momentMs(decision.parent));
    const place = { domain: session.domain, target, sizeBytes, timeMs: doubtedMs };
    const sample = expected && new ChangeSample(this.#context, place, expected);
    const readBytes = await this.#pace.reading({ reads: address.staged !== true }, (pace) =>
      pull({ reader, sink, mode, signal, onProgress, sample, pace }),
    );
    await sink.finish({ readBytes, durationMs: Math.round(clock.monotonicMs() - start) });
  }

  async #pushDisk(
    target: string,
    parts: Pick<PushedDisk, "plan" | "draft" | "undo" | "signal" | "onCopied">,
  ): Promise<void> {
    const { draft } = parts;
    const { clock } = this.#context;
    const start = clock.monotonicMs();
    const sink = draft.disk(target);
    const readBytes = await pushDisk(this.#context, {
      ...{ ...parts, driver: this.#parts.driver, sink },
      planned: { target, into: draft.image(target), ...this.#changes(target) },
      pace: this.#pace,
      mode: this.#decision(target).mode,
      onProgress: this.#progressOf(target, sink),
    });
    await sink.finish({ readBytes, durationMs: Math.round(clock.monotonicMs() - start) });
  }

  #progressOf(target: string, sink: DiskSink): (positionBytes: number, readBytes: number) => void {
    let metered = { readBytes: 0, storedBytes: 0 };
    return (positionBytes, readBytes) => {
      const { storedBytes } = sink;
      this.#context.meter.backupBytes(this.#parts.session.domain, {
        readBytes: readBytes - metered.readBytes,
        storedBytes: storedBytes - metered.storedBytes,
      });
      metered = { readBytes, storedBytes };
      this.#request.onProgress?.({ step: "disk", target, positionBytes, readBytes, storedBytes });
    };
  }
}
