import { dirname, resolve } from "node:path";
import type { DiskConfig } from "../../model/config.js";
import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import { bitmapsOverLayers, type ReportedLayer } from "../../model/layered-bitmaps.js";
import { presentDisk, rememberedBitmaps } from "../../model/present-disk.js";
import { type DiskFormat, type DiskState, formatOfDriver } from "../../model/snapshot-plan.js";
import { type ImageInfo, imageInfo } from "../qemu-tools.js";

/** A disk of an inactive domain, with the image files that it is in. */
export interface InactiveDisk {
  readonly target: string;
  /** The name by which backups know it. */
  readonly home: string;
  readonly file: string;
  readonly format: DiskFormat;
  /** What domain snapshots have frozen below, from top to bottom. */
  readonly frozen: readonly { readonly file: string; readonly format: DiskFormat }[];
}

export async function locateDisk(
  snapshots: DomainSnapshots,
  disk: DiskConfig,
  signal?: AbortSignal,
): Promise<InactiveDisk> {
  const { target, home, file, format, images } = await lookAtLayers(snapshots, disk, signal);
  return { target, home, file, format, frozen: images.slice(1) };
}

/** Fails with DISK_IN_USE when a program writes to one of the images. */
export async function describeDisk(
  snapshots: DomainSnapshots,
  disk: DiskConfig,
  signal?: AbortSignal,
): Promise<DiskState> {
  const { target, home, file, format, images } = await lookAtLayers(snapshots, disk, signal);
  const [top, ...frozen] = images;
  const below = frozen.map((image) => ({
    ...reported(image),
    remembered: rememberedBitmaps(snapshots, target, image.file),
  }));
  return {
    target,
    format,
    file: home,
    ...(file === home ? {} : { activeFile: file }),
    ...(frozen.length === 0 ? {} : { frozenFiles: frozen.map((image) => image.file) }),
    sizeBytes: top.info.sizeBytes,
    ...(top.info.allocatedBytes === undefined ? {} : { allocatedBytes: top.info.allocatedBytes }),
    ...bitmapsOverLayers([reported(top), ...below]),
    ...obstacleOf(top.info),
  };
}

/** Whether an image that is read has changed meanwhile is told by its file alone. */
export function obstacleOf({ extentFile }: ImageInfo): Pick<DiskState, "obstacle"> {
  if (extentFile === undefined) return {};
  const reason = `its image keeps data in ${extentFile} too, and only one file can be watched while the domain is off`;
  return { obstacle: { code: "UNSUPPORTED", reason } };
}

interface Image {
  readonly file: string;
  readonly format: DiskFormat;
  readonly info: ImageInfo;
}

/** Goes down to the disk's home: below that there may be a template of the user's, whose bitmaps are not of this disk. */
async function lookAtLayers(
  snapshots: DomainSnapshots,
  { target, file: configured, format: configuredFormat }: DiskConfig,
  signal?: AbortSignal,
): Promise<Omit<InactiveDisk, "frozen"> & { readonly images: readonly [Image, ...Image[]] }> {
  const present = presentDisk(snapshots, target, configured);
  const { home, file, format } = present ?? {
    home: configured,
    file: configured,
    format: configuredFormat,
  };
  const top = { file, format, info: await imageInfo(file, format, { signal }) };
  const below: Image[] = [];
  let last: Image = top;
  while (last.file !== home) {
    const { backingFile } = last.info;
    const backingFormat = formatOfDriver(last.info.backingFormat ?? "");
    if (backingFile === undefined || backingFormat === undefined) break;
    const next = resolve(dirname(last.file), backingFile);
    if (next === top.file || below.some((image) => image.file === next)) break;
    last = { file: next, format: backingFormat, info: await imageInfo(next, backingFormat, { signal }) };
    below.push(last);
  }
  return { target, home, file, format, images: [top, ...below] };
}

function reported({ file, info }: Image): ReportedLayer {
  return {
    file,
    sizeBytes: info.sizeBytes,
    bitmaps: info.bitmaps.map(({ name, recording, inUse, granularityBytes }) => {
      const state = { recording, inconsistent: inUse, busy: false, persistent: true };
      return { bitmap: name, ...state, granularityBytes };
    }),
  };
}
