import { createHash } from "node:crypto";
import { isIntact } from "../../model/backup.js";
import type { RunOwner, RunRecord } from "../../model/run-record.js";
import {
  endedRun,
  endedWell,
  newestFirst,
  notesOf,
  OWNER_GONE,
  recordsToForget,
  runStateOf,
} from "../../model/run-record.js";
import type { Clock } from "../../ports/clock.js";
import type { Logger } from "../../ports/logger.js";
import type { BackupRepository } from "../../ports/repository.js";
import type { StateStore } from "../../ports/state-store.js";
import { OneByOne } from "../../shared/async.js";
import { errorMessage } from "../../shared/errors.js";

export interface RunLogParts {
  readonly store: StateStore;
  readonly clock: Clock;
  readonly log: Logger;
}

/** What is remembered of each record; the rest is read when it is asked for. */
export interface RunSummary extends Pick<
  RunRecord,
  "id" | "job" | "state" | "scheduledMs" | "startedAtMs" | "finishedAtMs" | "cancelled" | "request"
> {
  readonly bytes: number;
}

/**
 * The records of runs, as notes of the state directory: one each, named `<id>.<job>`. A record that says "running" is believed
 * only as long as its process lives. What cannot be written is kept in memory and tried again: the backup matters more.
 */
export class RunLog {
  readonly #parts: RunLogParts;
  /** Runs of this process. */
  readonly #active = new Map<string, RunRecord>();
  readonly #unsaved = new Map<string, RunRecord>();
  /** One at a time: what is newer must be written last. */
  readonly #writes = new OneByOne();
  /** Of records that do not change any more. */
  readonly #ended = new Map<string, RunSummary>();

  constructor(parts: RunLogParts) {
    this.#parts = parts;
  }

  /** This process, as the owner of a new record. */
  owner(): RunOwner {
    const { store, clock } = this.#parts;
    return { ...store.self(), hostStart: clock.hostTime().start };
  }

  /** Durable when it resolves, unless the state directory cannot be written. Never fails. */
  async save(record: RunRecord): Promise<void> {
    const name = nameOf(record);
    if (record.state === "running") this.#active.set(name, record);
    else this.#active.delete(name);
    this.#unsaved.set(name, record);
    await this.flush();
  }

  /** Tries again what could not be written. Never fails. */
  flush(): Promise<void> {
    return this.#writes.run(() => this.#write());
  }

  async #write(): Promise<void> {
    for (const [name, record] of this.#unsaved) {
      try {
        await this.#parts.store.writeNote("runs", name, record);
        if (this.#unsaved.get(name) === record) this.#unsaved.delete(name);
      } catch (error) {
        this.#parts.log.warn({ run: record.id }, `Cannot write the record of a run: ${errorMessage(error)}`);
      }
    }
  }

