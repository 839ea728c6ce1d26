import { COMMAND_FLAG, LIMIT, TRANSMISSION_FLAG, type CommandName } from "./constants.js";
import { NbdError } from "./errors.js";
import { walkExtents, type MappedExtent } from "./extents.js";
import type { Negotiated } from "./handshake.js";
import type { BlockSize } from "./option-go.js";
import { inPieces } from "./pieces.js";
import type {
  BlockStatusOptions,
  ExtentsOptions,
  ReadOptions,
  RequestOptions,
  WriteOptions,
  WriteZeroesOptions,
} from "./options.js";
import { checkAligned, checkRange, widen, type ExportShape } from "./range.js";
import { ReadAssembler } from "./read-assembler.js";
import { AckReceiver } from "./receiver.js";
import type { Request } from "./request.js";
import type { Session } from "./session.js";
import { StatusCollector, type Extent } from "./status-collector.js";

/**
 * One connection to one export. Calls may overlap: their requests are pipelined. Offsets and lengths are in bytes.
 * All methods reject with an `NbdError`; those of scope `connection` mean that the connection is dead.
 */
export class NbdConnection implements AsyncDisposable {
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
  readonly canMultiConn: boolean;
  readonly structuredReplies: boolean;
  readonly #session: Session;
  readonly #contexts: Negotiated["contexts"];
  readonly #shape: ExportShape;
  readonly #payloadBytes: number;

  /** Use `connectNbd`. */
  constructor(session: Session, exportName: string, negotiated: Negotiated) {
    const flags = negotiated.transmissionFlags;
    // Without HAS_FLAGS the others mean nothing.
    const has = (flag: number) => (flags & TRANSMISSION_FLAG.HAS_FLAGS) !== 0 && (flags & flag) !== 0;
    this.exportName = exportName;
    this.sizeBytes = negotiated.sizeBytes;
    this.blockSize = negotiated.blockSize;
    this.contexts = [...negotiated.contexts.values()];
    this.readOnly = has(TRANSMISSION_FLAG.READ_ONLY);
    this.canFlush = has(TRANSMISSION_FLAG.SEND_FLUSH);
    this.canFua = has(TRANSMISSION_FLAG.SEND_FUA);
    this.canTrim = has(TRANSMISSION_FLAG.SEND_TRIM);
    this.canWriteZeroes = has(TRANSMISSION_FLAG.SEND_WRITE_ZEROES);
    this.canFastZero = has(TRANSMISSION_FLAG.SEND_FAST_ZERO);
    this.canDf = has(TRANSMISSION_FLAG.SEND_DF);
    this.canMultiConn = has(TRANSMISSION_FLAG.CAN_MULTI_CONN);
    this.structuredReplies = negotiated.structuredReplies;
    this.#session = session;
    this.#contexts = negotiated.contexts;
    this.#shape = { sizeBytes: this.sizeBytes, minimumBytes: this.blockSize.minimumBytes };
    const { minimumBytes, maximumBytes } = this.blockSize;
    const payloadBytes = Math.min(LIMIT.payloadBytes, maximumBytes);
    this.#payloadBytes = payloadBytes - (payloadBytes % minimumBytes);
  }

  /** Settles when the connection is over: with undefined after `close`, else with the error that ended it. */
  get closed(): Promise<NbdError | undefined> {
    return this.#session.closed;
  }

