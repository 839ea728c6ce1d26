import { createHash } from "node:crypto";
import type { Clock } from "../ports/clock.js";
import type { Logger } from "../ports/logger.js";
import type { StateStore } from "../ports/state-store.js";
import type { ErrorCode, ErrorFacts } from "../shared/errors.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { SharedWork, type Caller, type WorkEvents } from "./shared-work.js";

/** A call that may be sent again. */
export interface NamedRequest {
  /** Who calls: ids of different callers have nothing to do with each other. */
  readonly caller: string;
  readonly method: string;
  readonly id: string;
  /** What was asked for, in a form that is the same for the same. */
  readonly content: string;
}

export interface WorkOptions<Progress, Served> extends WorkEvents<Progress, Served> {
  readonly signal: AbortSignal;
  /** Names request and content, to be kept with what the call makes: after a kill it tells what was made by it. */
  readonly key: string;
  /**
   * To be awaited before an effect that does not tell by whom it was: what the answer will be. A repeat after a kill that finds
   * the thing gone answers so; one that finds it there may compare the proof.
   */
  readonly promise: (answer: object, proof?: string) => Promise<void>;
  /** Of an earlier call that was killed. */
  readonly promised: Promised | undefined;
}

export interface Promised {
  readonly answer: object;
  readonly proof?: string;
}

/** A repeat gets the answer for so long; also after a restart. */
const KEPT_MS = 24 * 3600 * 1000;
/** The oldest are forgotten first. */
const KEPT = 2000;

/** They say nothing of what comes if the same is tried again, and nothing has been done. */
const TRANSIENT: ReadonlySet<ErrorCode> = new Set([
  "DOMAIN_BUSY",
  "REPOSITORY_BUSY",
  "CHECKPOINT_BUSY",
  "NBD_SERVER_BUSY",
  "DISK_IN_USE",
  "DISK_CHANGED",
  "DOMAIN_UNREACHABLE",
  "AGENT_UNREACHABLE",
  "NO_SPACE",
  "CLEANUP_INCOMPLETE",
  "INTERRUPTED",
  "INTERNAL",
]);

const GONE = ["CHECKPOINT_NOT_FOUND", "BACKUP_NOT_FOUND", "DOMAIN_SNAPSHOT_NOT_FOUND"] as const;

interface Note {
  readonly schemaVersion: 1;
  readonly timeMs: number;
  readonly key: string;
  readonly promised?: Promised;
  readonly answer?: object;
  readonly error?: { readonly code: ErrorCode; readonly message: string; readonly facts: ErrorFacts };
}

export interface RequestLogParts {
  readonly store: StateStore;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Gives a request that is sent twice the effect of one. While it runs, a repeat joins it; afterwards it gets the answer that
 * was recorded, or the error unless that was a passing one. The work is cancelled when all who wait for it have gone.
 * For one agent: its notes are nobody else's.
 */
export class RequestLog<Progress, Served> {
  readonly #parts: RequestLogParts;
  readonly #running = new Map<string, SharedWork<Progress, Served>>();
  /** When each was recorded, oldest first. */
  readonly #times: Map<string, number>;

  private constructor(parts: RequestLogParts, times: Map<string, number>) {
    this.#parts = parts;
    this.#times = times;
  }

  static async open<Progress, Served>(parts: RequestLogParts): Promise<RequestLog<Progress, Served>> {
    const found: [string, number][] = [];
    for (const name of await parts.store.notes("requests")) {
      found.push([name, (await readNote(parts.store, name))?.timeMs ?? 0]);
    }
    return new RequestLog(parts, new Map(found.toSorted(([, a], [, b]) => a - b)));
  }

