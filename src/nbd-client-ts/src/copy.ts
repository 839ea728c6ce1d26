import { LIMIT } from "./constants.js";
import {
  COPY_BLOCK_BYTES,
  NbdCopyError,
  planCopy,
  type CopyOptions,
  type CopyPlan,
  type CopyProgress,
  type CopySide,
} from "./copy-options.js";
import { alignRuns, cutRun, type CopyRun } from "./copy-runs.js";
import { abortError, NbdError } from "./errors.js";
import type { NbdExport } from "./nbd-export.js";

const ALLOCATION = "base:allocation";
/** Of `base:allocation`: reads as zeroes. A hole alone may read as anything. */
const STATE_ZERO = 2;

/**
 * Copies an export to another of at least its size. If the source was connected with `base:allocation`, zeroes are
 * neither read nor written as data. Both stay connected, also after an error. Safe to repeat.
 *
 * Rejects with `NbdCopyError` at the first failure or abort; nothing new is sent then. A piece that could not be read
 * is never written, and never counted.
 */
export async function copyExport(
  source: NbdExport,
  destination: NbdExport,
  options: CopyOptions = {},
): Promise<CopyProgress> {
  return await new Copy(source, destination, options).run();
}

class Copy {
  readonly #source: NbdExport;
  readonly #destination: NbdExport;
  readonly #options: CopyOptions;
  readonly #plan: CopyPlan;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  readonly #unfinished = new Set<CopyRun>();
  #handedOutOffset: number;
  #counts = { copiedBytes: 0, zeroedBytes: 0, skippedBytes: 0 };
  #failure: { readonly error: unknown } | undefined;
  #zeroes: Uint8Array | undefined;

  constructor(source: NbdExport, destination: NbdExport, options: CopyOptions) {
    this.#source = source;
    this.#destination = destination;
    this.#options = options;
    this.#plan = planCopy(source, destination, options);
    this.#handedOutOffset = this.#plan.offset;
    const own = this.#stop.signal;
    this.#signal = options.signal === undefined ? own : AbortSignal.any([options.signal, own]);
  }

  async run(): Promise<CopyProgress> {
    if (this.#plan.length >= LIMIT.worthWarmUpBytes) {
      const warmUp = (side: CopySide, end: NbdExport) => this.#at(side, end.warmUp(this.#abortable()));
      await this.#attempt(async () => {
        await Promise.all([warmUp("source", this.#source), warmUp("destination", this.#destination)]);
      });
    }
    const pieces = this.#pieces();
    await Promise.all(Array.from({ length: this.#plan.buffers }, () => this.#lane(pieces)));
    if (this.#failure === undefined && this.#options.flush !== false && this.#destination.canFlush) {
      await this.#attempt(() => this.#at("destination", this.#destination.flush(this.#abortable())));
    }
    if (this.#failure !== undefined) throw this.#failure.error;
    return this.#progress();
  }

  /** A buffer and the one piece at a time that is in it: nothing is read before there is room for it. */
  async #lane(pieces: AsyncGenerator<CopyRun>): Promise<void> {
    let buffer: Uint8Array | undefined;
    await this.#attempt(async () => {
      for (let next = await pieces.next(); next.done !== true; next = await pieces.next()) {
        const piece = next.value;
        if (piece.zero) {
          await this.#zero(piece);
        } else {
          buffer ??= Buffer.allocUnsafeSlow(Math.min(this.#plan.bufferBytes, this.#plan.length));
          await this.#move(piece, buffer.subarray(0, piece.length));
        }
        this.#unfinished.delete(piece);
        this.#options.onProgress?.(this.#progress());
      }
    });
  }

  async #move({ offset, length }: CopyRun, into: Uint8Array): Promise<void> {
    const signal = this.#signal;
    await this.#pause(length);
    await this.#at("source", this.#source.read(offset, length, { into, signal }));
    await this.#at("destination", this.#destination.write(offset, into, { signal }));
    this.#counts.copiedBytes += length;
  }

  async #pause(length: number): Promise<void> {
    try {
      await this.#options.beforeRead?.(length, this.#signal);
    } catch (error) {
      throw this.#signal.aborted ? abortError(this.#signal, "The copy") : error;
    }
  }

  async #zero(piece: CopyRun): Promise<void> {
    const { offset, length } = piece;
    if (this.#options.destinationIsZero === true) {
      this.#counts.skippedBytes += length;
      return;
    }
    if (this.#destination.canWriteZeroes) {
      await this.#at("destination", this.#destination.writeZeroes(offset, length, this.#abortable()));
    } else {
      const zeroes = (this.#zeroes ??= Buffer.alloc(this.#plan.bufferBytes));
      for (const part of cutRun(piece, zeroes.length)) {
        const data = zeroes.subarray(0, part.length);
        await this.#at("destination", this.#destination.write(part.offset, data, this.#abortable()));
      }
    }
    this.#counts.zeroedBytes += length;
  }

  async *#pieces(): AsyncGenerator<CopyRun> {
    const blockBytes = Math.max(COPY_BLOCK_BYTES, this.#destination.blockSize.minimumBytes);
    for await (const run of alignRuns(this.#runs(), blockBytes)) {
      for (const piece of cutRun(run, run.zero ? LIMIT.zeroBytes : this.#plan.bufferBytes)) {
        if (this.#signal.aborted) throw abortError(this.#signal, "The copy");
        this.#handedOutOffset = piece.offset + piece.length;
        this.#unfinished.add(piece);
        yield piece;
      }
    }
  }

  /** A server that cannot say what is zero, or fails to, has only data. */
  async *#runs(): AsyncGenerator<CopyRun> {
    const { offset, length } = this.#plan;
    const end = offset + length;
    let position = offset;
    if (this.#source.contexts.includes(ALLOCATION)) {
      try {
        const what = { offset, length, contexts: [ALLOCATION], signal: this.#signal };
        for await (const extent of this.#source.extents(what)) {
          const zero = ((extent.flags[ALLOCATION] ?? 0) & STATE_ZERO) !== 0;
          yield { offset: extent.offset, length: extent.length, zero };
          position = extent.offset + extent.length;
        }
      } catch (error) {
        if (!(error instanceof NbdError) || error.code !== "REQUEST_FAILED")
          throw this.#asFailure("source", error);
      }
    }
    if (position < end) yield { offset: position, length: end - position, zero: false };
  }

  async #at<T>(side: CopySide, call: Promise<T>): Promise<void> {
    try {
      await call;
    } catch (error) {
      throw this.#asFailure(side, error);
    }
  }

  #asFailure(side: CopySide | undefined, error: unknown): unknown {
    if (!(error instanceof NbdError) || error instanceof NbdCopyError) return error;
    return new NbdCopyError(error.code === "ABORTED" ? undefined : side, error, this.#progress());
  }

  /** Keeps the first failure, with which all lanes stop. */
  async #attempt(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      this.#failure ??= { error: this.#asFailure(undefined, error) };
      this.#stop.abort(error);
    }
  }

  #progress(): CopyProgress {
    let doneOffset = this.#handedOutOffset;
    for (const { offset } of this.#unfinished) doneOffset = Math.min(doneOffset, offset);
    return { doneOffset, ...this.#counts };
  }

  #abortable(): { signal: AbortSignal } {
    return { signal: this.#signal };
  }
}
