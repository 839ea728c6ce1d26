import type { BackupLevel, IntactEntry } from "../model/backup.js";
import type { BackupJournal } from "../model/operation.js";
import type { LevelDecision } from "../model/level.js";
import { decideLevel } from "../model/level.js";
import type { DiskState, DomainState, ExportAddress, SnapshotPlan } from "../model/snapshot-plan.js";
import { planSnapshot } from "../model/snapshot-plan.js";
import type { BlockDriver } from "../ports/block-driver.js";
import type { BackupDraft, BackupRepository } from "../ports/repository.js";
import { forEachLimited } from "../shared/async.js";
import { errorMessage, FleeceError } from "../shared/errors.js";
import { randomId, timedId } from "../shared/ids.js";
import { removeDeadBitmaps } from "./checkpoints.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, requireRepository, withDomain } from "./context.js";
import { chooseDisks } from "./choose-disks.js";
import type { DomainSession } from "./domain-session.js";
import { refuseFrozenDisks } from "./open-snapshots.js";
import { Operation } from "./operation.js";
import { keepCheckpointIfPublished } from "./published.js";
import { pull } from "./pull.js";
import { unwind } from "./unwind.js";

export interface BackupRequest {
  readonly domain: string;
  /** Left out: incremental where the chain allows it, else full. `incremental` fails where it does not. */
  readonly level?: BackupLevel;
  /** Targets; left out: all disks. */
  readonly disks?: readonly string[];
  readonly repository?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: BackupProgress) => void;
}

export type BackupProgress =
  | {
      readonly step: "started";
      readonly level: BackupLevel;
      readonly reason: string;
      readonly disks: readonly DiskState[];
    }
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
  await repository.checkWritable();
  return withDomain(context, domain, `backup run ${domain}`, async (session) => {
    const lock = await repository.lock(domain);
    try {
      return await backUp(context, request, session, repository);
    } finally {
      await lock.release();
    }
  });
}

async function backUp(
  context: ServiceContext,
  request: BackupRequest,
  session: DomainSession,
  repository: BackupRepository,
): Promise<IntactEntry> {
  const { signal } = request;
  const driver = await session.driver(signal);
  const state = await driver.inspect(signal);
  await refuseFrozenDisks(context, session, driver, request.disks);
  const disks = chooseDisks(state, request.disks);
  if (state.mode !== "inactive") await context.checkScratch();
  const decision = decideLevel(disks, await repository.list(session.domain), request.level);
  if (request.level === "incremental" && decision.level === "full") {
    throw new FleeceError("CHECKPOINT_INVALID", `An incremental backup is not possible: ${decision.reason}`, {
      facts: { domain: session.domain },
    });
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
    if (state.mode !== "inactive" || signal?.aborted === true || !(await runsNow(session))) throw error;
    context.log.warn(
      { domain: session.domain },
      `The domain was started during its backup, which is taken again: ${errorMessage(error)}`,
    );
    // Not for ever: the domain is not inactive any more.
    return backUp(context, request, session, repository);
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

/** One try at a backup whose level is decided. */
class Attempt {
  readonly #context: ServiceContext;
  readonly #request: BackupRequest;
  readonly #parts: AttemptParts;
  readonly #backupId: string;

  constructor(context: ServiceContext, request: BackupRequest, parts: AttemptParts) {
    this.#context = context;
    this.#request = request;
    this.#parts = parts;
    this.#backupId = timedId(parts.startedAtMs);
  }

  async run(): Promise<IntactEntry> {
    const { session, repository, startedAtMs } = this.#parts;
    const subject = { kind: "backup", backupId: this.#backupId, repository: repository.name } as const;
    const header = { id: randomId(8), domain: session.domain, startedAtMs, subject };
    const operation = await Operation.begin(this.#context.store, header);
    let entry: IntactEntry;
    try {
      entry = await this.#perform(operation);
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
    const draft = await repository.begin(
      {
        id: this.#backupId,
        domain: session.domain,
        disks: disks.map(({ target, format, sizeBytes }) => ({ target, sourceFormat: format, sizeBytes })),
        ...(decision.level === "incremental" ? { parent: decision.parent } : {}),
      },
      operation,
      signal,
    );
    try {
      const plan = planSnapshot(state, {
        id: operation.record.id,
        targets: disks.map(({ target }) => target),
        scratchDir: this.#context.scratchDir,
        checkpoint: { name: this.#backupId, timeMs: this.#context.clock.now() },
      });
      const frozen = await driver.freeze(plan, operation, signal);
      const addresses = await this.#export(plan, operation);
      await forEachLimited(
        addresses,
        this.#context.parallelDisks,
        (address, stop) => this.#pullDisk(address, draft, stop),
        signal,
      );
      await driver.checkIntact(plan, frozen.fingerprints, signal);
      return await draft.publish({
        level: decision.level,
        reason: decision.reason,
        timeMs: frozen.timeMs,
        startedAtMs: this.#parts.startedAtMs,
        finishedAtMs: this.#context.clock.now(),
        consistency: state.mode === "inactive" ? "clean" : "crash",
        heldMs: frozen.heldMs,
        checkpoint: this.#backupId,
      });
    } finally {
      await draft.discard();
    }
  }

  #export(plan: SnapshotPlan, operation: Operation): Promise<readonly ExportAddress[]> {
    const { decision, driver } = this.#parts;
    const exports = plan.disks.map(({ target, nodes }) => {
      const exportName = `${target}-${plan.id}`;
      if (decision.level === "full") return { target, exportName, nodes };
      const bitmaps = decision.changes.get(target) ?? [];
      const since = decision.parent.manifest.checkpoint;
      return { target, exportName, nodes, changes: { since, bitmaps } };
    });
    return driver.startExports(plan, exports, operation, this.#request.signal);
  }

  async #pullDisk(address: ExportAddress, draft: BackupDraft, signal: AbortSignal): Promise<void> {
    const { clock, readers } = this.#context;
    const start = clock.monotonicMs();
    const sink = draft.disk(address.target);
    await using reader = await readers.open(address, signal);
    const readBytes = await pull({
      reader,
      sink,
      level: this.#parts.decision.level,
      signal,
      onProgress: (positionBytes, read) =>
        this.#request.onProgress?.({
          step: "disk",
          target: address.target,
          positionBytes,
          readBytes: read,
          storedBytes: sink.storedBytes,
        }),
    });
    await sink.finish({ readBytes, durationMs: Math.round(clock.monotonicMs() - start) });
  }
}
