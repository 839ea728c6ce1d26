import type { AuditEntry, AuditLog } from "../ports/audit-log.js";
import type { Clock } from "../ports/clock.js";
import type { Logger } from "../ports/logger.js";
import { errorMessage, type ErrorCode } from "../shared/errors.js";
import type { CallName } from "./call-types.js";
import type { Caller } from "./caller.js";

/** A call as the audit log tells of it. */
export interface AuditedCall {
  readonly call: string;
  readonly method: CallName;
  readonly caller: Caller;
  readonly request: object;
}

/** What of a request tells what it is about. Only these are written. */
const TELLING = [
  "domain",
  "name",
  "snapshot",
  "since",
  "id",
  "at",
  "repository",
  "to",
  "ids",
  "disks",
  "places",
  "directory",
  "socketPath",
  "level",
  "failed",
];
const LONGEST_TEXT = 256;
const MOST_ITEMS = 64;

/** People without an entry may be refused as often as they like, but not fill the disk. */
const REFUSALS_PER_MINUTE = 60;

export interface CallAuditParts {
  readonly audit: AuditLog;
  readonly log: Logger;
  readonly clock: Pick<Clock, "monotonicMs">;
}

/** Which lines the audit log gets: see "The audit log" in config/README.md. */
export class CallAudit {
  readonly #audit: AuditLog;
  readonly #log: Logger;
  readonly #clock: Pick<Clock, "monotonicMs">;
  #minuteBeganMs = -Infinity;
  #inMinute = 0;
  #leftOut = 0;

  constructor({ audit, log, clock }: CallAuditParts) {
    this.#audit = audit;
    this.#log = log;
    this.#clock = clock;
  }

  /**
   * Does the work of a call between its two lines. Fails with AUDIT_FAILED, and nothing is done, if the first cannot be
   * written: what is not in the log must not have happened. `codeOf` gives the code that the client gets.
   */
  async around<T>(
    call: AuditedCall,
    work: () => Promise<T>,
    codeOf: (error: unknown) => ErrorCode,
  ): Promise<T> {
    const facts = factsOf(call);
    await this.#audit.write({ event: "begin", ...facts });
    try {
      const result = await work();
      await this.#tryWrite({ event: "end", ...facts, ...madeBy(result), code: "OK" });
      return result;
    } catch (error) {
      await this.#tryWrite({ event: "end", ...facts, code: codeOf(error) });
      throw error;
    }
  }

  /** A client that is known asked for what it may not do. */
  denied(call: AuditedCall, code: ErrorCode): Promise<void> {
    return this.#tryWrite({ event: "denied", ...factsOf(call), code });
  }

  /** A connection, or a call of nobody who is known, or one too many. Beyond a rate, such lines are only counted. */
  async refused(entry: AuditEntry): Promise<void> {
    const now = this.#clock.monotonicMs();
    if (now - this.#minuteBeganMs >= 60_000) {
      this.#minuteBeganMs = now;
      this.#inMinute = 0;
    }
    this.#inMinute += 1;
    if (this.#inMinute > REFUSALS_PER_MINUTE) {
      this.#leftOut += 1;
      return;
    }
    const leftOut = this.#leftOut === 0 ? {} : { leftOutBefore: this.#leftOut };
    this.#leftOut = 0;
    this.#log.warn(entry, "A client was refused");
    await this.#tryWrite({ event: "refused", ...entry, ...leftOut });
  }

  /** What has happened cannot be helped any more; the next change will be refused. */
  async #tryWrite(entry: AuditEntry): Promise<void> {
    try {
      await this.#audit.write(entry);
    } catch (error) {
      this.#log.warn({ entry }, `The audit log lacks a line: ${errorMessage(error)}`);
    }
  }
}

export function callerFacts({ client, certificate, peer }: Caller): AuditEntry {
  return {
    ...(client === undefined ? {} : { client: client.name, role: client.role }),
    ...certificate,
    peer,
  };
}

function factsOf({ call, method, caller, request }: AuditedCall): AuditEntry {
  const fields = request as Readonly<Record<string, unknown>>;
  const told = TELLING.flatMap((key) => (fields[key] === undefined ? [] : [[key, short(fields[key])]]));
  return { call, method, ...callerFacts(caller), request: Object.fromEntries(told) as object };
}

/** The name of what a call has made or changed may have been made up by it. */
function madeBy(result: unknown): AuditEntry {
  if (typeof result !== "object" || result === null) return {};
  const { name, id } = result as { readonly name?: unknown; readonly id?: unknown };
  const made = name ?? id;
  return typeof made === "string" ? { result: made } : {};
}

function short(value: unknown): unknown {
  if (typeof value === "string") return value.slice(0, LONGEST_TEXT);
  if (Array.isArray(value)) return value.slice(0, MOST_ITEMS).map(short);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, short(item)]));
  }
  return value;
}
