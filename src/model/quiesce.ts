import type { Consistency } from "./backup.js";

/** How a domain's file systems are frozen through its guest agent: from the configuration. */
export interface QuiesceSettings {
  /** Freeze them unless a command says otherwise. */
  readonly byDefault: boolean;
  /** For the freeze itself: the guest writes out what it has in memory first. */
  readonly timeoutMs: number;
  /** What becomes of the snapshot when they cannot be frozen. */
  readonly onFailure: "continue" | "stop";
}

/** The part of the settings that a snapshot is planned with. */
export type QuiescePlan = Omit<QuiesceSettings, "byDefault">;

/** What came of a freeze that was asked for. */
export type QuiesceOutcome =
  /** From the freeze's start to the proof that all is thawed. */
  | { readonly frozen: true; readonly frozenMs: number }
  /** The guest writes as ever, and the moment is what a power cut would have left. */
  | { readonly frozen: false; readonly reason: string };

export function consistencyOf(
  mode: "running" | "paused" | "inactive",
  outcome: QuiesceOutcome | undefined,
): Consistency {
  if (mode === "inactive") return "clean";
  return outcome?.frozen === true ? "filesystem" : "crash";
}

/** As manifests and messages have it. */
export function quiesceFacts(outcome: QuiesceOutcome | undefined): {
  readonly frozenMs?: number;
  readonly quiesceFailure?: string;
} {
  if (outcome === undefined) return {};
  return outcome.frozen ? { frozenMs: outcome.frozenMs } : { quiesceFailure: outcome.reason };
}
