import type { SnapshotPlan } from "../model/snapshot-plan.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { formatBytes } from "../shared/units.js";
import type { ServiceContext } from "./context.js";
import type { DomainSession } from "./domain-session.js";
import type { Moment } from "./moment.js";
import { checkMomentAnew } from "./moment.js";

/** A lost snapshot is worth nothing: what reads it should know within seconds, not at its end. */
const INTERVAL_MS = 1000;

export interface ScratchUse {
  readonly usedBytes: number;
  /** Unset if there is none. */
  readonly limitBytes?: number;
}

export interface WatchedSnapshot {
  /** Used by nothing else meanwhile. */
  readonly session: DomainSession;
  readonly moment: Moment;
  readonly signal?: AbortSignal | undefined;
  readonly onUse?: (use: ScratchUse) => void;
  /** Called with each look that found the snapshot in order; what it throws is logged. */
  readonly onLook?: (driver: BlockDriver, signal: AbortSignal) => Promise<void>;
}

/** What the scratch images of a snapshot take now. Those of an inactive domain do not exist, and take nothing. */
export async function scratchUse({ scratch }: ServiceContext, plan: SnapshotPlan): Promise<ScratchUse> {
  const usedBytes = await scratch.usedBytes(plan.disks.map(({ scratchPath }) => scratchPath));
  const { scratchLimitBytes } = plan;
  return { usedBytes, ...(scratchLimitBytes === undefined ? {} : { limitBytes: scratchLimitBytes }) };
}

/**
 * Runs `action`, and looks once a second whether its snapshot is intact and keeps to its scratch space. If not, the action
 * is aborted with SNAPSHOT_BROKEN, which is then thrown: the caller's unwinding gives the guest its disks back. Resolves
 * with the most that the scratch images took, in bytes. Nothing of the watch goes on after that.
 */
export async function withScratchWatch(
  context: ServiceContext,
  watched: WatchedSnapshot,
  action: (signal: AbortSignal | undefined) => Promise<void>,
): Promise<number> {
  if (watched.moment.mode !== "running") {
    await action(watched.signal);
    return 0;
  }
  const watch = new ScratchWatch(context, watched);
  try {
    await action(watch.signal);
  } finally {
    await watch.stop();
  }
  watch.signal.throwIfAborted();
  await watch.measure();
  return watch.peakBytes;
}

class ScratchWatch {
  /** Fires with the reason when the snapshot is broken, and with the caller's signal. */
  readonly signal: AbortSignal;
  peakBytes = 0;
  readonly #context: ServiceContext;
  readonly #watched: WatchedSnapshot;
  readonly #broken = new AbortController();
  readonly #enough = new AbortController();
  readonly #ended: Promise<void>;

  constructor(context: ServiceContext, watched: WatchedSnapshot) {
    const { signal } = watched;
    this.#context = context;
    this.#watched = watched;
    this.signal = signal === undefined ? this.#broken.signal : AbortSignal.any([signal, this.#broken.signal]);
    this.#ended = this.#run(AbortSignal.any([this.signal, this.#enough.signal]));
  }

  /** Resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    this.#enough.abort();
    await this.#ended;
  }

  async measure(): Promise<ScratchUse> {
    const use = await scratchUse(this.#context, this.#watched.moment.plan);
    this.peakBytes = Math.max(this.peakBytes, use.usedBytes);
    return use;
  }

  async #run(stop: AbortSignal): Promise<void> {
    const { clock, log } = this.#context;
    const isOver = (): boolean => stop.aborted;
    while (!isOver()) {
      try {
        await clock.sleep(INTERVAL_MS, stop);
        await this.#look(stop);
      } catch (error) {
        if (isOver()) return;
        if (isFleeceError(error, "SNAPSHOT_BROKEN")) this.#broken.abort(error);
        // Whether the snapshot was intact is asked once more at the end; until then nobody knows that it was not.
        else
          log.debug(
            { snapshot: this.#watched.moment.plan.id },
            `Cannot look after it: ${errorMessage(error)}`,
          );
      }
    }
  }

  async #look(stop: AbortSignal): Promise<void> {
    const { session, moment, onUse, onLook } = this.#watched;
    const use = await this.measure();
    onUse?.(use);
    const excess = await scratchExcess(this.#context, use);
    if (excess !== undefined) throw excess;
    await checkMomentAnew(session, moment, stop);
    await onLook?.(await session.driver(stop), stop);
  }
}

/** Why a snapshot that takes so much must end, as SNAPSHOT_BROKEN; undefined if it keeps to its scratch space. */
export async function scratchExcess(
  { scratch }: ServiceContext,
  { usedBytes, limitBytes }: ScratchUse,
): Promise<FleeceError | undefined> {
  const givenUp = (why: string): FleeceError =>
    new FleeceError("SNAPSHOT_BROKEN", `The block snapshot was given up: ${why}`, { facts: { usedBytes } });
  if (limitBytes !== undefined && usedBytes > limitBytes) {
    return givenUp(
      `its scratch space of ${formatBytes(usedBytes)} is over the limit of ${formatBytes(limitBytes)}`,
    );
  }
  if (scratch.reserveBytes === 0) return undefined;
  const freeBytes = await scratch.freeBytes();
  if (freeBytes >= scratch.reserveBytes) return undefined;
  return givenUp(
    `the scratch directory has ${formatBytes(freeBytes)} free, which is less than the reserve of ${formatBytes(scratch.reserveBytes)}`,
  );
}
