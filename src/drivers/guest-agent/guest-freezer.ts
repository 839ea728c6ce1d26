import { setTimeout as delay } from "node:timers/promises";
import type { Clock } from "../../ports/clock.js";
import { errorMessage, FleeceError, isFleeceError } from "../../shared/errors.js";
import { GuestAgent } from "./guest-agent.js";

export interface FreezerOptions {
  readonly socketPath: string;
  readonly clock: Clock;
  /** For all commands but the freeze. Default: 5 seconds. */
  readonly commandTimeoutMs?: number;
  /** For how long a thaw is tried. Default: 30 seconds. */
  readonly thawWithinMs?: number;
}

const COMMAND_TIMEOUT_MS = 5_000;
const THAW_WITHIN_MS = 30_000;
/** The next command tries again, and this one should not keep its user waiting. */
const LEFTOVER_WITHIN_MS = 5_000;
const RETRY_MS = 100;
const NEEDED = ["guest-fsfreeze-freeze", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];

/**
 * Freezes and thaws the file systems of a guest. Whatever goes wrong, the guest is thawed and has said so when a method
 * ends, unless it throws QUIESCE_FAILED: then nobody knows, and the thaw must be tried again later.
 */
export class GuestFreezer implements AsyncDisposable {
  readonly socketPath: string;
  readonly #clock: Clock;
  readonly #thawWithinMs: number;
  readonly #timeoutMs: number;
  #agent: GuestAgent | undefined;

  constructor(options: FreezerOptions) {
    this.socketPath = options.socketPath;
    this.#clock = options.clock;
    this.#thawWithinMs = options.thawWithinMs ?? THAW_WITHIN_MS;
    this.#timeoutMs = options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS;
  }

  /** Asks only. Resolves with the reason why the guest cannot be frozen, or with undefined when it can. */
  async prepare(signal?: AbortSignal): Promise<string | undefined> {
    const limits = { timeoutMs: this.#timeoutMs, signal };
    try {
      this.#agent = await GuestAgent.connect(this.socketPath, limits);
      if ((await this.#agent.status(limits)) === "frozen")
        return "somebody else has frozen the guest already";
      const commands = await this.#agent.commands(limits);
      const missing = NEEDED.find((name) => !commands.has(name));
      return missing === undefined ? undefined : `the guest agent does not offer ${missing}`;
    } catch (error) {
      return reasonOf(error);
    }
  }

  /**
   * Call `prepare` first. Resolves with undefined when the guest is frozen, else with the reason. A freeze whose reply did
   * not come may still come true, so that is followed by a thaw.
   */
  async freeze(timeoutMs: number, signal?: AbortSignal): Promise<string | undefined> {
    let reason: string;
    let failure: unknown;
    try {
      const count = await this.#connected().freeze({ timeoutMs, signal });
      if (count > 0) return undefined;
      reason = "the guest agent found no file system to freeze";
    } catch (error) {
      failure = error;
      reason = errorMessage(error);
    }
    await this.thaw();
    return failure === undefined ? reason : reasonOf(failure);
  }

  /** Resolves, when the guest has said that it is thawed, with how many file systems were frozen until now. */
  async thaw(): Promise<number> {
    try {
      if (this.#agent !== undefined) return await this.#thawThrough(this.#agent);
    } catch {
      // Another connection may find what this one does not.
    }
    return this.#thawAnew();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent?.close();
  }

  async #thawAnew(): Promise<number> {
    await this.#agent?.close();
    const start = this.#clock.monotonicMs();
    for (;;) {
      try {
        await using agent = await GuestAgent.connect(this.socketPath, { timeoutMs: this.#timeoutMs });
        const status = await agent.status({ timeoutMs: this.#timeoutMs });
        return status === "thawed" ? 0 : await this.#thawThrough(agent);
      } catch (error) {
        const isGone = isFleeceError(error) && error.facts["absent"] === true;
        if (isGone || this.#clock.monotonicMs() - start > this.#thawWithinMs) {
          throw new FleeceError(
            "QUIESCE_FAILED",
            `The guest's file systems may still be frozen, thaw them inside (fsfreeze -u): ${errorMessage(error)}`,
            { cause: error, ...(isGone ? { facts: { absent: true } } : {}) },
          );
        }
        await delay(RETRY_MS);
      }
    }
  }

  async #thawThrough(agent: GuestAgent): Promise<number> {
    const limits = { timeoutMs: this.#timeoutMs };
    const count = await agent.thaw(limits);
    if ((await agent.status(limits)) === "thawed") return count;
    throw new FleeceError("QUIESCE_FAILED", "The guest is still frozen after a thaw");
  }

  #connected(): GuestAgent {
    if (this.#agent !== undefined) return this.#agent;
    throw new FleeceError("INTERNAL", "Expected a guest agent that was prepared");
  }
}

/** Thaws a guest that a dead process may have frozen. A guest whose QEMU has ended needs none. */
export async function thawLeftover(options: Pick<FreezerOptions, "socketPath" | "clock">): Promise<void> {
  try {
    await using freezer = new GuestFreezer({ ...options, thawWithinMs: LEFTOVER_WITHIN_MS });
    await freezer.thaw();
  } catch (error) {
    if (!isFleeceError(error) || error.facts["absent"] !== true) throw error;
  }
}

/** Trouble with the agent is a reason not to freeze; a cancelled operation ends. */
function reasonOf(error: unknown): string {
  if (!isFleeceError(error, "QUIESCE_FAILED")) throw error;
  return error.message;
}
