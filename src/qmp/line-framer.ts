/** A complete line, or the reason why the stream cannot be read any further. */
export type Frame =
  | { readonly kind: "line"; readonly text: string }
  | { readonly kind: "too-long"; readonly maxLineBytes: number }
  | { readonly kind: "not-utf8"; readonly lineBytes: number };

const lineFeed = 0x0a;
const carriageReturn = 0x0d;

/**
 * Cuts a byte stream into lines. QEMU ends each message with CR LF; a bare LF is accepted too, and empty lines are
 * skipped. The sequence of frames is the same for any chunking of the stream. After a frame that is not a line the
 * framer stays silent, because what follows cannot be trusted.
 */
export class LineFramer {
  readonly #maxLineBytes: number;
  readonly #decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  #parts: Uint8Array[] = [];
  #partBytes = 0;
  #broken = false;

  /** `maxLineBytes` counts what comes before the LF, a CR included. */
  constructor(maxLineBytes: number) {
    this.#maxLineBytes = maxLineBytes;
  }

  /** Bytes of a line whose end has not come yet. */
  get unfinishedBytes(): number {
    return this.#partBytes;
  }

  /** Takes the next bytes, which it may keep, and returns the frames that they complete. */
  push(chunk: Uint8Array): Frame[] {
    const frames: Frame[] = [];
    let start = 0;
    while (!this.#broken) {
      const end = chunk.indexOf(lineFeed, start);
      const piece = chunk.subarray(start, end === -1 ? chunk.length : end);
      if (this.#partBytes + piece.length > this.#maxLineBytes) {
        frames.push(this.#break({ kind: "too-long", maxLineBytes: this.#maxLineBytes }));
      } else {
        this.#keep(piece);
        if (end === -1) break;
        const frame = this.#takeLine();
        if (frame !== undefined) frames.push(frame);
      }
      start = end + 1;
    }
    return frames;
  }

  #keep(piece: Uint8Array): void {
    if (piece.length === 0) return;
    this.#parts.push(piece);
    this.#partBytes += piece.length;
  }

  /** Decodes only whole lines, so that a character split over chunks needs no care. */
  #takeLine(): Frame | undefined {
    const whole = Buffer.concat(this.#parts, this.#partBytes);
    this.#parts = [];
    this.#partBytes = 0;
    const line = whole.at(-1) === carriageReturn ? whole.subarray(0, -1) : whole;
    if (line.length === 0) return undefined;
    try {
      return { kind: "line", text: this.#decoder.decode(line) };
    } catch {
      return this.#break({ kind: "not-utf8", lineBytes: line.length });
    }
  }

  #break(frame: Frame): Frame {
    this.#broken = true;
    this.#parts = [];
    this.#partBytes = 0;
    return frame;
  }
}
