import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { type LastBackups, lastBackups } from "../model/last-backups.js";
import type { RunState } from "../model/run-record.js";
import type { Meter } from "../ports/meter.js";
import type { ServiceContext } from "../services/context.js";
import { domainUsage } from "../services/usage.js";
import type { ErrorCode } from "../shared/errors.js";
import type { CallName } from "./call-types.js";

/** What a server reports of a call: its beginning, and then its end by what is returned; `failure` is left out for success. */
export interface CallMeter {
  callBegins(method: CallName): (failure?: ErrorCode) => void;
}

/** Backups come and go without us, too: commands with --embedded work on the same repositories. */
const REREAD_MS = 5 * 60_000;

const MOMENT_BUCKETS_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** A file system that hangs must not take the other metrics along. */
const LISTING_WAIT_MS = 5000;

interface Remembered {
  readonly readAtMs: number;
  /** By repository; one that could not be read is missing. */
  readonly last: ReadonlyMap<string, LastBackups>;
}

/**
 * The metrics of one agent, in the form of Prometheus: config/README.md describes each. Labels come from the configuration,
 * from backups' disks and from our own tables, never from a request. prom-client is seen only here.
 */
export class AgentMetrics implements Meter, CallMeter {
  readonly #registry = new Registry();
  readonly #backups = new Map<string, Remembered>();
  #context: ServiceContext | undefined;
  #listing: Promise<void> | undefined;
  #scrape: Promise<string> | undefined;

