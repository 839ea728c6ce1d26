import type { Contexts } from "./option-meta-context.js";
import { Receiver, type RequestRange } from "./receiver.js";

/** A run of bytes with the same status in one metadata context. What `flags` means, the context defines. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** Collects the chunks of a BLOCK_STATUS reply: one for each negotiated context. */
export class StatusCollector extends Receiver {
  readonly kind = "status";
  readonly #contexts: Contexts;
  readonly #reqOne: boolean;
  readonly #extents = new Map<string, readonly Extent[]>();

  constructor(range: RequestRange, contexts: Contexts, reqOne: boolean) {
    super(range);
    this.#contexts = contexts;
    this.#reqOne = reqOne;
  }

  get result(): ReadonlyMap<string, readonly Extent[]> {
    return this.#extents;
  }

  /** Payload of one chunk: context id, then pairs of length and flags, 32 bits each; its length was checked. */
  status(payload: Buffer): void {
    const id = payload.readUInt32BE(0);
    const name = this.#contexts.get(id);
    if (name === undefined) {
      throw this.violation("BAD_BLOCK_STATUS", `a context that was not negotiated (id ${id})`);
    }
    if (this.#extents.has(name)) {
      throw this.violation("BAD_BLOCK_STATUS", `context ${name} twice`);
    }
    const extents = this.#readExtents(payload, name);
    if (this.#reqOne) this.#checkOnlyOne(extents, name);
    this.#extents.set(name, extents);
  }

  override complete(): void {
    for (const name of this.#contexts.values()) {
      if (!this.#extents.has(name)) throw this.violation("BAD_BLOCK_STATUS", `nothing for context ${name}`);
    }
  }

  #readExtents(payload: Buffer, name: string): readonly Extent[] {
    const extents: Extent[] = [];
    let offset = this.range.offset;
    for (let at = 4; at < payload.length; at += 8) {
      const length = payload.readUInt32BE(at);
      if (length === 0) {
        throw this.violation("BAD_BLOCK_STATUS", `an extent of length 0 in context ${name}`);
      }
      extents.push({ offset, length, flags: payload.readUInt32BE(at + 4) });
      offset += length;
    }
    return extents;
  }

  #checkOnlyOne(extents: readonly Extent[], name: string): void {
    const length = extents[0]?.length ?? 0;
    if (extents.length === 1 && length <= this.range.length) return;
    throw this.violation(
      "BAD_BLOCK_STATUS",
      `${extents.length} extents, the first of ${length} bytes, in context ${name} where one within the request was asked for`,
    );
  }
}
