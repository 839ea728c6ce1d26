import {
  type DomainSnapshot,
  type DomainSnapshots,
  filesOfDisk,
  type MergedLayer,
} from "./domain-snapshot.js";
import type { DiskFormat } from "./snapshot-plan.js";

/** How the files of external domain snapshots are merged when one of the snapshots is deleted. Pure: see services/domain-snapshots/delete.ts. */

/** An image file, as its header shows it. */
export interface LayerFile {
  readonly path: string;
  readonly format: DiskFormat;
  /** Absolute. */
  readonly backing?: string | undefined;
  readonly sizeBytes: number;
  readonly allocatedBytes: number;
  /** Of a kind that QEMU does not write over: a commit into it would fail. */
  readonly isReadOnly?: true;
}

/** Two neighbours of a chain become one; what can be read above them stays the same. */
export interface LayerMerge {
  readonly target: string;
  /**
   * `commit`: the content of `upper` goes into `lower`, which takes its place. `stream`: what `upper` does not have itself comes
   * from `lower`, which is not needed by it any more.
   */
  readonly how: "commit" | "stream";
  readonly upper: string;
  readonly lower: string;
  readonly lowerFormat: DiskFormat;
  /** What is below `lower`, if anything is. */
  readonly below?: string;
  /** The domain writes to `upper`. */
  readonly active: boolean;
  /** Files with `upper` as their backing file; after a commit that has to be `lower`. */
  readonly children: readonly string[];
  /** Names of the bitmaps that `lower` had when it was left for `upper`. */
  readonly bitmaps: readonly string[];
}

/** What becomes of one disk of a snapshot. */
export interface DiskDeletion {
  readonly target: string;
  /** In this order. */
  readonly merges: readonly LayerMerge[];
  /** The snapshot's own file, if nothing needs it afterwards. */
  readonly removed?: string;
}

export interface KnownFile {
  readonly path: string;
  readonly format: DiskFormat;
}

/** All files that a document names, each once. */
export function knownFiles(all: DomainSnapshots): readonly KnownFile[] {
  const known = new Map<string, DiskFormat>();
  for (const { home, active, format } of all.layers) {
    known.set(active, format);
    // Its own format is that of the first snapshot's file; the header of the overlay above says it otherwise.
    if (home === active) known.set(home, format);
  }
  for (const { disks } of all.snapshots) for (const { file, format } of disks) known.set(file, format);
  return [...known].map(([path, format]) => ({ path, format }));
}

/**
 * Per disk of an external snapshot. Of several users of its file, all but one get the content by `stream`; the last one may
 * be committed into the file instead, which moves less if it holds less. Home files keep their names and are never removed: a
 * commit goes into them whatever it costs. A user is committed only if nobody outside the document knows it by its name.
 */
export function planLayerDeletion(
  all: DomainSnapshots,
  snapshot: DomainSnapshot,
  files: readonly LayerFile[],
): readonly DiskDeletion[] {
  return snapshot.disks.map(({ target, file, bitmaps, volume }) => {
    const found = files.find(({ path }) => path === file);
    // A classic one could overflow under a guest that goes on in it.
    const lower =
      found === undefined || volume === undefined ? found : { ...found, isReadOnly: true as const };
    const layers = all.layers.find((each) => each.target === target);
    const isNeeded =
      layers?.active === file ||
      all.snapshots.some(
        ({ name, disks }) => name !== snapshot.name && disks.some((disk) => disk.file === file),
      );
    if (lower === undefined || isNeeded) return { target, merges: [] };
    const isHome = layers === undefined || layers.home === file;
    const users = files.filter(({ backing }) => backing === file);
    const [last, ...others] = chosenLast(users, chainOf(layers?.active, files));
    const merges = [...others, ...(last === undefined ? [] : [last])].map((upper): LayerMerge => ({
      target,
      how: upper === last && commits({ all, lower, upper, isHome }) ? "commit" : "stream",
      upper: upper.path,
      lower: file,
      lowerFormat: lower.format,
      ...(lower.backing === undefined ? {} : { below: lower.backing }),
      active: upper.path === layers?.active,
      children: files.filter(({ backing }) => backing === upper.path).map(({ path }) => path),
      bitmaps,
    }));
    const isTaken = merges.some(({ how }) => how === "commit");
    return { target, merges, ...(isTaken || isHome ? {} : { removed: file }) };
  });
}

