import type { UndoEntry } from "../model/undo.js";
import type { UndoLog } from "../ports/block-driver.js";
import { OneByOne } from "../shared/async.js";
import type { OperationRecord, OperationSubject, StateStore } from "../ports/state-store.js";

export type OperationHeader = Pick<OperationRecord, "id" | "domain" | "startedAtMs" | "subject">;

/** One unfinished operation and its record on disk, which is always ahead of what has been done. */
export class Operation implements UndoLog {
  readonly #store: StateStore;
  #record: OperationRecord;
  readonly #saves = new OneByOne();

  constructor(store: StateStore, record: OperationRecord) {
    this.#store = store;
    this.#record = record;
  }

  static async begin(store: StateStore, header: OperationHeader): Promise<Operation> {
    const operation = Operation.prepare(store, header);
    await operation.#save();
    return operation;
  }

  /** The same for an operation of which nobody has to know before it acquires something: that writes the first record. */
  static prepare(store: StateStore, header: OperationHeader): Operation {
    return new Operation(store, { schemaVersion: 1, ...header, owner: store.self(), undo: [] });
  }

  get record(): OperationRecord {
    return this.#record;
  }

  async register(...entries: UndoEntry[]): Promise<void> {
    this.#record = { ...this.#record, undo: [...this.#record.undo, ...entries] };
    await this.#save();
  }

  async settle(...entries: UndoEntry[]): Promise<void> {
    const settled = new Set(entries.map((entry) => JSON.stringify(entry)));
    const undo = this.#record.undo.filter((entry) => !settled.has(JSON.stringify(entry)));
    this.#record = { ...this.#record, undo };
    await this.#save();
  }

  async setSubject(subject: OperationSubject): Promise<void> {
    this.#record = { ...this.#record, subject };
    await this.#save();
  }

  /** The new checkpoint stays: what it was made for is safe. */
  async keepCheckpoint(): Promise<void> {
    await this.settle(...this.#record.undo.filter(({ kind }) => kind === "checkpoint"));
  }

  /** Nothing is left to undo, so nothing is left to remember. */
  async end(): Promise<void> {
    await this.#store.remove(this.#record);
  }

  /** Disks are worked on side by side. Each save takes the newest record. */
  async #save(): Promise<void> {
    await this.#saves.run(() => this.#store.save(this.#record));
  }
}
