import type { DomainConfig } from "../../model/config.js";
import { sortOutBitmaps } from "../../model/checkpoint.js";
import type { DiskLayers } from "../../model/domain-snapshot.js";
import type { DiskFacts, DomainFacts, LayerBitmap } from "../../model/domain-snapshot-plan.js";
import type { StandIn } from "../../model/stand-in.js";
import type { QmpSession } from "../../qmp/index.js";
import { deviceId, layersOf, type NodeLayer } from "../running/block-graph.js";
import { fileIdentity } from "../running/targets.js";
import { lookForUsers } from "../running/users.js";
import { readMachine } from "./machine-facts.js";
import { queryFacts } from "./running-qemu.js";
import { MIGRATION_ENDED } from "./settle-guest.js";
import { planStandIn } from "./stand-ins.js";

/** A disk of a running domain, with what is needed to put an overlay on it. */
export interface SeenDisk {
  readonly facts: DiskFacts;
  /** The top layer's node. */
  readonly node: string;
  readonly cache: { readonly direct: boolean; readonly "no-flush": boolean };
  readonly detectZeroes: "off" | "on" | "unmap";
  /** Set if QEMU saves no memory as long as it has the disk's images open. */
  readonly standIn?: StandIn;
  /** QEMU's words for that. */
  readonly memoryBlockers: readonly string[];
}

export interface SeenDomain {
  readonly facts: DomainFacts;
  readonly disks: readonly SeenDisk[];
}

export interface LookParts {
  readonly qmp: QmpSession;
  readonly config: DomainConfig;
  readonly qmpSocketPath: string;
  readonly layers: readonly DiskLayers[];
}

export async function lookAtMachine(parts: LookParts): Promise<SeenDomain> {
  const { qmp } = parts;
  const { status: runState } = await qmp.execute("query-status");
  const { status: migration, "blocked-reasons": memoryBlockers = [] } = await qmp.execute("query-migrate");
  const jobs = await qmp.execute("query-jobs");
  const { foreignExports } = await lookForUsers(qmp);
  const disks = await lookAtDisks(parts);
  const words = disks.flatMap(({ memoryBlockers: own }) => own);
  const isAtRest = migration === undefined || MIGRATION_ENDED.has(migration);
  const facts: DomainFacts = {
    state: runState === "running" ? "running" : "paused",
    runState,
    ...(isAtRest ? {} : { migration }),
    memoryBlockers: memoryBlockers.filter((blocker) => !words.includes(blocker)),
    jobs: jobs.map(({ id, type }) => `a ${type} job (${id})`),
    foreignExports,
    disks: disks.map((disk) => disk.facts),
    machine: await readMachine(qmp, parts.qmpSocketPath),
  };
  return { facts, disks };
}

export async function lookAtDisks({ qmp, config, layers }: LookParts): Promise<readonly SeenDisk[]> {
  const block = await queryFacts(qmp);
  const names = await TargetNames.of(config, layers);
  const disks: SeenDisk[] = [];
  for (const device of block.devices) {
    const rootNode = device.inserted?.["node-name"];
    if (device.inserted === undefined || rootNode === undefined || device.qdev === undefined) continue;
    const chain = layersOf(block, rootNode);
    const top = chain[0];
    const node = block.nodes.find((each) => each["node-name"] === top?.node);
    if (top === undefined || node === undefined) continue;
    const { target, file } = await names.nameFor(deviceId(device), top.file);
    const isHeld = !device.inserted.ro && !device.removable && top.node === rootNode;
    const standIn = isHeld ? await planStandIn(qmp, block, { qdev: device.qdev, layers: chain }) : undefined;
    disks.push({
      node: top.node,
      cache: { direct: node.cache.direct, "no-flush": node.cache["no-flush"] },
      detectZeroes: node.detect_zeroes,
      ...(standIn === undefined ? {} : { standIn }),
      memoryBlockers:
        standIn === undefined ? [] : chain.flatMap((layer) => formatBlockers(layer, device.device)),
      facts: {
        target,
        file,
        formats: chain.map(({ driver }) => driver),
        sizeBytes: top.sizeBytes,
        readOnly: device.inserted.ro,
        removable: device.removable,
        ...(top.node === rootNode ? {} : { filter: rootNode }),
        bitmaps: checkpointBitmaps(top.bitmaps),
        internalSnapshots: (node.image.snapshots ?? []).map(({ name }) => name),
      },
    });
  }
  return disks;
}

/** What QEMU says of an image; it calls one by its old-style drive, if that has a name. */
function formatBlockers({ driver, node }: NodeLayer, drive: string): readonly string[] {
  return [node, drive].map(
    (name) => `The ${driver} format used by node '${name}' does not support live migration`,
  );
}

type NodeBitmaps = ReturnType<typeof layersOf>[number]["bitmaps"];

function checkpointBitmaps(bitmaps: NodeBitmaps): readonly LayerBitmap[] {
  const reported = bitmaps.flatMap(
    ({ name, recording, busy, persistent, inconsistent = false, granularity }) =>
      name === undefined
        ? []
        : [{ bitmap: name, recording, busy, persistent, inconsistent, granularityBytes: granularity }],
  );
  return sortOutBitmaps(reported).checkpoints.map(layerBitmap);
}

export function layerBitmap({ bitmap, granularityBytes, recording, inconsistent }: LayerBitmap): LayerBitmap {
  return { bitmap, granularityBytes, recording, inconsistent };
}

interface KnownFile {
  readonly target: string;
  readonly file: string;
  readonly identity: string;
}

/** What disks are called: by the file that they are in after their snapshots, by that in the configuration, or by their device. */
class TargetNames {
  readonly #known: readonly KnownFile[];
  readonly #taken = new Set<string>();

  private constructor(known: readonly KnownFile[]) {
    this.#known = known;
  }

  static async of(config: DomainConfig, layers: readonly DiskLayers[]): Promise<TargetNames> {
    const files = [
      ...layers.map(({ target, active }) => ({ target, file: active })),
      ...(config.disks ?? []).map(({ target, file }) => ({ target, file })),
    ];
    const known: KnownFile[] = [];
    for (const each of files) known.push({ ...each, identity: await fileIdentity(each.file) });
    return new TargetNames(known);
  }

  async nameFor(id: string, file: string): Promise<{ readonly target: string; readonly file: string }> {
    const identity = await fileIdentity(file);
    const found = this.#known.find((each) => each.identity === identity);
    const wanted = found?.target ?? id;
    const target = this.#taken.has(wanted) ? `${wanted}-${this.#taken.size}` : wanted;
    this.#taken.add(target);
    return { target, file: found?.file ?? file };
  }
}