  /** Newest first; of one job if given. */
  async summaries(job?: string): Promise<readonly RunSummary[]> {
    const names = new Set([
      ...(await this.#parts.store.notes("runs")),
      ...this.#unsaved.keys(),
      ...this.#active.keys(),
    ]);
    for (const name of this.#ended.keys()) if (!names.has(name)) this.#ended.delete(name);
    const found: RunSummary[] = [];
    for (const name of names) {
      if (job !== undefined && jobOf(name) !== job) continue;
      const summary = this.#ended.get(name) ?? (await this.#summary(name));
      if (summary !== undefined) found.push(summary);
    }
    return found.toSorted(newestFirst);
  }

  /** Undefined if it is gone. */
  async read({ id, job }: Pick<RunRecord, "id" | "job">): Promise<RunRecord | undefined> {
    const name = nameOf({ id, job });
    const known = this.#active.get(name) ?? this.#unsaved.get(name);
    if (known !== undefined) return known;
    const note = await this.#parts.store.readNote("runs", name);
    if (!isRecord(note)) return undefined;
    return note.state !== "running" || this.#isAlive(note.owner)
      ? note
      : endedRun(note, { state: "interrupted", error: OWNER_GONE });
  }

  /** When the newest run that ended well did, in Unix milliseconds. */
  async lastSuccessMs(job: string): Promise<number | undefined> {
    return (await this.summaries(job)).find(endedWell)?.finishedAtMs;
  }

  /**
   * Makes the records of dead processes say so by themselves; what those had published just before their end is found. Resolves
   * with the records of dead processes that nobody was told of.
   */
  async settle(repositories: ReadonlyMap<string, BackupRepository>): Promise<readonly RunRecord[]> {
    const { store, log } = this.#parts;
    const untold: RunRecord[] = [];
    for (const name of await store.notes("runs")) {
      if (this.#active.has(name) || this.#unsaved.has(name)) continue;
      const note = await store.readNote("runs", name);
      if (!isRecord(note) || this.#isAlive(note.owner)) continue;
      if (note.state !== "running") {
        // This process tells of its own itself.
        if (note.reportDue === true && !this.#isOwn(note.owner)) untold.push(note);
        continue;
      }
      const published = await withPublished(note, repositories);
      const ended = endedRun(published, { state: "interrupted", error: OWNER_GONE });
      const told = { ...ended, reportDue: true };
      await this.save(told);
      untold.push(told);
      log.warn(
        { job: note.job, run: note.id, state: told.state },
        "The process of a run had ended before it",
      );
    }
    return untold;
  }

  /** Keeps the records within their bounds. Never fails. */
  async forget(): Promise<void> {
    const { store, log } = this.#parts;
    try {
      for (const record of recordsToForget(await this.summaries())) {
        await store.removeNote("runs", nameOf(record));
      }
    } catch (error) {
      log.warn({}, `Cannot remove old records of runs: ${errorMessage(error)}`);
    }
  }

  async #summary(name: string): Promise<RunSummary | undefined> {
    const record = await this.read({ id: idOf(name), job: jobOf(name) });
    if (record === undefined) return undefined;
    const { id, job, state, scheduledMs, startedAtMs, finishedAtMs, cancelled, request } = record;
    const bytes = Buffer.byteLength(JSON.stringify(record, undefined, 2));
    const summary = { id, job, state, scheduledMs, startedAtMs, finishedAtMs, cancelled, request, bytes };
    // An interrupted one may yet be found to have ended well.
    if (state !== "running" && state !== "interrupted") this.#ended.set(name, summary);
    return summary;
  }

  /** A run of this process that is not active has ended, whatever could be written. */
  #isAlive(owner: RunOwner): boolean {
    return this.#isOfThisStart(owner) && !this.#isOwn(owner) && this.#parts.store.isAlive(owner);
  }

  #isOwn(owner: RunOwner): boolean {
    const self = this.#parts.store.self();
    return this.#isOfThisStart(owner) && owner.pid === self.pid && owner.startTicks === self.startTicks;
  }

  #isOfThisStart({ hostStart }: RunOwner): boolean {
    return hostStart === this.#parts.clock.hostTime().start;
  }
}

/** The key of a run's backups, in the form that manifests have for those of requests. */
export function backupKey({ id }: Pick<RunRecord, "id">): string {
  return createHash("sha256").update(`run ${id}`).digest("hex");
}

/** With the backups that were published before the record could say so. */
async function withPublished(
  record: RunRecord,
  repositories: ReadonlyMap<string, BackupRepository>,
): Promise<RunRecord> {
  const repository = repositories.get(record.repository);
  if (repository === undefined) return record;
  const domains = [];
  for (const domain of record.domains) {
    const listed = domain.state === "running" ? await repository.list(domain.domain).catch(() => []) : [];
    const backup = listed.filter(isIntact).find(({ manifest }) => manifest.request === backupKey(record));
    const notes = ["the process ended right after the backup was published"];
    domains.push(
      backup === undefined
        ? domain
        : ({
            ...domain,
            state: "complete-with-notes",
            phase: undefined,
            finishedAtMs: Date.parse(backup.manifest.finishedAt),
            backup,
            notes: [...domain.notes, ...notesOf(backup), ...notes],
          } as const),
    );
  }
  return { ...record, domains, state: runStateOf(domains) };
}

function nameOf({ id, job }: Pick<RunRecord, "id" | "job">): string {
  return `${id}.${job}`;
}

/** Ids have no dots. */
function idOf(name: string): string {
  return name.slice(0, name.indexOf("."));
}

function jobOf(name: string): string {
  return name.slice(name.indexOf(".") + 1);
}

function isRecord(note: unknown): note is RunRecord {
  return typeof note === "object" && note !== null && "schemaVersion" in note && note.schemaVersion === 1;
}
