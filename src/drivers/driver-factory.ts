import { createHash } from "node:crypto";
import path from "node:path";
import type { DomainConfig } from "../model/config.js";
import type { BlockDriver, DriverFactory } from "../ports/block-driver.js";
import type { Clock } from "../ports/clock.js";
import type { DomainSnapshotStore } from "../ports/domain-snapshot-store.js";
import type { Logger } from "../ports/logger.js";
import { InactiveDriver } from "./inactive/inactive-driver.js";
import { configOf, disksOf, reachDomain } from "./reach-domain.js";
import { RunningDriver } from "./running/running-driver.js";
import { detachedDirectoryPath } from "./runtime-directory.js";

/** Finds a domain as `reachDomain` does. */
export class QemuDriverFactory implements DriverFactory {
  readonly #domains: readonly DomainConfig[];
  readonly #domainSnapshots: Pick<DomainSnapshotStore, "read">;
  readonly #clock: Clock;
  readonly #runtimeRoot: string;
  readonly #log: Logger;
  readonly #cbwTimeoutMs: number;

  constructor(options: {
    domains: readonly DomainConfig[];
    /** They know in which file each disk is now. */
    domainSnapshots: Pick<DomainSnapshotStore, "read">;
    clock: Clock;
    runtimeRoot: string;
    log: Logger;
    cbwTimeoutMs: number;
  }) {
    this.#log = options.log;
    this.#domainSnapshots = options.domainSnapshots;
    this.#cbwTimeoutMs = options.cbwTimeoutMs;
    this.#domains = options.domains;
    this.#clock = options.clock;
    this.#runtimeRoot = options.runtimeRoot;
  }

  async open(name: string, signal?: AbortSignal): Promise<BlockDriver> {
    const config = configOf(this.#domains, name);
    const reached = await reachDomain(config, signal);
    const domainSnapshots = this.#domainSnapshots;
    const common = { config, domainSnapshots, runtimeRoot: this.#runtimeRoot, clock: this.#clock };
    if (!reached.running) return new InactiveDriver({ ...common, disks: disksOf(config, reached) });
    const { qmp, qmpSocketPath } = reached;
    const nbdSocketPath = path.join(this.#socketDirectory(qmpSocketPath), "nbd.sock");
    const settings = { log: this.#log, cbwTimeoutMs: this.#cbwTimeoutMs };
    return new RunningDriver({ ...common, ...settings, qmp, qmpSocketPath, nbdSocketPath });
  }

  /** One NBD server per QEMU process, so one directory per monitor, found again by whoever comes next. */
  #socketDirectory(qmpSocketPath: string): string {
    const digest = createHash("sha256").update(qmpSocketPath).digest("hex").slice(0, 16);
    return detachedDirectoryPath(`vm-${digest}`, this.#runtimeRoot);
  }
}