  readonly #lastBackup = this.#gauge(
    "fleece_last_backup_timestamp_seconds",
    "Frozen moment of the newest restorable backup; 0 without one",
    ["domain", "repository"],
  );
  readonly #lastDiskBackup = this.#gauge(
    "fleece_disk_last_backup_timestamp_seconds",
    "Frozen moment of the newest restorable backup that holds the disk",
    ["domain", "repository", "disk"],
  );
  readonly #repositoryUp = this.#gauge(
    "fleece_repository_up",
    "1 if the repository's backups of the domain could be listed, else 0",
    ["domain", "repository"],
  );
  readonly #readBytes = this.#counter(
    "fleece_backup_read_bytes_total",
    "Bytes read from disks for backups, failed ones included",
    ["domain"],
  );
  readonly #storedBytes = this.#counter(
    "fleece_backup_stored_bytes_total",
    "Bytes stored as data for backups, failed ones included",
    ["domain"],
  );
  readonly #held = this.#histogram("fleece_guest_held_seconds", "How long a guest was stopped for a moment");
  readonly #frozen = this.#histogram(
    "fleece_guest_frozen_seconds",
    "How long a guest's file systems were frozen for a moment",
  );
  readonly #scratch = this.#gauge("fleece_scratch_bytes", "Scratch space in use", ["domain"]);
  readonly #snapshots = this.#gauge("fleece_block_snapshots_open", "Open block snapshots", ["domain"]);
  readonly #lease = this.#gauge(
    "fleece_block_snapshot_lease_end_timestamp_seconds",
    "When the first lease of an open block snapshot ends",
    ["domain"],
  );
  readonly #exports = this.#gauge("fleece_exports", "Disks of block snapshots offered over NBD", ["domain"]);
  readonly #jobRuns = this.#counter("fleece_job_runs_total", "Runs of jobs that have ended, by state", [
    "job",
    "state",
  ]);
  readonly #jobSuccess = this.#gauge(
    "fleece_job_last_success_timestamp_seconds",
    "When the newest run of the job that gave each domain its backup ended; 0 without one",
    ["job"],
  );
  readonly #verifications = this.#counter(
    "fleece_backup_verifications_total",
    "Backups that were read and compared with their digests, by outcome",
    ["domain", "outcome"],
  );
  readonly #boots = this.#counter(
    "fleece_backup_boot_tests_total",
    "Backups on whose disks a machine was booted, by outcome",
    ["domain", "outcome"],
  );
  readonly #missed = this.#counter(
    "fleece_changes_missed_total",
    "Disks of which a sample found a change that bitmaps had not recorded",
    ["domain"],
  );
  readonly #calls = this.#counter("fleece_calls_total", "Calls that have ended, by outcome", [
    "method",
    "outcome",
  ]);
  readonly #running = this.#gauge("fleece_calls_running", "Calls under way", ["method"]);
  readonly #failures = this.#counter("fleece_call_failures_total", "Calls that failed, by error code", [
    "code",
  ]);
  readonly #reloads = this.#counter(
    "fleece_config_reloads_total",
    "Reloads of the configuration, by outcome",
    ["outcome"],
  );

  constructor(version: string) {
    this.#gauge("fleece_build_info", "Always 1; the labels tell the version", ["version", "node"]).set(
      { version, node: process.versions.node },
      1,
    );
    // The process itself: memory, processor time, open files, Node's event loop.
    collectDefaultMetrics({ register: this.#registry });
  }

  /** From now on the metrics are those of this context's domains and repositories. */
  use(context: ServiceContext): void {
    this.#context = context;
    this.#backups.clear();
  }

  backupBytes(domain: string, bytes: { readonly readBytes: number; readonly storedBytes: number }): void {
    this.#readBytes.inc({ domain }, bytes.readBytes);
    this.#storedBytes.inc({ domain }, bytes.storedBytes);
  }

  moment(domain: string, { heldMs, frozenMs }: { readonly heldMs: number; readonly frozenMs: number }): void {
    if (heldMs > 0) this.#held.observe({ domain }, heldMs / 1000);
    if (frozenMs > 0) this.#frozen.observe({ domain }, frozenMs / 1000);
  }

  backupsChanged(domain: string): void {
    this.#backups.delete(domain);
  }

  jobRunEnded(job: string, state: RunState): void {
    this.#jobRuns.inc({ job, state });
  }

  changeMissed(domain: string): void {
    this.#missed.inc({ domain });
  }

  backupVerified(domain: string, outcome: "sound" | "damaged"): void {
    this.#verifications.inc({ domain, outcome });
  }

  backupBooted(domain: string, outcome: "booted" | "failed"): void {
    this.#boots.inc({ domain, outcome });
  }

  callBegins(method: CallName): (failure?: ErrorCode) => void {
    this.#running.inc({ method });
    return (failure) => {
      this.#running.dec({ method });
      const outcome = failure === undefined ? "done" : failure === "INTERRUPTED" ? "cancelled" : "failed";
      this.#calls.inc({ method, outcome });
      if (failure !== undefined) this.#failures.inc({ code: failure });
    };
  }

  reloaded(outcome: "done" | "failed"): void {
    this.#reloads.inc({ outcome });
  }

  /** Name, kind and labels of each metric but those of the process itself. */
  async describe(): Promise<readonly { readonly name: string; readonly type: string }[]> {
    const metrics = await this.#registry.getMetricsAsJSON();
    return metrics
      .filter(({ name }) => name.startsWith("fleece_"))
      .map(({ name, type }) => ({ name, type: String(type) }));
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Those who ask at the same time get the same answer: one slow repository is not asked by each of them. */
  text(): Promise<string> {
    this.#scrape ??= this.#collect().finally(() => (this.#scrape = undefined));
    return this.#scrape;
  }

  async #collect(): Promise<string> {
    const context = this.#context;
    if (context !== undefined) {
      await this.#collectUsage(context);
      await this.#collectJobs(context);
      this.#listing ??= this.#collectBackups(context).finally(() => (this.#listing = undefined));
      const waited = new AbortController();
      const enough = context.clock.sleep(LISTING_WAIT_MS, waited.signal).catch(() => undefined);
      await Promise.race([this.#listing, enough]).finally(() => waited.abort());
    }
    return this.#registry.metrics();
  }

  async #collectUsage(context: ServiceContext): Promise<void> {
    const usages = await domainUsage(context);
    for (const gauge of [this.#scratch, this.#snapshots, this.#lease, this.#exports]) gauge.reset();
    for (const { domain, scratchBytes, openSnapshots, leaseEndMs, exports } of usages) {
      this.#scratch.set({ domain }, scratchBytes);
      this.#snapshots.set({ domain }, openSnapshots);
      this.#exports.set({ domain }, exports);
      if (leaseEndMs !== undefined) this.#lease.set({ domain }, leaseEndMs / 1000);
    }
  }

  async #collectJobs({ jobs: { list, runner } }: ServiceContext): Promise<void> {
    this.#jobSuccess.reset();
    for (const { name } of list) {
      this.#jobSuccess.set({ job: name }, ((await runner.log.lastSuccessMs(name)) ?? 0) / 1000);
    }
  }

  async #collectBackups(context: ServiceContext): Promise<void> {
    const found: (readonly [string, Remembered])[] = [];
    for (const domain of context.domains) found.push([domain, await this.#lastBackups(context, domain)]);
    for (const gauge of [this.#lastBackup, this.#lastDiskBackup, this.#repositoryUp]) gauge.reset();
    for (const [domain, { last }] of found) {
      for (const repository of context.repositories.keys()) {
        const backups = last.get(repository);
        this.#repositoryUp.set({ domain, repository }, backups === undefined ? 0 : 1);
        if (backups === undefined) continue;
        this.#lastBackup.set({ domain, repository }, (backups.timeMs ?? 0) / 1000);
        for (const [disk, timeMs] of backups.disks) {
          this.#lastDiskBackup.set({ domain, repository, disk }, timeMs / 1000);
        }
      }
    }
  }

  /** Read anew after a change, and from time to time. */
  async #lastBackups({ repositories, clock, log }: ServiceContext, domain: string): Promise<Remembered> {
    const known = this.#backups.get(domain);
    if (known !== undefined && clock.monotonicMs() - known.readAtMs < REREAD_MS) return known;
    const last = new Map<string, LastBackups>();
    const fresh = { readAtMs: clock.monotonicMs(), last };
    // Before it is read: what changes meanwhile takes it away again.
    this.#backups.set(domain, fresh);
    for (const [name, repository] of repositories) {
      try {
        last.set(name, lastBackups(await repository.list(domain)));
      } catch (error) {
        log.warn({ domain, repository: name, err: error }, "Cannot list backups for the metrics");
        this.#backups.delete(domain);
      }
    }
    return fresh;
  }

  #gauge<Label extends string>(name: string, help: string, labelNames: readonly Label[]): Gauge<Label> {
    return new Gauge({ name, help, labelNames, registers: [this.#registry] });
  }

  #counter<Label extends string>(name: string, help: string, labelNames: readonly Label[]): Counter<Label> {
    return new Counter({ name, help, labelNames, registers: [this.#registry] });
  }

  #histogram(name: string, help: string): Histogram<"domain"> {
    const registers = [this.#registry];
    return new Histogram({ name, help, labelNames: ["domain"], buckets: MOMENT_BUCKETS_SECONDS, registers });
  }
}
