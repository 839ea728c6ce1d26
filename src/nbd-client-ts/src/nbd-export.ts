import { readCapabilities, type Capabilities } from "./capabilities.js";
import { COMMAND_FLAG, LIMIT, TRANSMISSION_FLAG, type CommandName } from "./constants.js";
import { NbdError } from "./errors.js";
import { walkExtents, type MappedExtent } from "./extents.js";
import { LANES, leastBusy, untilAllClosed, type Lane } from "./lane.js";
import type { BlockSize } from "./option-go.js";
import type {
  BlockStatusOptions,
  ExtentsOptions,
  ReadOptions,
  RequestOptions,
  StatusOptions,
  WriteOptions,
  WriteZeroesOptions,
} from "./options.js";
import { inPieces } from "./pieces.js";
import { checkAligned, checkRange, narrow, widen, type ExportShape } from "./range.js";
import { ReadAssembler } from "./read-assembler.js";
import { AckReceiver } from "./receiver.js";
import { mayBeTooLong, requestSizes, type RequestSizes } from "./request-sizes.js";
import { encodeStatusFilter, type Request } from "./request.js";
import { StatusCollector, type Extent } from "./status-collector.js";

type Range = Pick<Request, "offset" | "length">;

/**
 * An export, over one connection (`NbdConnection`) or several (`NbdPool`). Calls may overlap: their requests are
 * pipelined. Offsets and lengths are in bytes. All methods reject with an `NbdError`; those of scope `connection`
 * mean that it is dead.
 */
export abstract class NbdExport implements Capabilities, AsyncDisposable {
  readonly exportName: string;
  readonly sizeBytes: number;
  readonly blockSize: BlockSize;
  /** Names of the metadata contexts that the server selected. */
  readonly contexts: readonly string[];
  readonly readOnly: boolean;
  readonly canFlush: boolean;
  readonly canFua: boolean;
  readonly canTrim: boolean;
  readonly canWriteZeroes: boolean;
  readonly canFastZero: boolean;
  readonly canDf: boolean;
  readonly canCache: boolean;
  readonly canMultiConn: boolean;
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** The server can answer BLOCK_STATUS for some of the contexts; extended headers bring that. */
  readonly canFilterStatus: boolean;
  /** Settles when it is over: with undefined after `close`, else with the error that ended it. */
  readonly closed: Promise<NbdError | undefined>;
  readonly [LANES]: readonly [Lane, ...Lane[]];
  readonly #shape: ExportShape;
  readonly #sizes: RequestSizes;
  /** Commands of which the server refused a long request. */
  readonly #cautious = new Set<CommandName>();

  constructor(exportName: string, lanes: readonly [Lane, ...Lane[]]) {
    const { negotiated } = lanes[0];
    const capabilities = readCapabilities(negotiated.transmissionFlags);
    this[LANES] = lanes;
    this.closed = lanes.length === 1 ? lanes[0].session.closed : untilAllClosed(lanes);
    this.exportName = exportName;
    this.sizeBytes = negotiated.sizeBytes;
    this.blockSize = negotiated.blockSize;
    this.contexts = [...negotiated.contexts.values()];
    this.readOnly = capabilities.readOnly;
    this.canFlush = capabilities.canFlush;
    this.canFua = capabilities.canFua;
    this.canTrim = capabilities.canTrim;
    this.canWriteZeroes = capabilities.canWriteZeroes;
    this.canFastZero = capabilities.canFastZero;
    this.canDf = capabilities.canDf;
    this.canCache = capabilities.canCache;
    this.canMultiConn = capabilities.canMultiConn;
    this.structuredReplies = negotiated.structuredReplies;
    this.extendedHeaders = negotiated.extendedHeaders;
    const filters = (negotiated.transmissionFlags & TRANSMISSION_FLAG.BLOCK_STAT_PAYLOAD) !== 0;
    this.canFilterStatus = negotiated.extendedHeaders && filters;
    this.#shape = { sizeBytes: this.sizeBytes, minimumBytes: this.blockSize.minimumBytes };
    this.#sizes = requestSizes(this.blockSize);
  }

