import type { Client } from "../model/access.js";
import type { FrontAddress, FrontOffer } from "../model/front-offer.js";
import { formatFrontAddress, frontExportName, frontKey, parseFrontClients } from "../model/front-offer.js";
import { formatHostPort } from "../model/host-port.js";
import { leaseLeftMs } from "../model/lease.js";
import type { Clock } from "../ports/clock.js";
import type { ExportFront, ExportGrant, FrontOpener } from "../ports/export-front.js";
import type { Logger } from "../ports/logger.js";
import type { StateStore } from "../ports/state-store.js";
import { OneByOne } from "../shared/async.js";
import { errorMessage, FleeceError, isFleeceError } from "../shared/errors.js";
import { isOver } from "./recovery.js";

export interface ExportFrontsOptions {
  readonly store: StateStore;
  readonly clock: Clock;
  readonly log: Logger;
  readonly opener: FrontOpener;
  /** Of every grant: see `ExportGrant`. */
  readonly idleMs: number;
  readonly bytesPerSecond: number | undefined;
}

/** Embedded commands change the journal, too, and what could not be done is tried again. */
const LOOK_MS = 1000;

interface WantedGrant {
  readonly address: FrontAddress;
  readonly grant: ExportGrant & { readonly untilMs: number };
}

interface OpenFront {
  readonly front: ExportFront;
  /** By the name of the export. */
  readonly grants: Map<string, { readonly domain: string; readonly terms: string; untilMs: number }>;
  /** How many operations are about to need it. */
  holds: number;
}

/**
 * The fronts of the agent. Who may read what is in the journal alone; this makes the fronts follow it. So it is the same
 * after a restart of the agent, and whichever way an export ends. A front listens as long as it has grants.
 */
export class ExportFronts implements AsyncDisposable {
  readonly #options: ExportFrontsOptions;
  readonly #fronts = new Map<string, OpenFront>();
  readonly #steps = new OneByOne();
  readonly #over = new AbortController();
  /** By domain: why it is not as the journal says. */
  readonly #troubles = new Map<string, string>();
  #watching: Promise<void> | undefined;

  constructor(options: ExportFrontsOptions) {
    this.#options = options;
  }

  /** Grants again what was granted in these domains when the agent ended, and keeps looking after it. */
  async use({ domains }: { readonly domains: readonly string[] }): Promise<void> {
    for (const domain of domains) await this.follow(domain);
    this.#watching ??= this.#watch();
  }

  /**
   * Where and to whom an export is to be offered. A caller who names no clients where they show certificates means the
   * certificate that it shows itself. Fails with UNSUPPORTED without a TCP address in the configuration, and
   * with INVALID_ARGUMENT for another address, or clients that cannot be told apart there.
   */
  offer(address: FrontAddress, clients: readonly string[], caller: Client): FrontOffer {
    const { tcp } = this.#options.opener;
    const wanted = formatFrontAddress(address);
    if (!("socketPath" in address)) {
      if (tcp === undefined) {
        const message = `Cannot offer exports at ${wanted}: the configuration has no nbd.address at which the agent listens`;
        throw new FleeceError("UNSUPPORTED", message);
      }
      if (frontKey(address) !== frontKey(tcp.address)) {
        const expected = `${formatFrontAddress(tcp.address)}, which is nbd.address of the configuration`;
        throw new FleeceError("INVALID_ARGUMENT", `Expected the address ${expected}, got ${wanted}`);
      }
      if (!tcp.plaintext) {
        const readers = clients.length === 0 ? [caller.fingerprint ?? []].flat() : clients;
        if (readers.length > 0) return { address: tcp.address, clients: parseFrontClients(readers) };
        const message = `Expected at least one client certificate that may read at ${wanted}, got none, and the caller shows none`;
        throw new FleeceError("INVALID_ARGUMENT", message);
      }
    }
    if (clients.length === 0) return { address, clients: "any" };
    const message = `Expected no clients for ${wanted}, where there is no TLS and nobody shows a certificate`;
    throw new FleeceError("INVALID_ARGUMENT", message);
  }

