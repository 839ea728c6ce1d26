import type { Screen } from "./screen.js";

export interface Proof {
  readonly claim: string;
  readonly expected: string;
  readonly got: string;
  /** Left out: whether `got` equals `expected`. */
  readonly ok?: boolean;
}

/** Prints each proof as it comes, and counts. */
export class Proofs {
  readonly #screen: Screen;
  #held = 0;
  #failed = 0;

  constructor(screen: Screen) {
    this.#screen = screen;
  }

  get held(): number {
    return this.#held;
  }

  get failed(): number {
    return this.#failed;
  }

  add({ claim, expected, got, ok = got === expected }: Proof): void {
    if (ok) {
      this.#held += 1;
      this.#screen.held(`${claim}: ${got}`);
    } else {
      this.#failed += 1;
      this.#screen.failed(claim, [`expected: ${expected}`, `got:      ${got}`]);
    }
  }
}
