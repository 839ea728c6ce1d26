import type { Extent } from "../model/extents.js";
import type { ExportAddress } from "../model/snapshot-plan.js";
import type { BlockReader } from "../ports/block-io.js";
import type { BlockExpectations, OpenBackup } from "../ports/repository.js";
import { compareStored, readStored } from "./backup-read.js";
import type { ServiceContext } from "./context.js";

/**
 * A disk of a backup, to be pulled into a copy. What counts as changed is what was stored since a backup of its chain; what
 * is read is compared with its digests, and fails with DAMAGED if it is not what was stored.
 */
export class CopyReader implements BlockReader {
  readonly #target: string;
  readonly #since: string | undefined;
  readonly #reader: BlockReader;
  readonly #expected: BlockExpectations;

  private constructor(
    target: string,
    since: string | undefined,
    reader: BlockReader,
    expected: BlockExpectations,
  ) {
    this.#target = target;
    this.#since = since;
    this.#reader = reader;
    this.#expected = expected;
  }

  /** `since` left out: all of it is changed. The backup must stay open. */
  static async open(
    { readers }: Pick<ServiceContext, "readers">,
    backup: OpenBackup,
    address: ExportAddress,
    { since, signal }: { readonly since: string | undefined; readonly signal: AbortSignal },
  ): Promise<CopyReader> {
    const { target } = address;
    const expected = await backup.expectations(target);
    try {
      return new CopyReader(target, since, await readers.open(address, signal), expected);
    } catch (error) {
      await expected[Symbol.asyncDispose]();
      throw error;
    }
  }

  get sizeBytes(): number {
    return this.#reader.sizeBytes;
  }

  /** By the digests, which also tell what is damaged by having become zero. What was never stored is zero. */
  // eslint-disable-next-line @typescript-eslint/require-await -- it is a list, in the form of a stream
  async *extents(): AsyncGenerator<Extent> {
    const gap = { changed: this.#since === undefined, zero: true };
    let end = 0;
    for (const { offset, length, kind } of this.#expected.runs(this.#since)) {
      if (offset > end) yield { offset: end, length: offset - end, ...gap };
      yield { offset, length, changed: true, zero: kind === "zero" };
      end = offset + length;
    }
    if (this.sizeBytes > end) yield { offset: end, length: this.sizeBytes - end, ...gap };
  }

  async read(offset: number, length: number, signal?: AbortSignal, into?: Uint8Array): Promise<Uint8Array> {
    const run = { offset, length, kind: "data" } as const;
    const data = await readStored(this.#reader, run, into ?? new Uint8Array(length), signal);
    await compareStored(this.#expected, run, data, this.#target);
    return data;
  }

  release(): Promise<void> {
    return Promise.resolve();
  }

  async close(): Promise<void> {
    await this.#reader.close();
    await this.#expected[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
