import { type BackupEntry, type IntactEntry, isIntact, type Manifest } from "../model/backup.js";
import {
  type CopiedDisk,
  copiedSince,
  type CopyPlan,
  type CopyWish,
  missingBackups,
  planCopy,
} from "../model/copy-plan.js";
import { withDamages } from "../model/doubts.js";
import { checkName } from "../model/names.js";
import type { ExportAddress } from "../model/snapshot-plan.js";
import type { BackupDraft, BackupRepository, OpenBackup } from "../ports/repository.js";
import { forEachLimited } from "../shared/async.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { randomId } from "../shared/ids.js";
import type { BackupProgress } from "./backup-run.js";
import type { ServiceContext } from "./context.js";
import { requireDomain, requireRepository } from "./context.js";
import { CopyReader } from "./copy-reader.js";
import { readDoubts } from "./doubts.js";
import { Operation } from "./operation.js";
import { pull } from "./pull.js";
import { checkReserve, withReserveWatch } from "./reserve-watch.js";
import { rememberVerification } from "./verifications.js";

export interface CopyRequest {
  readonly domain: string;
  /** Left out: the first of the configuration. */
  readonly from?: string | undefined;
  readonly to: string;
  readonly wish: CopyWish;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: BackupProgress) => void) | undefined;
  /** Each copy, when it is complete. */
  readonly onCopied?: (copy: IntactEntry) => void;
}

export interface Copying {
  readonly domain: string;
  readonly from: string;
  readonly to: string;
  /** As they are in the second repository, oldest first. */
  readonly copies: readonly IntactEntry[];
  /** What somebody should read: which of them are not based on the backup that would be next, because of damage. */
  readonly notes: readonly string[];
}

/**
 * Copies what the second repository lacks of a domain's backups, the oldest first; each is compared with its digests on the way. Every
 * copy that is complete stays, whatever comes then, and a repeat does the rest. One that is damaged is left out, with all that
 * cannot be copied without it; after the others that fails with DAMAGED, as other trouble does at once: DOMAIN_NOT_FOUND,
 * REPOSITORY_NOT_FOUND, BACKUP_NOT_FOUND, REPOSITORY_BUSY, NO_SPACE, PATH_NOT_FOUND, PERMISSION_DENIED.
 */
export async function copyBackups(context: ServiceContext, request: CopyRequest): Promise<Copying> {
  const { domain, wish } = request;
  checkName("domain", domain);
  const from = requireRepository(context, request.from);
  const to = requireRepository(context, request.to);
  if (from.name === to.name) {
    const message = `Expected two repositories, got ${from.name} to copy from and to`;
    throw new FleeceError("INVALID_ARGUMENT", message, { facts: { field: "to" } });
  }
  const here = await from.list(domain);
  if (here.length === 0) requireDomain(context, domain);
  if (wish.kind === "ids") requireAll(here, wish.ids, from.name);
  await to.checkWritable();
  // Locking would make a directory for the domain.
  const nothing = { domain, from: from.name, to: to.name, copies: [], notes: [] };
  if (missingBackups(here, await to.list(domain), wish).length === 0) return nothing;
  const lock = await to.lock(domain);
  try {
    const missing = missingBackups(here, await to.list(domain), wish);
    return { ...nothing, ...(await new CopyRun(context, request, { from, to }).perform(missing)) };
  } finally {
    await lock.release();
  }
}

function requireAll(here: readonly BackupEntry[], ids: readonly string[], repository: string): void {
  for (const id of ids) {
    checkName("backup", id);
    if (here.some((entry) => entry.id === id)) continue;
    throw new FleeceError(
      "BACKUP_NOT_FOUND",
      `Repository ${repository} has no such backup of the domain: ${id}`,
      {
        facts: { backup: id, repository },
      },
    );
  }
}

interface Places {
  readonly from: BackupRepository;
  readonly to: BackupRepository;
}

/** Of one domain, whose lock in the second repository is held. */
class CopyRun {
  readonly #context: ServiceContext;
  readonly #request: CopyRequest;
  readonly #places: Places;
  readonly #notes: string[] = [];

  constructor(context: ServiceContext, request: CopyRequest, places: Places) {
    this.#context = context;
    this.#request = request;
    this.#places = places;
  }

