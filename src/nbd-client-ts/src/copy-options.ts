import { LIMIT } from "./constants.js";
import { NbdError } from "./errors.js";
import type { NbdExport } from "./nbd-export.js";

/** What alignment costs nothing: most file systems and images know no smaller blocks. */
export const COPY_BLOCK_BYTES = 4096;
/** More than 8 MiB in flight fall out of the processor's cache. */
const DEFAULT_BUFFERS = 4;
const MAXIMUM_BUFFER_BYTES = 32 << 20;

export interface CopyOptions {
  /** The part to copy, in bytes, to the same place; default: all of the source. A multiple of the destination's block size. */
  readonly offset?: number;
  readonly length?: number;
  /** The destination reads as zeroes already, such as a new image: zeroes are left out. Default false. */
  readonly destinationIsZero?: boolean;
  /** Size of one buffer and of the largest request; a power of two from 4 KiB to 32 MiB, default 2 MiB. */
  readonly bufferBytes?: number;
  /** How many buffers, and thereby requests at once, there are: 1 to 16, default 4. */
  readonly buffers?: number;
  /** Flush the destination at the end where it can be, default true. */
  readonly flush?: boolean;
  /**
   * Sets the pace: called before each read with its size, at most `bufferBytes`; the read begins when it has resolved. The signal
   * fires when the copy stops. What it throws stops the copy.
   */
  readonly beforeRead?: (bytes: number, signal: AbortSignal) => Promise<void> | undefined;
  /** Called whenever a piece is done. What it throws stops the copy. */
  readonly onProgress?: (progress: CopyProgress) => void;
  readonly signal?: AbortSignal;
}

export interface CopyProgress {
  /** Everything from the start to this offset is at the destination; a copy can be resumed from here. */
  readonly doneOffset: number;
  /** Read from the source and written, in any order. */
  readonly copiedBytes: number;
  /** Made zero at the destination without being read. */
  readonly zeroedBytes: number;
  /** Zero at the source, and left out since the destination is zero. */
  readonly skippedBytes: number;
}

export type CopySide = "source" | "destination";

/** Why a copy stopped, as an `NbdError` like its cause, and how far it had come. */
export class NbdCopyError extends NbdError {
  /** Whose request or connection failed; undefined after an abort. */
  readonly side: CopySide | undefined;
  /** After the last acknowledged write. Beyond `doneOffset` the destination may have anything of both. */
  readonly progress: CopyProgress;

  constructor(side: CopySide | undefined, cause: NbdError, progress: CopyProgress) {
    const { errno, serverText, command, offset, length } = cause;
    super(
      cause.code,
      `The copy stopped at offset ${progress.doneOffset}${side === undefined ? "" : ` at the ${side}`}: ${cause.message}`,
      {
        cause,
        ...(errno === undefined ? {} : { errno }),
        ...(serverText === undefined ? {} : { serverText }),
        ...(command === undefined ? {} : { command }),
        ...(offset === undefined ? {} : { offset }),
        ...(length === undefined ? {} : { length }),
      },
    );
    this.side = side;
    this.progress = progress;
  }
}

export interface CopyPlan {
  readonly offset: number;
  readonly length: number;
  readonly bufferBytes: number;
  readonly buffers: number;
}

/** Throws an `NbdError` of scope `usage` for what cannot be copied. */
export function planCopy(source: NbdExport, destination: NbdExport, options: CopyOptions): CopyPlan {
  const { offset = 0, bufferBytes = LIMIT.payloadBytes, buffers = DEFAULT_BUFFERS } = options;
  const length = options.length ?? source.sizeBytes - offset;
  const sizes = [source.sizeBytes, destination.sizeBytes] as const;
  if (!isCount(offset) || !isCount(length) || offset + length > Math.min(...sizes)) {
    throw new NbdError(
      "OUT_OF_RANGE",
      `Expected a range within both exports, got ${length} bytes at ${offset}; the source has ${sizes[0]} bytes, the destination ${sizes[1]}`,
      { offset, length },
    );
  }
  if (destination.readOnly) {
    throw new NbdError("READ_ONLY", "Expected a writable export to copy to, it is read-only");
  }
  checkOption("bufferBytes", bufferBytes, COPY_BLOCK_BYTES, MAXIMUM_BUFFER_BYTES);
  if (!Number.isInteger(Math.log2(bufferBytes))) {
    throw new NbdError("INVALID_ARGUMENT", `Expected a power of two as bufferBytes, got ${bufferBytes}`);
  }
  checkOption("buffers", buffers, 1, LIMIT.inFlight);
  return { offset, length, bufferBytes, buffers };
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function checkOption(name: string, value: number, minimum: number, maximum: number): void {
  if (Number.isInteger(value) && value >= minimum && value <= maximum) return;
  throw new NbdError("INVALID_ARGUMENT", `Expected ${name} between ${minimum} and ${maximum}, got ${value}`);
}
