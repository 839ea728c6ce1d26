/** Where a connection stands. It only ever moves forward. */
export type QmpRunState =
  /** The stream is open; nothing has come yet. */
  | "greeting"
  /** Greeted; `qmp_capabilities` is sent, no other command may be. */
  | "negotiating"
  /** Commands may be sent, events come. */
  | "running"
  /** The first cause of the end is known, pending calls have failed with it, the stream is being torn down. */
  | "closing"
  /** The stream is gone. */
  | "closed";

const legalMoves: Readonly<Record<QmpRunState, readonly QmpRunState[]>> = {
  greeting: ["negotiating", "closing"],
  negotiating: ["running", "closing"],
  running: ["closing"],
  closing: ["closed"],
  closed: [],
};

export type StateChangeListener = (from: QmpRunState, to: QmpRunState, reason: string) => void;

/** Holds the state; `move` is the only way to change it. */
export class RunState {
  readonly #onChange: StateChangeListener | undefined;
  #current: QmpRunState = "greeting";

  constructor(onChange?: StateChangeListener) {
    this.#onChange = onChange;
  }

  get current(): QmpRunState {
    return this.#current;
  }

  get isOver(): boolean {
    return this.#current === "closing" || this.#current === "closed";
  }

  /** Throws for a move that is not in the table: that is a bug here, never the peer's doing. */
  move(to: QmpRunState, reason: string): void {
    const from = this.#current;
    if (!legalMoves[from].includes(to))
      throw new Error(`Illegal move of a QMP connection from ${from} to ${to}`);
    this.#current = to;
    this.#onChange?.(from, to, reason);
  }
}
