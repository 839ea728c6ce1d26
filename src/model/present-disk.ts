import type { DomainSnapshots } from "./domain-snapshot.js";
import type { DiskFormat } from "./snapshot-plan.js";

/** Where a disk is by the domain's snapshots, and by which name backups know it. */
export interface PresentDisk {
  readonly home: string;
  readonly file: string;
  readonly format: DiskFormat;
  /** All images that domain snapshots know of the disk; some of them are in its chain, unless it was replaced. */
  readonly knownFiles: ReadonlySet<string>;
}

/**
 * Undefined for a disk that no domain snapshot has moved, and for one whose configuration names another image than any that
 * the snapshots know: then it was replaced since.
 */
export function presentDisk(
  all: DomainSnapshots,
  target: string,
  configuredFile?: string,
): PresentDisk | undefined {
  const layers = all.layers.find((listed) => listed.target === target);
  if (layers === undefined) return undefined;
  const { home, active, format } = layers;
  const knownFiles = new Set([home, active, ...frozenFiles(all, target)]);
  if (configuredFile !== undefined && !knownFiles.has(configuredFile)) return undefined;
  return { home, file: active, format, knownFiles };
}

/** Whether a domain snapshot needs this image as it is. */
export function isFrozen(all: DomainSnapshots, target: string, file: string): boolean {
  return frozenFiles(all, target).includes(file);
}

/** The bitmaps that an image had when domain snapshots froze it. */
export function rememberedBitmaps(all: DomainSnapshots, target: string, file: string): readonly string[] {
  return externalDisks(all, target)
    .filter((disk) => disk.file === file)
    .flatMap(({ bitmaps }) => bitmaps);
}

function frozenFiles(all: DomainSnapshots, target: string): readonly string[] {
  return externalDisks(all, target).map(({ file }) => file);
}

function externalDisks({ snapshots }: DomainSnapshots, target: string) {
  return snapshots
    .filter(({ kind }) => kind === "external")
    .flatMap(({ disks }) => disks.filter((disk) => disk.target === target));
}