  /** Reads any range within the export. Either all of its bytes are what the server sent, or it rejects. */
  async read(offset: number, length: number, options: ReadOptions = {}): Promise<Uint8Array> {
    const { into, ...others } = options;
    checkRange("READ", this.#shape, offset, length);
    if (into !== undefined && into.length !== length) {
      throw new NbdError(
        "INVALID_ARGUMENT",
        `Expected a buffer of ${length} bytes to read into, got ${into.length}`,
      );
    }
    const wide = widen(this.#shape, offset, length);
    if (wide.length !== length) {
      const all = await this.read(wide.offset, wide.length, others);
      const part = all.subarray(offset - wide.offset, offset - wide.offset + length);
      into?.set(part);
      return into ?? part;
    }
    const target = into ?? Buffer.allocUnsafeSlow(length);
    await this.#inPieces({ offset, length }, this.#sizes.payloadBytes, (at, count) => {
      const memory = count === length ? target : target.subarray(at - offset, at - offset + count);
      return this.#readPiece(at, memory, options);
    });
    return target;
  }

  /**
   * Reads 16 MiB in one request and drops them. Worth it before moving hundreds of MiB: a server that uses glibc maps
   * and unmaps memory for every long request until it has freed a still longer one ("Speed" in the README). Does
   * nothing for a small export or a server with a small maximum; a server that cannot read is no error here.
   */
  async warmUp({ signal }: RequestOptions = {}): Promise<void> {
    const { warmUpBytes } = this.#sizes;
    if (warmUpBytes > this.sizeBytes || warmUpBytes <= this.#sizes.payloadBytes) return;
    try {
      await this.#submitRead(0, Buffer.allocUnsafeSlow(warmUpBytes), 0, signal);
    } catch (error) {
      if (!(error instanceof NbdError) || error.code !== "REQUEST_FAILED") throw error;
    }
  }

  /** Writes all of `data`, which must not change until the promise settles. Safe to repeat. */
  async write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    const fua = this.#checkWritable("WRITE", options);
    this.#checkAlignedRange("WRITE", offset, data.length);
    await this.#inPieces({ offset, length: data.length }, this.#sizes.payloadBytes, (at, count) => {
      const payload = count === data.length ? data : data.subarray(at - offset, at - offset + count);
      return this.#acknowledged("WRITE", { offset: at, length: count }, fua.flags, options.signal, payload);
    });
    if (fua.byFlush) await this.flush(options);
  }

  /** Makes a range read as zeroes, of any length. Safe to repeat. */
  async writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): Promise<void> {
    const fua = this.#checkWritable("WRITE_ZEROES", options);
    this.#checkSupport(this.canWriteZeroes, "WRITE_ZEROES");
    if (options.fastZero === true) this.#checkSupport(this.canFastZero, "FAST_ZERO");
    this.#checkAlignedRange("WRITE_ZEROES", offset, length);
    const flags =
      fua.flags |
      (options.noHole === true ? COMMAND_FLAG.NO_HOLE : 0) |
      (options.fastZero === true ? COMMAND_FLAG.FAST_ZERO : 0);
    const fast = options.fastZero === true;
    await this.#affect("WRITE_ZEROES", { offset, length }, { flags, fast, signal: options.signal });
    if (fua.byFlush) await this.flush(options);
  }

  /**
   * Tells the server that a range's content is no longer needed. What it reads as afterwards is undefined. Of a range
   * that does not fit the minimum block size, only the whole blocks are trimmed.
   */
  async trim(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    const fua = this.#checkWritable("TRIM", options);
    this.#checkSupport(this.canTrim, "TRIM");
    checkRange("TRIM", this.#shape, offset, length);
    const range = narrow(this.#shape, offset, length);
    await this.#affect("TRIM", range, { flags: fua.flags, fast: true, signal: options.signal });
    if (fua.byFlush) await this.flush(options);
  }

  /** Tells the server that a range will be read soon. It may do nothing. */
  async cache(offset: number, length: number, options: RequestOptions = {}): Promise<void> {
    this.#checkSupport(this.canCache, "CACHE");
    checkRange("CACHE", this.#shape, offset, length);
    await this.#inPieces(widen(this.#shape, offset, length), this.#sizes.cacheBytes, (at, count) =>
      this.#acknowledged("CACHE", { offset: at, length: count }, 0, options.signal),
    );
  }

  /** Puts every write that was acknowledged before this call on stable storage, over whichever connection it went. */
  async flush(options: RequestOptions = {}): Promise<void> {
    this.#checkSupport(this.canFlush, "FLUSH");
    await this.#acknowledged("FLUSH", { offset: 0, length: 0 }, 0, options.signal);
  }

  /**
   * One BLOCK_STATUS request: extents from `offset` on for each context, as the server sent them. They may cover
   * less than the range, and the last may reach beyond it. `extents` puts that right.
   */
  async blockStatus(
    offset: number,
    length: number,
    options: BlockStatusOptions = {},
  ): Promise<ReadonlyMap<string, readonly Extent[]>> {
    this.#checkSupport(this.contexts.length > 0, "BLOCK_STATUS without a metadata context");
    this.#checkAlignedRange("BLOCK_STATUS", offset, length);
    if (length === 0 || (length > LIMIT.wireLengthBytes && !this.extendedHeaders)) {
      throw new NbdError(
        "OUT_OF_RANGE",
        `Expected a length between 1 and 2^32 - 1 for BLOCK_STATUS, got ${length}`,
      );
    }
    const collector = await this.#status({ offset, length }, options);
    return collector.result;
  }

  /** The status of a range in all contexts together: in order, without gaps, neighbours always different. */
  async *extents(options: ExtentsOptions = {}): AsyncGenerator<MappedExtent, void, undefined> {
    const offset = options.offset ?? 0;
    const length = options.length ?? this.sizeBytes - offset;
    checkRange("BLOCK_STATUS", this.#shape, offset, length);
    this.#checkSupport(this.contexts.length > 0, "BLOCK_STATUS without a metadata context");
    const { signal, contexts } = options;
    const of = {
      ...(signal === undefined ? {} : { signal }),
      ...(contexts === undefined ? {} : { contexts }),
    };
    const query = (at: number, count: number) => this.#walkStatus(at, count, of);
    yield* walkExtents(query, {
      offset,
      length,
      alignmentBytes: this.blockSize.minimumBytes,
      exportBytes: this.sizeBytes,
      queryBytes: LIMIT.statusBytes,
      widestQueryBytes: this.extendedHeaders ? LIMIT.statusExtendedBytes : LIMIT.statusWideBytes,
    });
  }

  /** Waits for the replies that the server owes, then disconnects in good order. Idempotent, never rejects. */
  async close(): Promise<void> {
    await Promise.all(this[LANES].map(({ session }) => session.close()));
  }

  /** Ends it at once; calls in flight fail with `CLOSED`. Idempotent. */
  destroy(): void {
    const error = new NbdError("CLOSED", "The connection was destroyed");
    for (const { session } of this[LANES]) session.destroy(error);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Not `async`: of a request's costs on this side, promises are the largest part. */
  #readPiece(offset: number, memory: Uint8Array, { df, signal }: ReadOptions): Promise<void> {
    return df === true && this.canDf
      ? this.#readUnfragmented(offset, memory, signal)
      : this.#submitRead(offset, memory, 0, signal);
  }

  async #readUnfragmented(
    offset: number,
    memory: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    try {
      await this.#submitRead(offset, memory, COMMAND_FLAG.DF, signal);
    } catch (error) {
      const tooLong = error instanceof NbdError && error.errno === "EOVERFLOW";
      if (!tooLong) throw error;
      await this.#submitRead(offset, memory, 0, signal);
    }
  }

  #submitRead(
    offset: number,
    memory: Uint8Array,
    flags: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const request = { command: "READ", flags, offset, length: memory.length } as const;
    const receiver = new ReadAssembler(request, memory, flags === COMMAND_FLAG.DF);
    return leastBusy(this[LANES]).session.submit({ request, receiver, signal });
  }

  /** A command without a payload, in pieces that a server which has to write them answers in time. */
  async #affect(
    command: "TRIM" | "WRITE_ZEROES",
    range: Range,
    how: { readonly flags: number; readonly fast: boolean; readonly signal: AbortSignal | undefined },
  ): Promise<void> {
    const { flags, fast, signal } = how;
    const pieceBytes = this.extendedHeaders && fast ? LIMIT.fastExtendedBytes : LIMIT.zeroBytes;
    const { cautiousBytes } = this.#sizes;
    const send = (offset: number, length: number) =>
      this.#acknowledged(command, { offset, length }, flags, signal);
    await this.#inPieces(range, pieceBytes, async (offset, length) => {
      if (length <= cautiousBytes) {
        await send(offset, length);
        return;
      }
      if (!this.#cautious.has(command)) {
        try {
          await send(offset, length);
          return;
        } catch (error) {
          if (!mayBeTooLong(error)) throw error;
          this.#cautious.add(command);
        }
      }
      await this.#inPieces({ offset, length }, cautiousBytes, send);
    });
  }

  /** Asks for less where the server finds a request too long: a walk takes short answers anyway. */
  async #walkStatus(offset: number, length: number, options: StatusOptions) {
    const cautious = Math.min(length, this.#sizes.cautiousBytes);
    if (length > cautious && !this.#cautious.has("BLOCK_STATUS")) {
      try {
        return (await this.#status({ offset, length }, options)).lists;
      } catch (error) {
        if (!mayBeTooLong(error)) throw error;
        this.#cautious.add("BLOCK_STATUS");
      }
    }
    return (await this.#status({ offset, length: cautious }, options)).lists;
  }

  async #status(range: Range, options: BlockStatusOptions): Promise<StatusCollector> {
    const { reqOne = false, signal } = options;
    const keep = this.#wantedContexts(options);
    // Ids are those of one connection.
    const { session, negotiated } = leastBusy(this[LANES]);
    const flags = reqOne ? COMMAND_FLAG.REQ_ONE : 0;
    const named = { command: "BLOCK_STATUS", ...range } as const;
    if (keep === undefined || !this.canFilterStatus) {
      const wish = { contexts: negotiated.contexts, reqOne, ...(keep === undefined ? {} : { keep }) };
      const receiver = new StatusCollector(named, wish);
      await session.submit({ request: { ...named, flags }, receiver, signal });
      return receiver;
    }
    const contexts = new Map([...negotiated.contexts].filter(([, name]) => keep.has(name)));
    const payload = encodeStatusFilter(range.length, [...contexts.keys()]);
    const request = { ...named, flags: flags | COMMAND_FLAG.PAYLOAD_LEN, length: payload.length };
    const receiver = new StatusCollector(named, { contexts, reqOne });
    await session.submit({ request, receiver, payload, signal });
    return receiver;
  }

  /** Undefined for all. */
  #wantedContexts({ contexts }: StatusOptions): ReadonlySet<string> | undefined {
    if (contexts === undefined) return undefined;
    const wanted = new Set(contexts);
    if (wanted.size === 0 || !contexts.every((name) => this.contexts.includes(name))) {
      const has = this.contexts.join(", ");
      const got = contexts.length === 0 ? "none" : contexts.join(", ");
      throw new NbdError("INVALID_ARGUMENT", `Expected contexts of this connection (${has}), got ${got}`);
    }
    return wanted.size === this.contexts.length ? undefined : wanted;
  }

  #acknowledged(
    command: CommandName,
    { offset, length }: Range,
    flags: number,
    signal: AbortSignal | undefined,
    payload?: Uint8Array,
  ): Promise<void> {
    const request = { command, flags, offset, length };
    const receiver = new AckReceiver(request);
    return leastBusy(this[LANES]).session.submit({ request, receiver, payload, signal });
  }

  #inPieces(
    range: Range,
    pieceBytes: number,
    run: (offset: number, length: number) => Promise<void>,
  ): Promise<void> {
    // Most calls are one piece, and lanes cost more than all the rest of a small request.
    if (range.length > 0 && range.length <= pieceBytes) return run(range.offset, range.length);
    const concurrency = LIMIT.piecesInFlight * this[LANES].length;
    return inPieces(range, { pieceBytes, alignBytes: this.#sizes.alignBytes, concurrency }, run);
  }

  /** How to make a write durable at once, if that is asked for: by its flag, or else by a flush after it. */
  #checkWritable(command: string, { fua }: WriteOptions): { flags: number; byFlush: boolean } {
    if (this.readOnly) {
      throw new NbdError("READ_ONLY", `Expected a writable export for ${command}, it is read-only`);
    }
    if (fua !== true) return { flags: 0, byFlush: false };
    this.#checkSupport(this.canFua || this.canFlush, "FUA, nor FLUSH in its place,");
    return { flags: this.canFua ? COMMAND_FLAG.FUA : 0, byFlush: !this.canFua };
  }

  #checkSupport(supported: boolean, what: string): void {
    if (!supported) throw new NbdError("NOT_SUPPORTED", `The server does not offer ${what} for this export`);
  }

  #checkAlignedRange(command: string, offset: number, length: number): void {
    checkRange(command, this.#shape, offset, length);
    checkAligned(command, this.#shape, offset, length);
  }
}
