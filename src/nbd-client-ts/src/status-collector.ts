import type { Contexts } from "./option-meta-context.js";
import { Receiver, type RequestRange } from "./receiver.js";
import { readUint64 } from "./wire.js";

/** A run of bytes with the same status in one metadata context. What `flags` means, the context defines. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** What a BLOCK_STATUS request asked for. */
export interface StatusWish {
  /** The contexts that the server must answer for. */
  readonly contexts: Contexts;
  /** Those of them whose answers are kept, default all. */
  readonly keep?: ReadonlySet<string>;
  readonly reqOne: boolean;
}

/** Collects the chunks of a BLOCK_STATUS reply: one for each context that was asked for. */
export class StatusCollector extends Receiver {
  readonly kind = "status";
  readonly #wish: StatusWish;
  readonly #answered = new Set<string>();
  readonly #extents = new Map<string, ExtentList>();

  constructor(range: RequestRange, wish: StatusWish) {
    super(range);
    this.#wish = wish;
  }

  get result(): ReadonlyMap<string, readonly Extent[]> {
    return new Map([...this.#extents].map(([name, extents]) => [name, [...extents]]));
  }

  /** The same, decoded only while it is looked at: a reply of a million extents stays as small as on the wire. */
  get lists(): ReadonlyMap<string, ExtentList> {
    return this.#extents;
  }

  /** Payload of one chunk: context id, then pairs of length and flags, 32 bits each; its length was checked. */
  status(payload: Buffer): void {
    this.#add(payload, 4, 8);
  }

  /** The same in 64 bits, with the number of descriptors, which may be 0, after the context id. */
  extendedStatus(payload: Buffer): void {
    const count = payload.readUInt32BE(4);
    const expected = (payload.length - 8) / 16;
    if (count !== 0 && count !== expected) {
      throw this.violation("BAD_BLOCK_STATUS", `${expected} extents, announced as ${count}`);
    }
    this.#add(payload, 8, 16);
  }

  override complete(): void {
    for (const name of this.#wish.contexts.values()) {
      if (!this.#answered.has(name)) throw this.violation("BAD_BLOCK_STATUS", `nothing for context ${name}`);
    }
  }

  #add(payload: Buffer, headerBytes: 4 | 8, extentBytes: 8 | 16): void {
    const id = payload.readUInt32BE(0);
    const name = this.#wish.contexts.get(id);
    if (name === undefined) {
      throw this.violation("BAD_BLOCK_STATUS", `a context that was not asked for (id ${id})`);
    }
    if (this.#answered.has(name)) {
      throw this.violation("BAD_BLOCK_STATUS", `context ${name} twice`);
    }
    const extents = new ExtentList(this.range.offset, payload.subarray(headerBytes), extentBytes);
    for (const extent of extents) this.#check(extent, name);
    if (this.#wish.reqOne) this.#checkOnlyOne(extents, name);
    this.#answered.add(name);
    if (this.#wish.keep?.has(name) !== false) this.#extents.set(name, extents);
  }

  #check(extent: Extent, name: string): void {
    if (extent.length === 0) {
      throw this.violation("BAD_BLOCK_STATUS", `an extent of length 0 in context ${name}`);
    }
    const exact = Number.isSafeInteger(extent.offset + extent.length) && Number.isSafeInteger(extent.flags);
    if (!exact) throw this.violation("BAD_BLOCK_STATUS", `an extent beyond 2^53 in context ${name}`);
  }

  #checkOnlyOne(extents: ExtentList, name: string): void {
    const [first] = extents;
    const length = first?.length ?? 0;
    if (extents.count === 1 && length <= this.range.length) return;
    throw this.violation(
      "BAD_BLOCK_STATUS",
      `${extents.count} extents, the first of ${length} bytes, in context ${name} where one within the request was asked for`,
    );
  }
}

/** Extents in the form of the wire, decoded one at a time. */
export class ExtentList implements Iterable<Extent> {
  readonly #start: number;
  readonly #descriptors: Buffer;
  readonly #extentBytes: 8 | 16;

  constructor(start: number, descriptors: Buffer, extentBytes: 8 | 16) {
    this.#start = start;
    this.#descriptors = descriptors;
    this.#extentBytes = extentBytes;
  }

  get count(): number {
    return this.#descriptors.length / this.#extentBytes;
  }

  *[Symbol.iterator](): Generator<Extent, void, undefined> {
    const half = this.#extentBytes / 2;
    let offset = this.#start;
    for (let at = 0; at < this.#descriptors.length; at += this.#extentBytes) {
      const length = this.#read(at);
      yield { offset, length, flags: this.#read(at + half) };
      offset += length;
    }
  }

  #read(at: number): number {
    return this.#extentBytes === 8 ? this.#descriptors.readUInt32BE(at) : readUint64(this.#descriptors, at);
  }
}
