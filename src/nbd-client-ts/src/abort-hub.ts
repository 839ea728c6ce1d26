/**
 * Shares one listener per signal among all requests that carry it: Node warns of a leak at more than ten, and one
 * large read alone has eight on the wire.
 */
export class AbortHub {
  readonly #signals = new Map<
    AbortSignal,
    { readonly actions: Set<() => void>; readonly listener: () => void }
  >();

  add(signal: AbortSignal, action: () => void): void {
    const known = this.#signals.get(signal);
    if (known !== undefined) {
      known.actions.add(action);
      return;
    }
    const actions = new Set([action]);
    const listener = () => {
      this.#signals.delete(signal);
      for (const each of actions) each();
    };
    this.#signals.set(signal, { actions, listener });
    signal.addEventListener("abort", listener, { once: true });
  }

  remove(signal: AbortSignal, action: () => void): void {
    const known = this.#signals.get(signal);
    if (known === undefined) return;
    known.actions.delete(action);
    if (known.actions.size > 0) return;
    this.#signals.delete(signal);
    signal.removeEventListener("abort", known.listener);
  }
}