  /** Fails with REQUEST_ID_REUSED, or as the work does. Resolves with undefined for work that has no answer. */
  async run(
    request: NamedRequest,
    caller: Caller<Progress, Served>,
    perform: (options: WorkOptions<Progress, Served>) => Promise<object | undefined>,
  ): Promise<object | undefined> {
    const { method, id, content } = request;
    const name = digest(request.caller, method, id);
    const key = digest(name, content);
    for (let other = this.#running.get(name); other !== undefined; other = this.#running.get(name)) {
      if (other.key !== key) throw reused(request);
      if (!other.isCancelled) return other.join(caller);
      // What has been cancelled has no effect, once it is undone.
      await other.ended;
    }
    const work = new SharedWork<Progress, Served>(key, (options) =>
      this.#perform(request, name, { ...options, key }, perform),
    );
    this.#running.set(name, work);
    void work.ended.then(() => this.#running.delete(name));
    return work.join(caller);
  }

  async #perform(
    request: NamedRequest,
    name: string,
    options: Omit<WorkOptions<Progress, Served>, "promise" | "promised">,
    perform: (options: WorkOptions<Progress, Served>) => Promise<object | undefined>,
  ): Promise<object | undefined> {
    const { key } = options;
    const { store, log } = this.#parts;
    const note = await readNote(store, name);
    const known = note !== undefined && !this.#isOld(note.timeMs) ? note : undefined;
    if (known !== undefined && known.key !== key) throw reused(request);
    if (known?.answer !== undefined || known?.error !== undefined) {
      log.info({ method: request.method, requestId: request.id }, "Answered as before");
      return recorded(known);
    }
    const promised = known?.promised;
    const promise = (answer: object, proof?: string): Promise<void> =>
      this.#record(name, { key, promised: { answer, ...(proof === undefined ? {} : { proof }) } });
    try {
      const answer = await perform({ ...options, promise, promised });
      if (answer !== undefined) await this.#record(name, { key, answer });
      return answer;
    } catch (error) {
      if (promised !== undefined && isFleeceError(error, ...GONE)) {
        const { answer } = promised;
        await this.#record(name, { key, answer });
        return answer;
      }
      if (error instanceof FleeceError && isFinal(error)) {
        const { code, message, facts } = error;
        await this.#record(name, { key, error: { code, message, facts } });
      }
      throw error;
    }
  }

  /** The answer has been earned, so it is given also if it cannot be recorded; a repeat then depends on what it finds. */
  async #record(name: string, content: Omit<Note, "schemaVersion" | "timeMs">): Promise<void> {
    const { store, clock, log } = this.#parts;
    const timeMs = clock.now();
    try {
      await store.writeNote("requests", name, { schemaVersion: 1, timeMs, ...content } satisfies Note);
      this.#times.delete(name);
      this.#times.set(name, timeMs);
      await this.#forget();
    } catch (error) {
      log.warn({}, `Cannot record the answer of a request: ${errorMessage(error)}`);
    }
  }

  async #forget(): Promise<void> {
    for (const [name, timeMs] of this.#times) {
      if (this.#times.size <= KEPT && !this.#isOld(timeMs)) return;
      this.#times.delete(name);
      await this.#parts.store.removeNote("requests", name);
    }
  }

  /** Also if the clock was set back by as much. */
  #isOld(timeMs: number): boolean {
    return Math.abs(this.#parts.clock.now() - timeMs) > KEPT_MS;
  }
}

async function readNote(store: StateStore, name: string): Promise<Note | undefined> {
  const note = await store.readNote("requests", name);
  const isKnown =
    typeof note === "object" && note !== null && "schemaVersion" in note && note.schemaVersion === 1;
  return isKnown ? (note as Note) : undefined;
}

function recorded({ answer, error }: Note): object | undefined {
  if (error !== undefined) throw new FleeceError(error.code, error.message, { facts: error.facts });
  return answer;
}

/** A wrong request is refused before anything is done, and a change of the configuration may make it right. */
function isFinal({ category, code }: FleeceError): boolean {
  return category !== "usage" && !TRANSIENT.has(code);
}

function reused({ method, id }: NamedRequest): FleeceError {
  return new FleeceError(
    "REQUEST_ID_REUSED",
    `Expected a new request_id for another request, got ${id} again: ${method} was called with it and other fields`,
    { facts: { method, requestId: id } },
  );
}

function digest(...parts: readonly string[]): string {
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}
