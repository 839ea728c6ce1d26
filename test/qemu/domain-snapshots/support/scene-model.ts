export const BLOCK = 65_536;
export const BLOCKS = 32;
export const TARGETS = ["vda", "vdb"] as const;
export type Target = (typeof TARGETS)[number];

/** What the disks hold, block by block, and which blocks were written since each checkpoint, by its bitmap. */
interface Moment {
  readonly content: ReadonlyMap<Target, number[]>;
  readonly written: Map<string, Map<Target, Set<number>>>;
}

/** The naive model of two disks: what they must hold now and at each snapshot. */
export class SceneModel {
  #now: Moment = {
    content: new Map(TARGETS.map((target) => [target, new Array<number>(BLOCKS).fill(0)])),
    written: new Map(),
  };
  readonly #moments = new Map<string, Moment>();

  write(target: Target, block: number, count: number, pattern: number): void {
    this.#now.content.get(target)?.fill(pattern, block, block + count);
    for (const byTarget of this.#now.written.values()) {
      for (let index = block; index < block + count; index++) byTarget.get(target)?.add(index);
    }
  }

  /** From now on the bitmap records on these disks. */
  track(bitmap: string, targets: readonly Target[]): void {
    this.#now.written.set(bitmap, new Map(targets.map((target) => [target, new Set()])));
  }

  /** There is a snapshot of the present. */
  remember(name: string): void {
    this.#moments.set(name, structuredClone(this.#now));
  }

  forget(name: string): void {
    this.#moments.delete(name);
  }

  /** The disks are what they were at the snapshot. */
  returned(name: string): void {
    const moment = this.#moments.get(name);
    if (moment === undefined) throw new Error(`Expected a snapshot ${name}`);
    this.#now = structuredClone(moment);
  }

  /** Of the snapshots, in the order in which they were made. */
  names(): string[] {
    return [...this.#moments.keys()];
  }

  /** Of the present, or of a snapshot. */
  content(target: Target, snapshot?: string): readonly number[] | undefined {
    return (snapshot === undefined ? this.#now : this.#moments.get(snapshot))?.content.get(target);
  }

  /** The blocks that were written since each checkpoint that is on the disk, by its bitmap. */
  writtenSince(target: Target): Map<string, readonly number[]> {
    const tracked = [...this.#now.written].flatMap(([bitmap, byTarget]) => {
      const blocks = byTarget.get(target);
      return blocks === undefined ? [] : [[bitmap, [...blocks].toSorted((x, y) => x - y)] as const];
    });
    return new Map(tracked);
  }
}
