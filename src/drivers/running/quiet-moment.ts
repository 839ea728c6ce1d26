import type { QuiesceOutcome, QuiescePlan } from "../../model/quiesce.js";
import type { UndoEntry } from "../../model/undo.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { Clock } from "../../ports/clock.js";
import { isQmpError, type QmpSession } from "../../qmp/index.js";
import { FleeceError } from "../../shared/errors.js";
import { GuestFreezer } from "../guest-agent/guest-freezer.js";
import { HoldGuard } from "./hold-guard.js";

export interface QuietMomentParts {
  readonly qmp: QmpSession;
  readonly clock: Clock;
  readonly domain: string;
  readonly qmpSocketPath: string;
  /** Stop the guest's CPUs, so that what is done in several steps is one moment. */
  readonly hold: boolean;
  /** Freeze the guest's file systems. */
  readonly quiesce?: (QuiescePlan & { readonly agentSocketPath: string }) | undefined;
  readonly undo: UndoLog;
  readonly signal?: AbortSignal | undefined;
}

export interface QuietMoment<T> {
  readonly value: T;
  /** 0 if the guest was not held. */
  readonly heldMs: number;
  readonly quiesce?: QuiesceOutcome;
}

/**
 * Runs `action` with the guest frozen and held as asked; on every path the guest is thawed and runs afterwards. Freezing
 * comes first and thawing last, for the agent needs a guest that runs. All that takes time (the agent's greeting,
 * the journal, the guard's start) comes before the freeze. Fails with QUIESCE_FAILED if the guest cannot be frozen and the
 * plan says `stop`, or if nobody knows whether it is thawed.
 */
export async function quietMoment<T>(
  parts: QuietMomentParts,
  action: () => Promise<T>,
): Promise<QuietMoment<T>> {
  const { qmp, quiesce, signal, undo } = parts;
  const { status } = await qmp.execute("query-status");
  const isRunning = status === "running";
  const hold = parts.hold && isRunning;
  await using freezer =
    quiesce === undefined
      ? undefined
      : new GuestFreezer({ socketPath: quiesce.agentSocketPath, clock: parts.clock });
  const obstacle = isRunning ? await freezer?.prepare(signal) : `the domain does not run (${status})`;
  const isReady = freezer !== undefined && obstacle === undefined;
  const failed =
    freezer === undefined || obstacle === undefined ? {} : { quiesce: notFrozen(parts, obstacle) };
  if (!hold && !isReady) return { value: await action(), heldMs: 0, ...failed };

  const entries: UndoEntry[] = [];
  if (isReady) entries.push({ kind: "vm-frozen", socketPath: freezer.socketPath });
  if (hold) entries.push({ kind: "vm-held" });
  await undo.register(...entries);
  await using guard = await HoldGuard.start({
    qmpSocketPath: parts.qmpSocketPath,
    agentSocketPath: quiesce?.agentSocketPath,
    signal,
  });
  const act = () => (hold ? held(parts, guard, action) : unheld(action));
  const moment = isReady ? await frozen(parts, freezer, guard, act) : { ...(await act()), ...failed };
  await undo.settle(...entries);
  return moment;
}

async function unheld<T>(action: () => Promise<T>): Promise<QuietMoment<T>> {
  return { value: await action(), heldMs: 0 };
}

/** The guest waits as well. Each takes milliseconds; `stop` also waits for the guest's requests to its disks. */
const HELD_COMMAND_MS = 10_000;

async function held<T>(
  { qmp, clock }: QuietMomentParts,
  guard: HoldGuard,
  action: () => Promise<T>,
): Promise<QuietMoment<T>> {
  const start = clock.monotonicMs();
  let value: T;
  guard.begin("held");
  try {
    value = await qmp.withDeadline(HELD_COMMAND_MS, async () => {
      await qmp.execute("stop");
      const result = await action();
      await qmp.execute("cont");
      return result;
    });
  } catch (error) {
    if (isQmpError(error, "QMP_TIMEOUT")) {
      // The guard is served only once we are gone, and this session would let us wait for `cont` just as long.
      await qmp.close();
    } else {
      await qmp.execute("cont");
      guard.end("held");
    }
    throw error;
  }
  guard.end("held");
  return { value, heldMs: Math.round(clock.monotonicMs() - start) };
}

async function frozen<T>(
  parts: QuietMomentParts,
  freezer: GuestFreezer,
  guard: HoldGuard,
  act: () => Promise<QuietMoment<T>>,
): Promise<QuietMoment<T>> {
  const { clock, quiesce, signal } = parts;
  const start = clock.monotonicMs();
  guard.begin("frozen");
  const obstacle = await freezer.freeze(quiesce?.timeoutMs ?? 0, signal);
  if (obstacle !== undefined) {
    guard.end("frozen");
    const failed = notFrozen(parts, obstacle);
    return { ...(await act()), quiesce: failed };
  }
  let moment: QuietMoment<T>;
  try {
    moment = await act();
  } catch (error) {
    // The journal and the guard know of the freeze if the thaw fails, too.
    await freezer.thaw().then(
      () => guard.end("frozen"),
      () => undefined,
    );
    throw error;
  }
  const count = await freezer.thaw();
  guard.end("frozen");
  const frozenMs = Math.round(clock.monotonicMs() - start);
  // A guest that was restarted, or thawed by somebody else, has written meanwhile.
  if (count < 1) {
    return { ...moment, quiesce: notFrozen(parts, "its file systems were not frozen any more afterwards") };
  }
  return { ...moment, quiesce: { frozen: true, frozenMs } };
}

function notFrozen({ quiesce, domain }: QuietMomentParts, reason: string): QuiesceOutcome {
  if (quiesce?.onFailure !== "stop") return { frozen: false, reason };
  throw new FleeceError(
    "QUIESCE_FAILED",
    `The file systems of domain ${domain} could not be frozen: ${reason}`,
    {
      facts: { domain },
    },
  );
}
