import type { Clock } from "../../ports/clock.js";
import type { ExportGrant, GrantStats } from "../../ports/export-front.js";
import { FleeceError } from "../../shared/errors.js";
import { TokenBucket } from "../../shared/token-bucket.js";
import type { ClientIdentity } from "./front-tls.js";

/** Slower, a single buffer would wait for hours. */
const LEAST_BYTES_PER_SECOND = 1024;
/** A timer of Node holds 2^31 ms at most; shorter steps also notice that the clock was set. */
const LONGEST_SLEEP_MS = 60_000;

/** A grant in force, with its connections and its counters. */
export class Grant {
  readonly terms: ExportGrant;
  readonly bucket: TokenBucket | undefined;
  /** Aborts when the grant ends. */
  readonly ended = new AbortController();
  untilMs: number;
  connections = 0;
  connectionsTotal = 0;
  bytesSent = 0;
  bytesReceived = 0;

  constructor(terms: ExportGrant, clock: Clock) {
    this.terms = terms;
    this.untilMs = terms.untilMs ?? Infinity;
    this.bucket =
      terms.bytesPerSecond === undefined ? undefined : new TokenBucket(terms.bytesPerSecond, clock);
  }

  allows(client: ClientIdentity | undefined): boolean {
    const { clients } = this.terms;
    if (clients === "any") return true;
    if (client === undefined) return false;
    // A name that looks like a fingerprint must not pass for one.
    const isName = client.name !== undefined && !client.name.startsWith("sha256:");
    return clients.includes(client.fingerprint) || (isName && clients.includes(client.name));
  }

  stats(): GrantStats {
    const { connections, connectionsTotal, bytesSent, bytesReceived } = this;
    return { exportName: this.terms.exportName, connections, connectionsTotal, bytesSent, bytesReceived };
  }
}

/** The exports that are granted now. */
export class Grants {
  readonly #clock: Clock;
  readonly #byName = new Map<string, Grant>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  add(terms: ExportGrant): void {
    const { exportName, idleMs, bytesPerSecond = Infinity } = terms;
    if (this.#current(exportName) !== undefined) {
      throw new FleeceError("ALREADY_EXISTS", `An export ${exportName} is granted already`, {
        facts: { exportName },
      });
    }
    if (!(idleMs > 0) || !(bytesPerSecond >= LEAST_BYTES_PER_SECOND)) {
      const expected = `an idle time above 0 and a rate of at least ${LEAST_BYTES_PER_SECOND} bytes per second`;
      const message = `Expected ${expected}, got ${idleMs} ms and ${bytesPerSecond}`;
      throw new FleeceError("INVALID_ARGUMENT", message, { facts: { exportName, idleMs, bytesPerSecond } });
    }
    const grant = new Grant(terms, this.#clock);
    this.#byName.set(exportName, grant);
    void this.#watch(grant);
  }

  renew(exportName: string, untilMs: number): void {
    const grant = this.#current(exportName);
    if (grant === undefined) {
      throw new FleeceError("EXPORT_NOT_FOUND", `No export ${exportName} is granted`, {
        facts: { exportName },
      });
    }
    grant.untilMs = untilMs;
    // The watch may sleep beyond the new end.
    void this.#watch(grant);
  }

  revoke(exportName: string): void {
    const grant = this.#byName.get(exportName);
    this.#byName.delete(exportName);
    grant?.ended.abort();
  }

  revokeAll(): void {
    for (const exportName of [...this.#byName.keys()]) this.revoke(exportName);
  }

  /** The grant of an export to a client: undefined if it is not granted, whether or not it exists. */
  find(exportName: string, client: ClientIdentity | undefined): Grant | undefined {
    const grant = this.#current(exportName);
    return grant?.allows(client) === true ? grant : undefined;
  }

  list(client: ClientIdentity | undefined): Grant[] {
    return this.all().filter((grant) => grant.allows(client));
  }

  all(): Grant[] {
    return [...this.#byName.keys()].flatMap((exportName) => this.#current(exportName) ?? []);
  }

  #current(exportName: string): Grant | undefined {
    const grant = this.#byName.get(exportName);
    if (grant === undefined || this.#clock.now() < grant.untilMs) return grant;
    this.revoke(exportName);
    return undefined;
  }

  async #watch(grant: Grant): Promise<void> {
    const { exportName } = grant.terms;
    const { untilMs } = grant;
    const { signal } = grant.ended;
    while (grant.untilMs === untilMs && untilMs !== Infinity && this.#byName.get(exportName) === grant) {
      const leftMs = untilMs - this.#clock.now();
      if (leftMs <= 0) this.revoke(exportName);
      else await this.#clock.sleep(Math.min(leftMs, LONGEST_SLEEP_MS), signal).catch(() => undefined);
    }
  }
}
