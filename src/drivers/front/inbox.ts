/** Bytes of a peer that wait to be taken in pieces of known length. How they were cut on the way makes no difference. */
export class Inbox {
  #chunks: Buffer[] = [];
  #bytes = 0;
  #ended: Error | undefined;
  #wanted: { bytes: number; resolve: (bytes: Buffer) => void; reject: (error: Error) => void } | undefined;

  get length(): number {
    return this.#bytes;
  }

  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    this.#deliver();
  }

  /** Nothing comes any more. What has come can still be taken; the first reason stays. */
  end(reason: Error): void {
    this.#ended ??= reason;
    this.#deliver();
  }

  /** Exactly so many bytes; rejects with the reason if they cannot come any more. One call at a time. */
  take(bytes: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#wanted = { bytes, resolve, reject };
      this.#deliver();
    });
  }

  takeAll(): Buffer {
    return this.#cut(this.#bytes);
  }

  #deliver(): void {
    const wanted = this.#wanted;
    if (wanted === undefined) return;
    if (this.#bytes >= wanted.bytes) {
      this.#wanted = undefined;
      wanted.resolve(this.#cut(wanted.bytes));
    } else if (this.#ended !== undefined) {
      this.#wanted = undefined;
      wanted.reject(this.#ended);
    }
  }

  #cut(bytes: number): Buffer {
    const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
    const taken = all?.subarray(0, bytes) ?? Buffer.alloc(0);
    const rest = all?.subarray(bytes);
    this.#chunks = rest === undefined || rest.length === 0 ? [] : [rest];
    this.#bytes -= bytes;
    return taken;
  }
}
