import { leaseLeftMs } from "../model/lease.js";
import type { OperationRecord } from "../ports/state-store.js";
import { errorMessage, isFleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import { withDomain } from "./context.js";
import { isOver } from "./recovery.js";

/** What is done about once a second for a domain that has open block snapshots. */
export type Duty = (context: ServiceContext, domain: string, signal: AbortSignal) => Promise<void>;

/** How often the journal is looked at; a lease that ends before that is waited for. */
const LOOK_MS = 1000;
/** A domain that cannot be put in order is tried again after so long, then twice as long, and so on. */
const RETRY_MS = { first: 1000, most: 60_000 };

/**
 * Ends block snapshots when their leases do, and undoes what killed commands have left, until the signal fires. What an
 * operation that holds the domain keeps from being ended is ended after it. QEMU is asked only when there is something to do.
 */
export async function keepHouse(
  context: ServiceContext,
  duties: readonly Duty[],
  signal: AbortSignal,
): Promise<void> {
  const rooms = context.domains.map((domain) => new Room(context, domain, duties));
  while (!signal.aborted) {
    const waits = await Promise.all(rooms.map((room) => room.look(signal)));
    try {
      await context.clock.sleep(Math.max(1, Math.min(LOOK_MS, ...waits)), signal);
    } catch {
      // Only the signal ends a sleep early.
    }
  }
  await Promise.all(rooms.map((room) => room.idle()));
}

/** One domain: what hangs in it keeps nobody else waiting. */
class Room {
  readonly #context: ServiceContext;
  readonly #domain: string;
  readonly #duties: readonly Duty[];
  #work: Promise<void> | undefined;
  #retryMs = 0;
  #notBeforeMs = 0;
  /** Records that were over at the last look, with nobody at work. */
  #leftovers: ReadonlySet<string> = new Set();
  #lastFailure = "";

  constructor(context: ServiceContext, domain: string, duties: readonly Duty[]) {
    this.#duties = duties;
    this.#context = context;
    this.#domain = domain;
  }

  /** Begins what is due, and resolves with the time until the next lease ends, in milliseconds. */
  async look(signal: AbortSignal): Promise<number> {
    const { store, clock, log } = this.#context;
    if (this.#work !== undefined) return Infinity;
    try {
      // Asked first: what is found afterwards without a holder has not been begun under one.
      const isHeld = (await store.holder(this.#domain)) !== undefined;
      const records = await store.operations(this.#domain);
      const over = records.filter((record) => isOver(this.#context, record));
      const isDue = over.some((record) => isExpired(record) || this.#leftovers.has(record.id));
      this.#leftovers = new Set(isHeld ? [] : over.map(({ id }) => id));
      if (isDue && !isHeld && clock.monotonicMs() >= this.#notBeforeMs) {
        this.#begin(() => this.#putInOrder());
      } else if (records.some((record) => this.#leftMs(record) !== Infinity)) {
        this.#begin(() => this.#doDuties(signal));
      }
      return Math.min(...records.map((record) => this.#leftMs(record)));
    } catch (error) {
      log.warn({ domain: this.#domain }, `Cannot look after its leases: ${errorMessage(error)}`);
      return Infinity;
    }
  }

  async idle(): Promise<void> {
    await this.#work;
  }

  #begin(work: () => Promise<void>): void {
    this.#work = work().finally(() => (this.#work = undefined));
  }

  async #doDuties(signal: AbortSignal): Promise<void> {
    for (const duty of this.#duties) {
      try {
        await duty(this.#context, this.#domain, signal);
      } catch (error) {
        if (!signal.aborted) this.#warn(error);
      }
    }
  }

  async #putInOrder(): Promise<void> {
    const { clock } = this.#context;
    try {
      await withDomain(this.#context, this.#domain, "the end of a lease", () => Promise.resolve());
      this.#retryMs = 0;
      this.#lastFailure = "";
    } catch (error) {
      // Whoever holds the domain now puts it in order first, or is waited for.
      if (isFleeceError(error, "DOMAIN_BUSY")) return;
      this.#retryMs = Math.min(RETRY_MS.most, this.#retryMs === 0 ? RETRY_MS.first : 2 * this.#retryMs);
      this.#notBeforeMs = clock.monotonicMs() + this.#retryMs;
      this.#warn(error);
    }
  }

  /** Once, for what is tried again and again. */
  #warn(error: unknown): void {
    const message = errorMessage(error);
    if (message !== this.#lastFailure) this.#context.log.warn({ domain: this.#domain }, message);
    this.#lastFailure = message;
  }

  /** Of an open snapshot whose lease has not ended. */
  #leftMs({ subject }: OperationRecord): number {
    if (subject.kind !== "block-snapshot" || subject.phase !== "open") return Infinity;
    const { clock } = this.#context;
    const leftMs = leaseLeftMs(subject, { nowMs: clock.now(), host: clock.hostTime() });
    return leftMs > 0 ? leftMs : Infinity;
  }
}

/** Given that it is over. */
function isExpired({ subject }: OperationRecord): boolean {
  return subject.kind === "block-snapshot" && subject.phase === "open";
}
