import type { ScratchSpace } from "../../src/ports/scratch-space.js";
import { FleeceError } from "../../src/shared/errors.js";

/** A scratch directory in memory: a test says what the files take, and what is free. */
export class FakeScratch implements ScratchSpace {
  reserveBytes = 0;
  free = 2 ** 40;
  used = 0;

  check(): Promise<void> {
    if (this.free >= this.reserveBytes) return Promise.resolve();
    return Promise.reject(
      new FleeceError("NO_SPACE", "The scratch directory has less free than the reserve"),
    );
  }

  checkFile(): Promise<void> {
    return Promise.resolve();
  }

  freeBytes(): Promise<number> {
    return Promise.resolve(this.free);
  }

  usedBytes(): Promise<number> {
    return Promise.resolve(this.used);
  }
}
