import type { DomainSnapshots } from "../../model/domain-snapshot.js";
import { bitmapsOverLayers, type ReportedLayer } from "../../model/layered-bitmaps.js";
import { rememberedBitmaps } from "../../model/present-disk.js";
import type { DiskState } from "../../model/snapshot-plan.js";
import type { NodeLayer } from "./block-graph.js";
import { type AssignedDisk, fileIdentity } from "./targets.js";

type LayerFacts = Pick<
  DiskState,
  "activeFile" | "frozenFiles" | "otherLayer" | "checkpoints" | "foreignBitmaps"
>;

/** What the images of a disk say of its checkpoints. Those below one that no domain snapshot has frozen are not asked. */
export async function describeLayers(
  target: string,
  { present, otherLayer, layers: [top, ...below] }: AssignedDisk,
  snapshots: DomainSnapshots,
): Promise<LayerFacts & { readonly file?: string }> {
  if (present === undefined) return bitmapsOverLayers([reported(top)]);
  const { home, file: active } = present;
  if (otherLayer !== undefined) {
    const { checkpoints, ...others } = bitmapsOverLayers([reported(top)]);
    const lost = `the disk is in ${otherLayer.found}, but by its domain snapshots it should be in ${otherLayer.expected}`;
    return {
      ...others,
      file: home,
      otherLayer,
      ...(top.file === home ? {} : { activeFile: top.file }),
      checkpoints: checkpoints.map((bitmap) => ({ ...bitmap, lost })),
    };
  }
  const frozen = await untilHome(home, top, below);
  const layers = frozen.map((layer) => ({
    ...reported(layer),
    remembered: rememberedBitmaps(snapshots, target, layer.file),
  }));
  return {
    file: home,
    ...(active === home ? {} : { activeFile: active }),
    ...(frozen.length === 0 ? {} : { frozenFiles: frozen.map(({ file }) => file) }),
    ...bitmapsOverLayers([reported(top), ...layers]),
  };
}

/** Below the home of a disk there may be a template of the user's, whose bitmaps are not of this disk. */
async function untilHome(
  home: string,
  top: NodeLayer,
  below: readonly NodeLayer[],
): Promise<readonly NodeLayer[]> {
  const wanted = await fileIdentity(home);
  const found: NodeLayer[] = [];
  let last = top;
  for (const layer of below) {
    if ((await fileIdentity(last.file)) === wanted) break;
    found.push(layer);
    last = layer;
  }
  return found;
}

function reported({ file, sizeBytes, bitmaps }: NodeLayer): ReportedLayer {
  return {
    file,
    sizeBytes,
    bitmaps: bitmaps.flatMap(({ name, recording, busy, persistent, inconsistent, granularity, count }) => {
      // QEMU lists unnamed ones too, while filters or jobs are at work.
      if (name === undefined) return [];
      const state = { recording, busy, persistent, inconsistent: inconsistent ?? false };
      return [{ bitmap: name, ...state, granularityBytes: granularity, dirtyBytes: count }];
    }),
  };
}
