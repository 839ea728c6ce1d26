export interface Abortable {
  abort(): void;
}

/**
 * Shares one listener per signal among all requests that carry it: Node warns of a leak at more than ten, and one
 * large read alone has eight on the wire.
 */
export class AbortHub {
  readonly #signals = new Map<
    AbortSignal,
    { readonly targets: Set<Abortable>; readonly listener: () => void }
  >();

  add(signal: AbortSignal, target: Abortable): void {
    const known = this.#signals.get(signal);
    if (known !== undefined) {
      known.targets.add(target);
      return;
    }
    const targets = new Set([target]);
    const listener = () => {
      this.#signals.delete(signal);
      for (const each of targets) each.abort();
    };
    this.#signals.set(signal, { targets, listener });
    signal.addEventListener("abort", listener, { once: true });
  }

  remove(signal: AbortSignal, target: Abortable): void {
    const known = this.#signals.get(signal);
    if (known === undefined) return;
    known.targets.delete(target);
    if (known.targets.size > 0) return;
    this.#signals.delete(signal);
    signal.removeEventListener("abort", known.listener);
  }
}
