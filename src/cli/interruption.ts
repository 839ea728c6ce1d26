import { FleeceError } from "../shared/errors.js";

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/**
 * Turns SIGINT and SIGTERM into an abort, so that a command undoes what it has made. A further signal changes nothing:
 * half a clean-up would be left to the next command. `notify` gets a line for the user each time.
 */
export class Interruption implements Disposable {
  readonly #controller = new AbortController();
  readonly #notify: (line: string) => void;
  readonly #onSignal = (name: NodeJS.Signals): void => this.#interrupt(name);

  constructor(notify: (line: string) => void) {
    this.#notify = notify;
    for (const name of SIGNALS) process.on(name, this.#onSignal);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  #interrupt(name: NodeJS.Signals): void {
    const first = !this.signal.aborted;
    this.#notify(first ? "cleaning up…" : "still cleaning up…");
    if (!first) return;
    this.#controller.abort(
      new FleeceError("INTERRUPTED", `Interrupted by ${name}`, { facts: { signal: name } }),
    );
  }

  [Symbol.dispose](): void {
    for (const name of SIGNALS) process.off(name, this.#onSignal);
  }
}
