import type { Caller } from "./caller.js";
import { FleeceError } from "../shared/errors.js";

export interface CallLimits {
  readonly calls: number;
  /** Of each client that comes with a certificate. */
  readonly callsPerClient: number;
}

/** How many calls are under way; a call that is cancelled counts until its work is undone. */
export class CallSlots {
  readonly #limits: CallLimits;
  readonly #perClient = new Map<string, number>();
  #all = 0;

  constructor(limits: CallLimits) {
    this.#limits = limits;
  }

  /** Fails with TOO_MANY_CALLS. */
  take({ client, certificate }: Caller): Disposable {
    const { calls, callsPerClient } = this.#limits;
    if (this.#all >= calls) throw tooMany(`The agent has ${calls} calls under way, which is its limit`);
    this.#all += 1;
    if (client === undefined || certificate === undefined) return { [Symbol.dispose]: () => this.#all-- };
    const { name } = client;
    const own = this.#perClient.get(name) ?? 0;
    if (own >= callsPerClient) {
      this.#all -= 1;
      throw tooMany(`Client ${name} has ${callsPerClient} calls under way, which is its limit`);
    }
    this.#perClient.set(name, own + 1);
    return {
      [Symbol.dispose]: () => {
        this.#all -= 1;
        const left = (this.#perClient.get(name) ?? 1) - 1;
        if (left === 0) this.#perClient.delete(name);
        else this.#perClient.set(name, left);
      },
    };
  }
}

function tooMany(message: string): FleeceError {
  return new FleeceError("TOO_MANY_CALLS", `${message}; try again later`);
}
