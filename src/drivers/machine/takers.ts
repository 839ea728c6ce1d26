import type { DomainConfig } from "../../model/config.js";
import type { Clock } from "../../ports/clock.js";
import type { SnapshotTaker, SnapshotTakers } from "../../ports/snapshot-taker.js";
import { configOf, disksOf, reachDomain } from "../reach-domain.js";
import { InactiveTaker } from "./inactive-taker.js";
import { RunningTaker } from "./running-taker.js";

/** A live guest that changes its memory faster than it is saved is stopped after this time. */
const CONVERGE_WITHIN_MS = 60_000;

export interface QemuTakersOptions {
  readonly domains: readonly DomainConfig[];
  readonly clock: Clock;
  readonly runtimeRoot: string;
  /** Default: 60,000. */
  readonly convergeWithinMs?: number;
}

export class QemuTakers implements SnapshotTakers {
  readonly #options: QemuTakersOptions;

  constructor(options: QemuTakersOptions) {
    this.#options = options;
  }

  async open(domain: string, signal?: AbortSignal): Promise<SnapshotTaker> {
    const { domains, clock, runtimeRoot, convergeWithinMs = CONVERGE_WITHIN_MS } = this.#options;
    const config = configOf(domains, domain);
    const reached = await reachDomain(config, signal);
    if (!reached.running) return new InactiveTaker(disksOf(config, reached), clock);
    const { qmp, qmpSocketPath } = reached;
    return new RunningTaker({ qmp, config, clock, qmpSocketPath, runtimeRoot, convergeWithinMs });
  }
}