  /** Makes sure that the front listens, until the hold is disposed of. Fails as `FrontOpener.open` does. */
  hold(address: FrontAddress): Promise<Disposable> {
    return this.#steps.run(async () => {
      const open = await this.#open(address);
      open.holds += 1;
      return { [Symbol.dispose]: () => (open.holds -= 1) };
    });
  }

  /** Makes the grants of a domain those of its journal. Never fails: what could not be done is logged, and tried again. */
  async follow(domain: string): Promise<void> {
    try {
      await this.#steps.run(() => this.#follow(domain));
      this.#troubles.delete(domain);
    } catch (error) {
      const message = errorMessage(error);
      if (this.#troubles.get(domain) !== message) this.#options.log.warn({ domain }, message);
      this.#troubles.set(domain, message);
    }
  }

  /** Ends all connections and stops listening. The journal keeps what was granted. */
  async close(): Promise<void> {
    this.#over.abort();
    await this.#watching;
    await this.#steps.run(async () => {
      for (const { front } of this.#fronts.values()) await front.close();
      this.#fronts.clear();
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #watch(): Promise<void> {
    const { signal } = this.#over;
    const { clock } = this.#options;
    for (;;) {
      await clock.sleep(LOOK_MS, signal).catch(() => undefined);
      if (signal.aborted) return;
      const granted = new Set(
        [...this.#fronts.values()].flatMap(({ grants }) => [...grants.values()].map(({ domain }) => domain)),
      );
      for (const domain of new Set([...granted, ...this.#troubles.keys()])) await this.follow(domain);
    }
  }

  async #follow(domain: string): Promise<void> {
    if (this.#over.signal.aborted) return;
    const wanted = await this.#wanted(domain);
    this.#revokeOthers(domain, wanted);
    const failures: unknown[] = [];
    for (const each of wanted) {
      try {
        checkStillAllowed(each, this.#options.opener);
        this.#grant(domain, await this.#open(each.address), each.grant);
      } catch (error) {
        failures.push(error);
      }
    }
    for (const [key, { front, grants, holds }] of this.#fronts) {
      if (grants.size > 0 || holds > 0) continue;
      this.#fronts.delete(key);
      await front.close();
    }
    if (failures.length > 0) throw failures[0];
  }

  async #wanted(domain: string): Promise<readonly WantedGrant[]> {
    const { store, clock, idleMs, bytesPerSecond } = this.#options;
    const time = { nowMs: clock.now(), host: clock.hostTime() };
    const wanted: WantedGrant[] = [];
    for (const record of await store.operations(domain)) {
      const { subject } = record;
      // Exports of a lost moment may go on to answer.
      if (subject.kind !== "block-snapshot" || subject.lost !== undefined || isOver(this.#options, record)) {
        continue;
      }
      for (const { exportName, socketPath, front } of subject.exports) {
        if (front === undefined) continue;
        const grant = {
          exportName: frontExportName(domain, exportName),
          backend: { socketPath, exportName },
          clients: front.clients,
          idleMs,
          ...(bytesPerSecond === undefined ? {} : { bytesPerSecond }),
          untilMs: time.nowMs + leaseLeftMs(subject, time),
        };
        wanted.push({ address: front.address, grant });
      }
    }
    return wanted;
  }

  #revokeOthers(domain: string, wanted: readonly WantedGrant[]): void {
    const keep = new Set(
      wanted.map(({ address, grant }) => JSON.stringify([frontKey(address), termsOf(grant)])),
    );
    for (const [key, { front, grants }] of this.#fronts) {
      for (const [exportName, granted] of grants) {
        if (granted.domain !== domain || keep.has(JSON.stringify([key, granted.terms]))) continue;
        front.revoke(exportName);
        grants.delete(exportName);
        this.#options.log.info(
          { domain, exportName, address: key },
          "Remote clients may not read an export any more",
        );
      }
    }
  }

  #grant(domain: string, { front, grants }: OpenFront, grant: WantedGrant["grant"]): void {
    const { exportName, untilMs, clients } = grant;
    const before = grants.get(exportName);
    if (before?.untilMs === untilMs) return;
    try {
      if (before === undefined) front.grant(grant);
      else front.renew(exportName, untilMs);
    } catch (error) {
      // The lease was renewed just after its end.
      if (!isFleeceError(error, "EXPORT_NOT_FOUND")) throw error;
      front.grant(grant);
    }
    grants.set(exportName, { domain, terms: termsOf(grant), untilMs });
    if (before === undefined)
      this.#options.log.info({ domain, exportName, clients }, "Remote clients may read an export");
  }

  async #open(address: FrontAddress): Promise<OpenFront> {
    const key = frontKey(address);
    const before = this.#fronts.get(key);
    if (before !== undefined) return before;
    this.#over.signal.throwIfAborted();
    const open = { front: await this.#options.opener.open(address), grants: new Map(), holds: 0 };
    this.#fronts.set(key, open);
    this.#options.log.info({ address: key }, "The front listens");
    return open;
  }
}

/** All but the end, which may move. */
function termsOf(grant: WantedGrant["grant"]): string {
  return JSON.stringify({ ...grant, untilMs: undefined });
}

/** The configuration may be another one since. Without TLS nobody may read who was to show a certificate, nor the reverse. */
function checkStillAllowed({ address, grant }: WantedGrant, { tcp }: FrontOpener): void {
  if ("socketPath" in address) return;
  const isSame = tcp !== undefined && frontKey(tcp.address) === frontKey(address);
  if (isSame && tcp.plaintext === (grant.clients === "any")) return;
  throw new FleeceError(
    "CONFIG_INVALID",
    `Exports that were started at ${formatHostPort(address)} are not offered there any more: nbd in the configuration was changed`,
  );
}
