import { Writable } from "node:stream";
import { errnoOf } from "../shared/errors.js";

/** Where a command prints: the process's own streams, or a test's. */
export interface TextStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

/**
 * A reader that went away (`| head`) is no error, and must not stop the work. Anything else that keeps output from
 * being written is: a script would take half an answer for a whole one.
 */
export function tolerateClosedPipes(onFailure: (error: Error) => void): void {
  process.stderr.on("error", () => undefined);
  process.stdout.on("error", (error: Error) => {
    if (errnoOf(error) !== "EPIPE") onFailure(error);
  });
}

/** For libraries that want a stream of Node's. Nothing is buffered. */
export class StreamAdapter extends Writable {
  readonly #stream: TextStream;

  constructor(stream: TextStream) {
    super({
      decodeStrings: false,
      write(chunk, _encoding, done) {
        stream.write(String(chunk));
        done();
      },
    });
    this.#stream = stream;
  }

  get isTTY(): boolean {
    return this.#stream.isTTY === true;
  }

  /** Asked each time, since a window may be resized. */
  get columns(): number {
    return this.#stream.columns ?? 80;
  }
}
