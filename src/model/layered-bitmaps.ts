import type { CheckpointBitmap, ReportedBitmap } from "./checkpoint.js";
import { byOrder, isUnusable, parseBitmapName, sortOutBitmaps } from "./checkpoint.js";

/**
 * Checkpoints of a disk whose content is in several images: the one that it is in now, and those that domain snapshots have
 * frozen below. A frozen image keeps its bitmaps as they were. The image above begins with an empty bitmap of the same name as
 * the one that recorded at that moment, and goes on from there. So what changed since a checkpoint is the union, over all
 * images, of its bitmap and all newer ones, if there is no gap between an image and the next.
 */
export interface ReportedLayer {
  readonly file: string;
  readonly sizeBytes: number;
  readonly bitmaps: readonly ReportedBitmap[];
  /** Names of the bitmaps that a frozen image had, where a domain snapshot remembers them. Raw images lose theirs with QEMU. */
  readonly remembered?: readonly string[];
}

/**
 * One list for all images, the present one first. Each checkpoint is in it once, with what its bitmaps say together; those that
 * cannot be used say why. What a gap has cost is left out as soon as the present image has checkpoints that are newer.
 */
export function bitmapsOverLayers(reported: readonly [ReportedLayer, ...ReportedLayer[]]): {
  readonly checkpoints: readonly CheckpointBitmap[];
  /** Of the present image. */
  readonly foreignBitmaps: readonly string[];
} {
  const [top, ...others] = reported;
  const present = sortOut(top);
  const below = others.map(sortOut);
  const layers = [present, ...below];
  const gaps = below.flatMap((lower, index) => gapBetween(layers[index] ?? present, lower));
  const deleted = new Set(layers.flatMap((layer) => layer.deleted));
  const names = new Set(layers.flatMap(({ checkpoints }) => checkpoints.map(({ bitmap }) => bitmap)));
  const all = [...names].flatMap((name): CheckpointBitmap[] => {
    const own = present.checkpoints.find(({ bitmap }) => bitmap === name);
    const frozen = below.flatMap(
      ({ checkpoints }) => checkpoints.find(({ bitmap }) => bitmap === name) ?? [],
    );
    const united = unite(own, frozen);
    if (united === undefined) return [];
    const gap = gaps.find(({ upTo }) => united.order <= upTo);
    return [
      {
        ...united,
        ...(deleted.has(name) ? { deleted: true } : {}),
        ...(gap === undefined ? {} : { lost: gap.reason }),
      },
    ];
  });
  const superseded = all.some((bitmap) => bitmap.place === undefined && !isUnusable(bitmap));
  const checkpoints = all.filter(({ place, lost }) => !superseded || place !== "below" || lost === undefined);
  return { checkpoints: checkpoints.toSorted(byOrder), foreignBitmaps: present.foreignBitmaps };
}

interface SortedLayer extends ReportedLayer, ReturnType<typeof sortOutBitmaps> {}

function sortOut(layer: ReportedLayer): SortedLayer {
  return { ...layer, ...sortOutBitmaps(layer.bitmaps) };
}

/** The bitmaps of one checkpoint. Only that of the present image can record. */
function unite(
  own: CheckpointBitmap | undefined,
  frozen: readonly CheckpointBitmap[],
): CheckpointBitmap | undefined {
  const all = [...(own === undefined ? [] : [own]), ...frozen];
  const [first] = all;
  if (first === undefined || frozen.length === 0) return own;
  const { dirtyBytes: _, ...facts } = first;
  const counts = all.flatMap(({ dirtyBytes }) => dirtyBytes ?? []);
  return {
    ...facts,
    recording: own?.recording ?? false,
    inconsistent: all.some(({ inconsistent }) => inconsistent),
    busy: all.some(({ busy }) => busy),
    persistent: all.every(({ persistent }) => persistent),
    // A block that changed in two images counts twice.
    ...(counts.length < all.length ? {} : { dirtyBytes: counts.reduce((sum, count) => sum + count, 0) }),
    place: own === undefined ? "below" : "both",
  };
}

interface Gap {
  /** Checkpoints of this order and older ones are lost. */
  readonly upTo: number;
  readonly reason: string;
}

/** Whether what the newest bitmap of an image recorded when that was frozen goes on being recorded in the image above. */
function gapBetween(upper: SortedLayer, lower: SortedLayer): readonly Gap[] {
  const frozen = lower.checkpoints.at(-1);
  const carried = upper.checkpoints[0];
  if (frozen !== undefined && carried !== undefined) {
    const { order } = frozen;
    if (carried.bitmap !== frozen.bitmap && carried.order <= order) {
      const reason = `${lower.file} was written to after ${upper.file} had been put over it: it has checkpoint ${frozen.name}, which is newer`;
      return [{ upTo: Infinity, reason }];
    }
  }
  const remembered = (lower.remembered ?? []).flatMap((bitmap) => {
    const checkpoint = parseBitmapName(bitmap);
    return checkpoint === undefined ? [] : [{ ...checkpoint, bitmap }];
  });
  const missing = remembered.filter(({ bitmap }) =>
    lower.checkpoints.every((kept) => kept.bitmap !== bitmap),
  );
  const last = missing.toSorted(byOrder).at(-1);
  const gaps: Gap[] = [];
  if (last !== undefined) {
    gaps.push({ upTo: last.order, reason: `checkpoint ${last.name} is not in ${lower.file} any more` });
  }
  if (frozen === undefined) return gaps;
  const { name, order } = frozen;
  if (carried?.bitmap !== frozen.bitmap) {
    gaps.push({ upTo: order, reason: `checkpoint ${name} of ${lower.file} does not go on in ${upper.file}` });
  } else if (!frozen.recording) {
    gaps.push({ upTo: order, reason: `checkpoint ${name} did not record in ${lower.file}` });
  } else if (upper.sizeBytes !== lower.sizeBytes) {
    const reason = `the disk had ${lower.sizeBytes} bytes in ${lower.file} and has ${upper.sizeBytes} in ${upper.file}`;
    gaps.push({ upTo: order, reason });
  }
  return gaps;
}
