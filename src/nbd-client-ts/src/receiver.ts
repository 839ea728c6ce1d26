import { NbdError, type NbdErrno } from "./errors.js";

/** The range of a request, and its command for messages. */
export interface RequestRange {
  readonly command: string;
  readonly offset: number;
  readonly length: number;
}

/** An error that the server answered a request with. */
export interface ServerError {
  readonly errno: NbdErrno;
  readonly text: string;
  /** Where it happened, if the server said so. */
  readonly offset?: number;
}

/** Collects the reply to one request. Methods throw for what no correct server sends. */
export abstract class Receiver {
  readonly range: RequestRange;
  /** The caller has gone: the rest of the reply is checked, but its payload is dropped. */
  abandoned = false;
  #error: ServerError | undefined;

  constructor(range: RequestRange) {
    this.range = range;
  }

  /** The first error of the reply: later ones are mostly its consequences. */
  get error(): ServerError | undefined {
    return this.#error;
  }

  fail(error: ServerError): void {
    const { offset, length } = this.range;
    if (error.offset !== undefined && (error.offset < offset || error.offset >= offset + length)) {
      throw this.violation("CHUNK_OUT_OF_RANGE", `an error at offset ${error.offset}`);
    }
    this.#error ??= error;
  }

  /** Called at the end of a reply without error: throws if something is missing. */
  abstract complete(): void;

  violation(
    code: "BAD_REPLY" | "CHUNK_OUT_OF_RANGE" | "CHUNK_OVERLAP" | "READ_INCOMPLETE" | "BAD_BLOCK_STATUS",
    what: string,
  ): NbdError {
    return new NbdError(code, `The server answered ${describeRange(this.range)} with ${what}`, this.range);
  }
}

/** For commands whose reply has no content. */
export class AckReceiver extends Receiver {
  readonly kind = "ack";

  override complete(): void {
    // nothing to miss
  }
}

export function describeRange(range: RequestRange): string {
  return `${range.command} of ${range.length} bytes at ${range.offset}`;
}

/** What the caller sees when the server answered with an error. */
export function requestFailed(range: RequestRange, error: ServerError): NbdError {
  const where = error.offset === undefined ? "" : ` at offset ${error.offset}`;
  const quoted = error.text === "" ? "" : `: ${error.text}`;
  return new NbdError(
    "REQUEST_FAILED",
    `${describeRange(range)} failed with ${error.errno}${where}${quoted}`,
    {
      ...range,
      errno: error.errno,
      serverText: error.text,
    },
  );
}
