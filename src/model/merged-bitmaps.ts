import { parseBitmapName } from "./checkpoint.js";

/** A named bitmap of one layer. */
export interface LayerBitmap {
  readonly name: string;
  readonly granularityBytes: number;
  readonly recording: boolean;
  readonly inconsistent: boolean;
}

/** What has to be done with the bitmaps of two layers that become one. All names are of bitmaps of the layer that stays. */
export interface MergedBitmaps {
  /** Before any content moves: what the merge itself writes is no change of the disk. */
  readonly disabled: readonly string[];
  readonly removed: readonly string[];
  /** Get the bits of the other layer's bitmap of that name. */
  readonly carried: readonly { readonly add?: number; readonly name: string; readonly enable: boolean }[];
}

/**
 * "Changed since a checkpoint" is the union of its bitmap's parts in all layers. In the merged layer it must be that union or
 * more. Where a part is missing, the checkpoint and all before it cannot be told any more; without the layers, nothing
 * would show that, so their bitmaps go. `expected` are the bitmaps that `lower` had when it was left for `upper`.
 */
export function mergedBitmaps(
  how: "commit" | "stream",
  layers: {
    readonly lower: readonly LayerBitmap[];
    readonly upper: readonly LayerBitmap[];
    readonly expected: readonly string[];
  },
): MergedBitmaps {
  const { lower, upper } = layers;
  const dead = deadOrder(how, layers);
  const isDead = ({ name }: Pick<LayerBitmap, "name">): boolean =>
    (parseBitmapName(name)?.order ?? Infinity) <= dead;
  const [stays, goes] = how === "commit" ? [lower, upper] : [upper, lower];
  const carried = goes
    .filter((bitmap) => !bitmap.inconsistent && !isDead(bitmap))
    // Bitmaps of others that recorded in a layer that is gone say nothing without it.
    .filter(({ name }) => how === "commit" || parseBitmapName(name) !== undefined)
    .filter(({ name }) => find(stays, name)?.inconsistent !== true)
    .map(({ name, granularityBytes, recording }) => ({
      name,
      ...(find(stays, name) === undefined ? { add: granularityBytes } : {}),
      enable: how === "commit" && recording,
    }));
  return {
    disabled:
      how === "stream"
        ? []
        : lower
            .filter(({ recording, inconsistent }) => recording && !inconsistent)
            // What the layer above did not track is tracked by this one while it is written to: too much, but never too little.
            .filter(({ name }) => carried.some((each) => each.name === name))
            .map(({ name }) => name),
    removed: stays.filter(isDead).map(({ name }) => name),
    carried,
  };
}

/** The newest checkpoint of which a part is missing; -Infinity if none is. */
function deadOrder(
  how: "commit" | "stream",
  { lower, upper, expected }: Parameters<typeof mergedBitmaps>[1],
): number {
  const isSound = (bitmap: LayerBitmap | undefined): boolean => bitmap?.inconsistent === false;
  const lost = [...expected, ...lower.map(({ name }) => name)].filter((name) => !isSound(find(lower, name)));
  const tracks = (name: string): boolean =>
    isSound(find(lower, name)) && find(lower, name)?.recording === true;
  const untracked =
    how === "commit"
      ? upper.filter(({ name, inconsistent }) => inconsistent && !tracks(name))
      : lower.filter(({ name }) => tracks(name) && !isSound(find(upper, name)));
  const dead = [...lost, ...untracked.map(({ name }) => name)];
  return Math.max(-Infinity, ...dead.flatMap((name) => parseBitmapName(name)?.order ?? []));
}

function find(bitmaps: readonly LayerBitmap[], name: string): LayerBitmap | undefined {
  return bitmaps.find((bitmap) => bitmap.name === name);
}