  /** Reads any range within the export. Either all of its bytes are what the server sent, or it rejects. */
  async read(offset: number, length: number, options: ReadOptions = {}): Promise<Uint8Array> {
    const { into, signal } = options;
    checkRange("READ", this.#shape, offset, length);
    if (into !== undefined && into.length !== length) {
      throw new NbdError(
        "INVALID_ARGUMENT",
        `Expected a buffer of ${length} bytes to read into, got ${into.length}`,
      );
    }
    const wide = widen(this.#shape, offset, length);
    if (wide.length !== length) {
      const all = await this.read(wide.offset, wide.length, signal === undefined ? {} : { signal });
      const part = all.subarray(offset - wide.offset, offset - wide.offset + length);
      into?.set(part);
      return into ?? part;
    }
    const target = into ?? Buffer.allocUnsafeSlow(length);
    await this.#inPieces(offset, length, this.#payloadBytes, async (at, count) => {
      const memory = target.subarray(at - offset, at - offset + count);
      const range = { command: "READ", offset: at, length: count } as const;
      await this.#session.submit({
        request: { ...range, flags: 0 },
        receiver: new ReadAssembler(range, memory),
        signal,
      });
    });
    return target;
  }

  /** Writes all of `data`, which must not change until the promise settles. Safe to repeat. */
  async write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    this.#checkWritable("WRITE", options);
    this.#checkAlignedRange("WRITE", offset, data.length);
    await this.#inPieces(offset, data.length, this.#payloadBytes, async (at, count) => {
      const payload = data.subarray(at - offset, at - offset + count);
      await this.#acknowledged(this.#request("WRITE", at, count, fuaFlag(options)), options.signal, payload);
    });
  }

  /** Makes a range read as zeroes, of any length. Safe to repeat. */
  async writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): Promise<void> {
    this.#checkWritable("WRITE_ZEROES", options);
    this.#checkSupport(this.canWriteZeroes, "WRITE_ZEROES");
    if (options.fastZero === true) this.#checkSupport(this.canFastZero, "FAST_ZERO");
    this.#checkAlignedRange("WRITE_ZEROES", offset, length);
    const flags =
      fuaFlag(options) |
      (options.noHole === true ? COMMAND_FLAG.NO_HOLE : 0) |
      (options.fastZero === true ? COMMAND_FLAG.FAST_ZERO : 0);
    await this.#inPieces(offset, length, LIMIT.zeroBytes, async (at, count) => {
      await this.#acknowledged(this.#request("WRITE_ZEROES", at, count, flags), options.signal);
    });
  }

  /** Tells the server that a range's content is no longer needed. What it reads as afterwards is undefined. */
  async trim(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    this.#checkWritable("TRIM", options);
    this.#checkSupport(this.canTrim, "TRIM");
    this.#checkAlignedRange("TRIM", offset, length);
    await this.#inPieces(offset, length, LIMIT.zeroBytes, async (at, count) => {
      await this.#acknowledged(this.#request("TRIM", at, count, fuaFlag(options)), options.signal);
    });
  }

  /** Puts every write that was acknowledged before this call on stable storage. */
  async flush(options: RequestOptions = {}): Promise<void> {
    this.#checkSupport(this.canFlush, "FLUSH");
    await this.#acknowledged(this.#request("FLUSH", 0, 0, 0), options.signal);
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
    if (length === 0 || length > LIMIT.wireLengthBytes) {
      throw new NbdError(
        "OUT_OF_RANGE",
        `Expected a length between 1 and 2^32 - 1 for BLOCK_STATUS, got ${length}`,
      );
    }
    const reqOne = options.reqOne === true;
    const range = { command: "BLOCK_STATUS", offset, length } as const;
    const receiver = new StatusCollector(range, this.#contexts, reqOne);
    const request = { ...range, flags: reqOne ? COMMAND_FLAG.REQ_ONE : 0 };
    await this.#session.submit({ request, receiver, signal: options.signal });
    return receiver.result;
  }

  /** The status of a range in all contexts together: in order, without gaps, neighbours always different. */
  async *extents(options: ExtentsOptions = {}): AsyncGenerator<MappedExtent, void, undefined> {
    const offset = options.offset ?? 0;
    const length = options.length ?? this.sizeBytes - offset;
    checkRange("BLOCK_STATUS", this.#shape, offset, length);
    const { signal } = options;
    const query = (at: number, count: number) =>
      this.blockStatus(at, count, signal === undefined ? {} : { signal });
    yield* walkExtents(query, {
      offset,
      length,
      alignmentBytes: this.blockSize.minimumBytes,
      exportBytes: this.sizeBytes,
      queryBytes: LIMIT.statusBytes,
    });
  }

  /** Waits for the replies that the server owes, then disconnects in good order. Idempotent, never rejects. */
  async close(): Promise<void> {
    await this.#session.close();
  }

  /** Ends the connection at once; calls in flight fail with `CLOSED`. Idempotent. */
  destroy(): void {
    this.#session.destroy(new NbdError("CLOSED", "The connection was destroyed"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #request(command: CommandName, offset: number, length: number, flags: number): Request {
    return { command, flags, offset, length };
  }

  async #acknowledged(
    request: Request,
    signal: AbortSignal | undefined,
    payload?: Uint8Array,
  ): Promise<void> {
    const { command, offset, length } = request;
    const receiver = new AckReceiver({ command, offset, length });
    await this.#session.submit({ request, receiver, signal, ...(payload === undefined ? {} : { payload }) });
  }

  async #inPieces(
    offset: number,
    length: number,
    pieceBytes: number,
    run: (offset: number, length: number) => Promise<void>,
  ): Promise<void> {
    await inPieces({ offset, length }, { pieceBytes, concurrency: LIMIT.piecesInFlight }, run);
  }

  #checkWritable(command: string, options: WriteOptions): void {
    if (this.readOnly)
      throw new NbdError("READ_ONLY", `Expected a writable export for ${command}, it is read-only`);
    if (options.fua === true) this.#checkSupport(this.canFua, "FUA");
  }

  #checkSupport(supported: boolean, what: string): void {
    if (!supported) throw new NbdError("NOT_SUPPORTED", `The server does not offer ${what} for this export`);
  }

  #checkAlignedRange(command: string, offset: number, length: number): void {
    checkRange(command, this.#shape, offset, length);
    checkAligned(command, this.#shape, offset, length);
  }
}

function fuaFlag(options: WriteOptions): number {
  return options.fua === true ? COMMAND_FLAG.FUA : 0;
}