  async perform(missing: readonly BackupEntry[]): Promise<Pick<Copying, "copies" | "notes">> {
    const { from, to } = this.#places;
    const { domain, signal } = this.#request;
    const copies: IntactEntry[] = [];
    const damages: string[] = [];
    for (const entry of missing) {
      try {
        const copy = await this.#copy(entry);
        const facts = { domain, backup: copy.id, repository: to.name, level: copy.manifest.level };
        this.#context.log.info(facts, `Backup copied from repository ${from.name}: ${copy.manifest.reason}`);
        copies.push(copy);
        this.#request.onCopied?.(copy);
      } catch (error) {
        signal?.throwIfAborted();
        if (!this.#isOfOriginal(error)) throw error;
        // Pruned since it was listed.
        if (!(await from.list(domain)).some(({ id }) => id === entry.id)) continue;
        await rememberVerification(this.#context, entry, errorMessage(error.cause));
        damages.push(error.message);
      }
    }
    if (damages.length === 0) return { copies, notes: this.#notes };
    const done = copies.length === 0 ? "" : `; copied are ${copies.map(({ id }) => id).join(", ")}`;
    throw new FleeceError("DAMAGED", `${damages.join("; ")}${done}`, {
      facts: { domain, repository: from.name },
    });
  }

  async #copy(entry: BackupEntry): Promise<IntactEntry> {
    const { from, to } = this.#places;
    const { domain, id } = entry;
    const { signal } = this.#request;
    await using backup = await this.#ofOriginal(id, () => openOriginal(from, entry, signal));
    const there = await to.list(domain);
    const doubts = await readDoubts(this.#context, domain, there);
    const damages = new Map<string, string>();
    for (;;) {
      const plan = planCopy(backup.chain, there, withDamages(doubts, damages));
      try {
        return await this.#copyAs(plan, backup, entry);
      } catch (error) {
        const { parent } = plan;
        if (parent === undefined || !isFleeceError(error, "DAMAGED")) throw error;
        if (error.facts["repository"] === from.name) throw error;
        await rememberVerification(this.#context, parent, error.message);
        damages.set(parent.id, error.message);
      }
    }
  }

  /** Fails with DAMAGED, not said to be of the original, if its parent in the second repository is damaged. */
  async #copyAs(plan: CopyPlan, backup: OpenBackup, { domain, id }: BackupEntry): Promise<IntactEntry> {
    const { to } = this.#places;
    const { level, parent, flaw } = plan;
    await checkReserve(to);
    const operation = Operation.prepare(this.#context.store, {
      ...{ id: randomId(8), domain, startedAtMs: this.#context.clock.now() },
      subject: { kind: "copy", backupId: id, repository: to.name },
    });
    const copy = await this.#write(backup, plan, operation);
    if (flaw !== undefined) {
      const how = parent === undefined ? `stored as a ${level}` : `based on backup ${parent.id}`;
      this.#notes.push(`the copy of backup ${id} in repository ${to.name} is ${how}: ${flaw}`);
    }
    this.#context.meter.backupsChanged(domain);
    return copy;
  }

  async #write(backup: OpenBackup, plan: CopyPlan, operation: Operation): Promise<IntactEntry> {
    const { to } = this.#places;
    const { signal, onProgress } = this.#request;
    const manifest = manifestOf(backup);
    const { level, reason } = plan;
    onProgress?.({ step: "started", level, reason, disks: plan.disks });
    const draft = await this.#begin(manifest, plan, operation);
    try {
      await withReserveWatch(this.#context, to, signal, async (stopped) => {
        const pullDisk = (disk: CopiedDisk, stop: AbortSignal): Promise<void> =>
          this.#ofOriginal(manifest.id, () => this.#pull({ backup, plan, draft }, disk, stop));
        await forEachLimited(plan.disks, this.#context.parallelDisks, pullDisk, stopped);
        await this.#ofOriginal(manifest.id, () => draft.takeMachineFiles(backup, stopped));
      });
      const { consistency, heldMs, scratchPeakBytes, frozenMs, quiesceFailure, checkpoint, waits } = manifest;
      // Not its request: a repeat of that is none of this repository's.
      const copy = await draft.publish({
        ...{
          level,
          reason,
          consistency,
          heldMs,
          scratchPeakBytes,
          frozenMs,
          quiesceFailure,
          checkpoint,
          waits,
        },
        timeMs: Date.parse(manifest.time),
        startedAtMs: Date.parse(manifest.startedAt),
        finishedAtMs: Date.parse(manifest.finishedAt),
      });
      await operation.end();
      return copy;
    } catch (error) {
      await this.#discard(draft, operation);
      throw error;
    }
  }

  async #begin(manifest: Manifest, plan: CopyPlan, operation: Operation): Promise<BackupDraft> {
    const { from, to } = this.#places;
    const { parent, disks } = plan;
    const request = {
      ...{ id: manifest.id, domain: manifest.domain, copiedFrom: from.name },
      disks: disks.map(({ target, sourceFormat, sourceFile, sizeBytes, mode, reason, isCompared }) => {
        const isKnown = isCompared !== true;
        return { target, sourceFormat, sourceFile, sizeBytes, mode, reason, isKnown };
      }),
      ...(parent === undefined ? {} : { parent }),
    };
    try {
      return await to.begin(request, operation, this.#request.signal);
    } catch (error) {
      await operation.end();
      throw error;
    }
  }

  /** What read and wrote the original took is said of the copy, too. */
  async #pull({ backup, plan, draft }: CopyParts, disk: CopiedDisk, signal: AbortSignal): Promise<void> {
    const { target, mode, readBytes, durationMs } = disk;
    const since = copiedSince(plan, disk);
    const sink = draft.disk(target);
    await using reader = await CopyReader.open(this.#context, backup, addressOf(backup, target), {
      since,
      signal,
    });
    const onProgress = (positionBytes: number, doneBytes: number): void => {
      const { storedBytes } = sink;
      this.#request.onProgress?.({ step: "disk", target, positionBytes, readBytes: doneBytes, storedBytes });
    };
    await pull({ reader, sink, mode, signal, onProgress });
    await sink.finish({ readBytes, durationMs });
  }