/** What the domain writes to stays on its own file, so that its place in the chain is the last to be looked after. */
function chosenLast(users: readonly LayerFile[], active: ReadonlySet<string>): readonly LayerFile[] {
  return users.toSorted((a, b) => Number(active.has(b.path)) - Number(active.has(a.path)));
}

/** The file itself and all below it. */
function chainOf(file: string | undefined, files: readonly LayerFile[]): ReadonlySet<string> {
  const chain = new Set<string>();
  for (let path = file; path !== undefined && !chain.has(path);) {
    chain.add(path);
    path = files.find((each) => each.path === path)?.backing;
  }
  return chain;
}

function commits(choice: {
  readonly all: DomainSnapshots;
  readonly lower: LayerFile;
  readonly upper: LayerFile;
  readonly isHome: boolean;
}): boolean {
  const { all, lower, upper, isHome } = choice;
  if (lower.isReadOnly === true) return false;
  // The disk would grow, by whatever was beyond its end.
  if (lower.sizeBytes > upper.sizeBytes) return false;
  const holders = all.snapshots.filter(({ disks }) => disks.some(({ file }) => file === upper.path));
  const isActive = all.layers.some(({ active }) => active === upper.path);
  // Only qcow2 holds bitmaps, and layers above would not show that a part of theirs is missing.
  const isTracked = holders.some(({ disks }) =>
    disks.some((disk) => disk.file === upper.path && disk.bitmaps.length > 0),
  );
  if (lower.format !== "qcow2" && !isActive && isTracked) return false;
  if ((holders.length === 0 && !isActive) || holders.some(({ clones }) => clones.length > 0)) return false;
  return isHome || upper.allocatedBytes <= lower.allocatedBytes;
}

/**
 * The document after a merge: whoever had its content in `upper` has it in `lower` after a commit. The layer that stays has the
 * bitmaps of both.
 */
export function afterMerge(all: DomainSnapshots, merge: LayerMerge): DomainSnapshots {
  const { how, upper, lower, lowerFormat, target, bitmaps } = merge;
  const place = how === "commit" ? { file: lower, format: lowerFormat } : {};
  return withFormer(all, {
    ...all,
    layers: all.layers.map((layers) =>
      how === "commit" && layers.target === target && layers.active === upper
        ? { ...layers, active: lower, format: lowerFormat }
        : layers,
    ),
    snapshots: all.snapshots.map((snapshot) => ({
      ...snapshot,
      disks: snapshot.disks.map((disk) =>
        disk.target === target && disk.file === upper
          ? {
              ...disk,
              ...place,
              bitmaps: [...bitmaps.filter((name) => !disk.bitmaps.includes(name)), ...disk.bitmaps],
            }
          : disk,
      ),
    })),
  });
}

/** What the document does not name any more may be in the arguments of a QEMU, which a revert must be able to read. */
function withFormer(before: DomainSnapshots, after: DomainSnapshots): DomainSnapshots {
  const layers = after.layers.map((each) => {
    const known = filesOfDisk(after, each.target);
    const gone = filesOfDisk(before, each.target).filter((file) => !known.includes(file));
    return gone.length === 0 ? each : { ...each, former: [...(each.former ?? []), ...gone] };
  });
  return { ...after, layers };
}

/** The document without a snapshot: its children are its parent's, and so is the present if it was the current one. */
export function withoutSnapshot(all: DomainSnapshots, name: string): DomainSnapshots {
  const parent = all.snapshots.find((snapshot) => snapshot.name === name)?.parent;
  const { current, ...rest } = all;
  const now = current === name ? parent : current;
  return withFormer(all, {
    ...rest,
    ...(now === undefined ? {} : { current: now }),
    snapshots: all.snapshots
      .filter((snapshot) => snapshot.name !== name)
      .map((snapshot) => {
        if (snapshot.parent !== name) return snapshot;
        const { parent: _, ...orphan } = snapshot;
        return parent === undefined ? orphan : { ...orphan, parent };
      }),
  });
}

/** As users are told of it. */
export function mergedLayer({ target, how, upper, lower }: LayerMerge): MergedLayer {
  return how === "commit"
    ? { target, how, from: upper, into: lower }
    : { target, how, from: lower, into: upper };
}

/** Whether the document still needs a file, as a snapshot's, as the active or as the home file of a disk. */
export function isNamed(all: DomainSnapshots, path: string): boolean {
  return (
    all.layers.some(({ home, active }) => home === path || active === path) ||
    all.snapshots.some(
      ({ disks, memory }) =>
        disks.some(({ file }) => file === path) || (memory?.kind === "external" && memory.file === path),
    )
  );
}
