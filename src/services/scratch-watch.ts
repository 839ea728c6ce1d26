import type { SnapshotPlan } from "../model/snapshot-plan.js";
import type { BlockDriver } from "../ports/block-driver.js";
import { FleeceError } from "../shared/errors.js";
import { formatBytes } from "../shared/units.js";
import type { ServiceContext } from "./context.js";
import type { DomainSession } from "./domain-session.js";
import type { Moment } from "./moment.js";
import { checkMomentAnew } from "./moment.js";
import { withWatch } from "./watch.js";

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
 * Runs `action`, and looks once a second whether its snapshot is intact and keeps to its scratch space: a lost snapshot is worth
 * nothing, so what reads it should know within seconds. If not, the action is aborted with SNAPSHOT_BROKEN, which is then thrown: the caller's unwinding gives the guest its disks back. Resolves
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
  const { session, moment, signal, onUse, onLook } = watched;
  let peakBytes = 0;
  const measure = async (): Promise<ScratchUse> => {
    const use = await scratchUse(context, moment.plan);
    peakBytes = Math.max(peakBytes, use.usedBytes);
    return use;
  };
  const look = async (stop: AbortSignal): Promise<void> => {
    const use = await measure();
    onUse?.(use);
    const excess = await scratchExcess(context, use);
    if (excess !== undefined) throw excess;
    await checkMomentAnew(session, moment, stop);
    await onLook?.(await session.driver(stop), stop);
  };
  // Whether the snapshot was intact is asked once more at the end; until then trouble with a look does not mean that it was not.
  const watch = { look, endedBy: "SNAPSHOT_BROKEN", facts: { snapshot: moment.plan.id }, signal } as const;
  await withWatch(context, watch, async (intact) => {
    await action(intact);
    intact.throwIfAborted();
  });
  await measure();
  return peakBytes;
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