  /** What cannot be removed is left to whoever takes the repository's lock next. */
  async #discard(draft: BackupDraft, operation: Operation): Promise<void> {
    try {
      await draft.discard();
      await operation.end();
    } catch (trouble) {
      this.#context.log.warn({ operation: operation.record.id }, errorMessage(trouble));
    }
  }

  /** Says of which repository damage is: the second has chains of its own. */
  async #ofOriginal<T>(id: string, action: () => Promise<T>): Promise<T> {
    try {
      return await action();
    } catch (error) {
      if (!isFleeceError(error, "DAMAGED")) throw error;
      const { name } = this.#places.from;
      const message = `Backup ${id} in repository ${name} is damaged, and not copied: ${error.message}`;
      throw new FleeceError("DAMAGED", message, {
        cause: error,
        facts: { ...error.facts, backup: id, repository: name },
      });
    }
  }

  #isOfOriginal(error: unknown): error is FleeceError {
    return isFleeceError(error, "DAMAGED") && error.facts["repository"] === this.#places.from.name;
  }
}

interface CopyParts {
  readonly backup: OpenBackup;
  readonly plan: CopyPlan;
  readonly draft: BackupDraft;
}

async function openOriginal(
  from: BackupRepository,
  entry: BackupEntry,
  signal: AbortSignal | undefined,
): Promise<OpenBackup> {
  if (!isIntact(entry)) throw new FleeceError("DAMAGED", `It cannot be used: ${entry.damage}`);
  return await from.open(entry, signal === undefined ? {} : { signal });
}

function manifestOf({ chain }: OpenBackup): Manifest {
  const manifest = chain.at(-1)?.manifest;
  if (manifest !== undefined) return manifest;
  throw new FleeceError("INTERNAL", "Expected a backup to be its chain's last, got an empty chain");
}

function addressOf({ addresses }: OpenBackup, target: string): ExportAddress {
  const address = addresses.find((each) => each.target === target);
  if (address !== undefined) return address;
  throw new FleeceError("INTERNAL", `Expected all disks of the backup to be served, ${target} is not`);
}
