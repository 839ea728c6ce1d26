import { createHash } from "node:crypto";
import path from "node:path";
import type { DomainConfig } from "../model/config.js";
import type { BlockDriver, DriverFactory } from "../ports/block-driver.js";
import type { Clock } from "../ports/clock.js";
import type { DomainSnapshotStore } from "../ports/domain-snapshot-store.js";
import type { Logger } from "../ports/logger.js";
import { connectQmp, isQmpError } from "../qmp/index.js";
import { FleeceError } from "../shared/errors.js";
import { InactiveDriver } from "./inactive/inactive-driver.js";
import { mapQmpError } from "./qmp-errors.js";
import { RunningDriver } from "./running/running-driver.js";
import { detachedDirectoryPath } from "./runtime-directory.js";

/** Finds a domain by its QMP socket; nobody listening there means inactive, anything unclear means unreachable. */
export class QemuDriverFactory implements DriverFactory {
  readonly #domains: ReadonlyMap<string, DomainConfig>;
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
    this.#domains = new Map(options.domains.map((domain) => [domain.name, domain]));
    this.#clock = options.clock;
    this.#runtimeRoot = options.runtimeRoot;
  }

  async open(name: string, signal?: AbortSignal): Promise<BlockDriver> {
    const config = this.#domains.get(name);
    if (config === undefined) {
      throw new FleeceError("DOMAIN_NOT_FOUND", `The configuration has no domain ${name}`);
    }
    const { qmp: socketPath } = config;
    if (socketPath === undefined) return this.#inactive(config);
    try {
      const qmp = await connectQmp({ socketPath, ...(signal === undefined ? {} : { signal }) });
      const nbdSocketPath = path.join(this.#socketDirectory(socketPath), "nbd.sock");
      const runtimeRoot = this.#runtimeRoot;
      const sockets = { qmpSocketPath: socketPath, nbdSocketPath };
      const domainSnapshots = this.#domainSnapshots;
      const settings = { config, domainSnapshots, runtimeRoot, cbwTimeoutMs: this.#cbwTimeoutMs };
      return new RunningDriver({ qmp, clock: this.#clock, log: this.#log, ...sockets, ...settings });
    } catch (error) {
      if (isQmpError(error, "QMP_SOCKET_ABSENT", "QMP_REFUSED")) return this.#inactive(config, error);
      throw mapQmpError(error, `Domain ${name}`);
    }
  }

  #inactive(config: DomainConfig, cause?: Error): BlockDriver {
    const { disks } = config;
    if (disks === undefined) {
      throw new FleeceError(
        "DOMAIN_UNREACHABLE",
        `Domain ${config.name} does not run, and the configuration lists no disks to reach it by: ${cause?.message ?? "no QMP socket"}`,
        { cause, facts: { domain: config.name } },
      );
    }
    const domainSnapshots = this.#domainSnapshots;
    const settings = { config, disks, domainSnapshots, runtimeRoot: this.#runtimeRoot };
    return new InactiveDriver({ ...settings, clock: this.#clock });
  }

  /** One NBD server per QEMU process, so one directory per monitor, found again by whoever comes next. */
  #socketDirectory(qmpSocketPath: string): string {
    const digest = createHash("sha256").update(qmpSocketPath).digest("hex").slice(0, 16);
    return detachedDirectoryPath(`vm-${digest}`, this.#runtimeRoot);
  }
}
