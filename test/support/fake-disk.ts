import type { BitmapStep } from "../../src/model/checkpoint.js";
import { byOrder, parseBitmapName } from "../../src/model/checkpoint.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { DiskFormat, DiskState } from "../../src/model/snapshot-plan.js";
import { FleeceError } from "../../src/shared/errors.js";

/** A dirty bitmap: the numbers of the changed blocks. */
export interface FakeBitmap {
  readonly blocks: Set<number>;
  readonly persistent: boolean;
  recording: boolean;
  inconsistent: boolean;
  /** In the image when the QEMU process opened it. Others reach the image only when that process ends cleanly. */
  loaded: boolean;
}

/** One disk image with its bitmaps, as a QEMU process or, between two of them, `qemu-img` sees it. */
export class FakeDisk {
  readonly target: string;
  readonly format: DiskFormat;
  readonly content: Buffer;
  /** Exports of a running domain's disk are staged. */
  staged = false;
  /** Counts what changes the image file, as its modification time would tell. */
  version = 0;
  #bitmaps = new Map<string, FakeBitmap>();

  constructor(target: string, format: DiskFormat, sizeBytes: number) {
    this.target = target;
    this.format = format;
    this.content = Buffer.alloc(sizeBytes);
  }

  get file(): string {
    return `/images/${this.target}.${this.format}`;
  }

  get bitmaps(): ReadonlyMap<string, FakeBitmap> {
    return this.#bitmaps;
  }

  fill(offset: number, length: number, pattern: number): void {
    this.content.fill(pattern, offset, offset + length);
    this.version++;
    const last = Math.floor((offset + length - 1) / BLOCK_SIZE);
    for (const bitmap of this.#bitmaps.values()) {
      if (!bitmap.recording || bitmap.inconsistent) continue;
      for (let block = Math.floor(offset / BLOCK_SIZE); block <= last; block++) bitmap.blocks.add(block);
    }
  }

  /** One step; QEMU_FAILED for what QEMU refuses. */
  apply(step: BitmapStep, running: boolean): void {
    this.version++;
    if (step.action === "add") {
      this.#add(step, running);
      return;
    }
    const bitmap = this.#named(step.bitmap);
    switch (step.action) {
      case "remove":
        this.#bitmaps.delete(step.bitmap);
        return;
      case "enable":
      case "disable":
        requireConsistent(step.bitmap, bitmap);
        bitmap.recording = step.action === "enable";
        return;
      case "merge": {
        const source = this.#named(step.source);
        requireConsistent(step.bitmap, bitmap);
        requireConsistent(step.source, source);
        for (const block of source.blocks) bitmap.blocks.add(block);
      }
    }
  }

  /** The union of bitmaps, as it stands now. */
  merged(names: readonly string[]): ReadonlySet<number> {
    return new Set(
      names.flatMap((name) => {
        const bitmap = this.#named(name);
        requireConsistent(name, bitmap);
        return [...bitmap.blocks];
      }),
    );
  }

  /** Puts the bitmaps back as they are now, when called. */
  checkpointBitmaps(): () => void {
    const copy = new Map([...this.#bitmaps].map(([name, bitmap]) => [name, copyOf(bitmap)]));
    return () => {
      this.#bitmaps = copy;
    };
  }

  /** A QEMU process opens the image for writing: every bitmap in it is marked in use. */
  open(): void {
    if (this.#bitmaps.size > 0) this.version++;
    for (const bitmap of this.#bitmaps.values()) bitmap.loaded = true;
  }

  /** The QEMU process ends. `crash`: nothing is saved, and what it had loaded stays marked in use. */
  close(how: "clean" | "crash"): void {
    this.version++;
    for (const [name, bitmap] of this.#bitmaps) {
      if (!bitmap.persistent || (how === "crash" && !bitmap.loaded)) this.#bitmaps.delete(name);
      else if (how === "crash") bitmap.inconsistent = true;
    }
  }

  state(running: boolean): DiskState {
    const checkpoints = [...this.#bitmaps].flatMap(([name, bitmap]) => {
      const checkpoint = parseBitmapName(name);
      if (checkpoint === undefined) return [];
      const { blocks, recording, inconsistent, persistent } = bitmap;
      const common = { ...checkpoint, bitmap: name, recording, inconsistent, persistent, busy: false };
      const dirty = running ? { dirtyBytes: blocks.size * BLOCK_SIZE } : {};
      return [{ ...common, granularityBytes: BLOCK_SIZE, ...dirty }];
    });
    return {
      target: this.target,
      format: this.format,
      file: this.file,
      sizeBytes: this.content.length,
      checkpoints: checkpoints.toSorted(byOrder),
      ...(running && this.staged ? { staged: true as const } : {}),
      foreignBitmaps: [...this.#bitmaps.keys()].filter((name) => parseBitmapName(name) === undefined),
    };
  }

  #add(step: Extract<BitmapStep, { action: "add" }>, running: boolean): void {
    const { bitmap, persistent } = step;
    if (this.#bitmaps.has(bitmap)) throw refused(`Bitmap already exists: ${bitmap}`);
    if (persistent && this.format === "raw") throw refused("The format cannot store a bitmap");
    this.#bitmaps.set(bitmap, {
      blocks: new Set(),
      persistent,
      recording: true,
      inconsistent: false,
      loaded: !running,
    });
  }

  #named(name: string): FakeBitmap {
    const bitmap = this.#bitmaps.get(name);
    if (bitmap === undefined) throw refused(`Bitmap not found: ${name}`);
    return bitmap;
  }
}

export function refused(words: string): FleeceError {
  return new FleeceError("QEMU_FAILED", words);
}

function requireConsistent(name: string, bitmap: FakeBitmap): void {
  if (bitmap.inconsistent) throw refused(`Bitmap '${name}' is inconsistent and cannot be used`);
}

function copyOf(bitmap: FakeBitmap): FakeBitmap {
  return { ...bitmap, blocks: new Set(bitmap.blocks) };
}
