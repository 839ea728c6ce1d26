import { BLOCK_SIZE } from "../model/extents.js";
import type { BlockExpectations } from "../ports/repository.js";
import { FleeceError } from "../shared/errors.js";
import { GIB } from "../shared/units.js";
import type { ServiceContext } from "./context.js";
import { noteMissedChange } from "./doubts.js";

/** Of one disk in one backup. */
const MOST_SAMPLED_BYTES = GIB;

export interface SampledBlock {
  readonly offset: number;
  readonly length: number;
  readonly kind: "unchanged";
}

export interface SampledDisk {
  readonly domain: string;
  readonly target: string;
  readonly sizeBytes: number;
  /** The frozen moment, or the parent's if that is later. */
  readonly timeMs: number;
}

/** Blocks of one disk, taken at random from what bitmaps call unchanged, to be compared with the parent's digests. */
export class ChangeSample {
  readonly #context: ServiceContext;
  readonly #disk: SampledDisk;
  readonly #expected: BlockExpectations;
  readonly #share: number;
  #left = MOST_SAMPLED_BYTES / BLOCK_SIZE;
  /** How many blocks come before the next of the sample. */
  #skip: number;

  constructor(context: ServiceContext, disk: SampledDisk, expected: BlockExpectations) {
    this.#context = context;
    this.#disk = disk;
    this.#expected = expected;
    // So that the end of a large disk has its part, too.
    this.#share = Math.min(context.sampleShare, MOST_SAMPLED_BYTES / disk.sizeBytes);
    this.#skip = this.#distance();
  }

  /** Those of an unchanged stretch of whole blocks; stretches must ascend. */
  *pick(offset: number, end: number): Generator<SampledBlock> {
    let at = offset;
    while (this.#left > 0 && this.#skip * BLOCK_SIZE < end - at) {
      at += this.#skip * BLOCK_SIZE;
      const length = Math.min(BLOCK_SIZE, end - at);
      yield { offset: at, length, kind: "unchanged" };
      at += length;
      this.#left--;
      this.#skip = this.#distance();
    }
    this.#skip -= Math.ceil((end - at) / BLOCK_SIZE);
  }

  /** Fails with CHECKPOINT_INVALID if the block has changed, and has then noted durably that the disk is to be compared. */
  async check(offset: number, data: Uint8Array): Promise<void> {
    const mismatch = await this.#expected.firstMismatch(offset, data);
    if (mismatch === undefined) return;
    const { domain, target, timeMs } = this.#disk;
    const when = new Date(timeMs).toISOString();
    const reason = `a sample at ${when} found its block at byte ${offset} changed, which its bitmaps had not recorded`;
    this.#context.meter.changeMissed(domain);
    await noteMissedChange(this.#context, domain, target, { timeMs, reason });
    throw new FleeceError("CHECKPOINT_INVALID", `Disk ${target}: ${reason}`, {
      facts: { domain, target, missedAt: offset },
    });
  }

  /** Geometrically distributed: as if each block were drawn by itself. */
  #distance(): number {
    if (this.#share >= 1) return 0;
    return Math.floor(Math.log(1 - Math.random()) / Math.log(1 - this.#share));
  }
}

/** The error of `check`: the same backup can be taken again, and will compare the disk. */
export function isMissedChange({ code, facts }: FleeceError): boolean {
  return code === "CHECKPOINT_INVALID" && typeof facts["missedAt"] === "number";
}
