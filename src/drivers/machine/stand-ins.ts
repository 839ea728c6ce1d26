import type { StandIn, StoodInBitmap, StoodInFile, StoodInLayer } from "../../model/stand-in.js";
import type { Clock } from "../../ports/clock.js";
import {
  type BlockdevOptions,
  type BlockNodeInfo,
  isQmpError,
  type QmpSession,
  type TransactionAction,
} from "../../qmp/index.js";
import { randomId } from "../../shared/ids.js";
import { type BlockFacts, childNode, devicePath, type NodeLayer } from "../running/block-graph.js";
import { iothreadOf } from "../running/iothreads.js";
import { settledState, settleGuest } from "./settle-guest.js";

/**
 * QEMU saves no memory as long as it has an image of another program's format open. So the device of a guest that stands still
 * gets a node in its place, the images are closed, and opened again before the guest runs: it never runs on anything but its disk.
 * Whoever continues the guest meanwhile all the same has it see errors; nothing that it writes is taken, and nothing is lost.
 */

const FOREIGN: ReadonlySet<string> = new Set(["vpc", "vhdx", "vmdk", "vdi"]);

/** What may stand in for a disk, the uppermost of whose `layers` its device uses. Undefined if it needs none, or cannot be closed. */
export async function planStandIn(
  qmp: QmpSession,
  facts: BlockFacts,
  { qdev, layers }: { readonly qdev: string; readonly layers: readonly NodeLayer[] },
): Promise<StandIn | undefined> {
  const [top] = layers;
  if (top === undefined || !layers.some(({ driver }) => FOREIGN.has(driver))) return undefined;
  const id = randomId(8);
  const planned = layers.map((layer, index) =>
    planLayer(facts, layer, layers[index + 1], `reopened-${id}-${index}`),
  );
  const closable = planned.filter((layer) => layer !== undefined);
  if (closable.length < layers.length) return undefined;
  const qomPath = devicePath(qdev);
  const iothread = await iothreadOf(qmp, qomPath);
  return {
    node: `stand-in-${id}`,
    sizeBytes: top.sizeBytes,
    qomPath,
    ...(iothread === undefined ? {} : { iothread }),
    layers: closable.toReversed(),
  };
}

/** Undefined if QEMU would not tell all that it takes to open it again. */
function planLayer(
  facts: BlockFacts,
  layer: NodeLayer,
  below: NodeLayer | undefined,
  newName: string,
): StoodInLayer | undefined {
  const info = facts.nodes.find((listed) => listed["node-name"] === layer.node);
  const file = planFile(facts, layer.node);
  const driver = closableDriver(layer.driver);
  const isPlain = childNode(facts.graph, layer.node, "backing") === below?.node;
  if (info === undefined || file === undefined || driver === undefined || !isPlain || needsMore(info))
    return undefined;
  return {
    node: layer.node,
    nextNode: isMadeUp(layer.node) ? newName : layer.node,
    driver,
    file,
    readOnly: layer.readOnly,
    cache: { direct: info.cache.direct, "no-flush": info.cache["no-flush"] },
    detectZeroes: info.detect_zeroes,
    bitmaps: layer.bitmaps.flatMap(({ name, persistent, granularity, recording }): StoodInBitmap[] =>
      name === undefined || persistent ? [] : [{ name, granularityBytes: granularity, recording }],
    ),
  };
}

function planFile(facts: BlockFacts, parent: string): StoodInFile | undefined {
  const node = childNode(facts.graph, parent, "file");
  const info = facts.nodes.find((listed) => listed["node-name"] === node);
  if (node === undefined || info === undefined) return undefined;
  const { drv: driver, file: filename } = info;
  if ((driver !== "file" && driver !== "host_device") || filename.startsWith("json:")) return undefined;
  return { driver, filename, node, ...(isMadeUp(node) ? {} : { nextNode: node }) };
}

function closableDriver(driver: string): StoodInLayer["driver"] | undefined {
  const known: readonly StoodInLayer["driver"][] = ["qcow2", "vpc", "vhdx", "vmdk", "vdi"];
  return known.find((each) => each === driver);
}

/** A secret, or a second file. */
function needsMore({ encrypted, image }: BlockNodeInfo): boolean {
  const specific = image["format-specific"];
  return (
    encrypted ||
    image.encrypted === true ||
    (specific?.type === "qcow2" && specific.data["data-file"] !== undefined)
  );
}

function isMadeUp(node: string): boolean {
  return node.startsWith("#");
}

/** How to give a device its images back: with the node names as they are then. */
export interface Reopening {
  readonly standIn: string;
  readonly qomPath: string;
  readonly iothread?: string;
  /** The lowest image first. */
  readonly layers: readonly {
    readonly node: string;
    readonly nextNode: string;
    readonly options: BlockdevOptions;
    /** Takes the bitmaps back from the stand-in. */
    readonly bitmaps: readonly TransactionAction[];
  }[];
}

export function reopeningOf(standIn: StandIn): Reopening {
  const { node, qomPath, iothread, layers } = standIn;
  return {
    ...{ standIn: node, qomPath },
    ...(iothread === undefined ? {} : { iothread }),
    layers: layers.map((layer, index) => ({
      node: layer.node,
      nextNode: layer.nextNode,
      options: optionsOf(layer, layers[index - 1]),
      bitmaps: layer.bitmaps.flatMap(({ name, granularityBytes, recording }) =>
        copyBitmap(
          { node: layer.nextNode, name, granularityBytes, recording },
          { node, name: bitmapAt(index, name) },
        ),
      ),
    })),
  };
}

/** `discard` is what overlays of ours have; no other format than qcow2 heeds it. */
function optionsOf(
  { driver, nextNode, readOnly, cache, detectZeroes, file }: StoodInLayer,
  below: StoodInLayer | undefined,
): BlockdevOptions {
  const common = { discard: "unmap", cache } as const;
  const options = {
    ...common,
    "node-name": nextNode,
    "read-only": readOnly,
    "detect-zeroes": detectZeroes,
    file: {
      ...common,
      driver: file.driver,
      filename: file.filename,
      ...(file.nextNode === undefined ? {} : { "node-name": file.nextNode }),
    },
  } as const;
  // The other formats know no `backing`.
  if (driver === "qcow2" || driver === "vmdk")
    return { ...options, driver, backing: below?.nextNode ?? null };
  return { ...options, driver };
}

/** In the stand-in, which has those of all images. */
function bitmapAt(layer: number, name: string): string {
  return `${layer}.${name}`;
}

function copyBitmap(
  { node, name, granularityBytes, recording }: StoodInBitmap & { readonly node: string },
  from: { readonly node: string; readonly name: string },
): TransactionAction[] {
  return [
    {
      type: "block-dirty-bitmap-add",
      data: { node, name, granularity: granularityBytes, persistent: false, disabled: !recording },
    },
    { type: "block-dirty-bitmap-merge", data: { node, target: name, bitmaps: [from] } },
  ];
}

/** Makes the stand-in, after QEMU has shown that it can open the images' files. The guest does not notice. */
export async function prepareStandIn(qmp: QmpSession, { node, sizeBytes, layers }: StandIn): Promise<void> {
  for (const { file, readOnly } of layers) {
    const { driver, filename } = file;
    const access = { "read-only": readOnly, "auto-read-only": false };
    // Without a user it takes no lock, so that the same file may be open.
    await qmp.execute("blockdev-add", { driver, filename, "node-name": node, ...access });
    await qmp.execute("blockdev-del", { "node-name": node });
  }
  await qmp.execute("blockdev-add", {
    driver: "blkdebug",
    "node-name": node,
    image: { driver: "null-co", size: sizeBytes },
    "inject-error": (["read", "write", "write-zeroes", "discard"] as const).map((iotype) => ({
      event: "none",
      iotype,
      errno: EIO,
    })),
  });
}

const EIO = 5;

/** Gives the device the stand-in, and closes its images. The guest must stand still. */
export async function standIn(qmp: QmpSession, { node, qomPath, iothread, layers }: StandIn): Promise<void> {
  const actions = layers.flatMap((layer, index) =>
    layer.bitmaps.flatMap((bitmap) =>
      copyBitmap(
        { ...bitmap, node, name: bitmapAt(index, bitmap.name), recording: false },
        { node: layer.node, name: bitmap.name },
      ),
    ),
  );
  if (actions.length > 0) await qmp.execute("transaction", { actions });
  await give(qmp, { qomPath, iothread, node });
  for (const layer of layers.toReversed()) await remove(qmp, layer.node);
  for (const { file } of layers) await remove(qmp, file.node);
}

/**
 * Opens the images again and gives them to the device, if it has the stand-in, which goes. Idempotent, and fine however far a
 * killed process came. No saving may be under way: QEMU opens such images as little as it saves with them.
 */
export async function takeBack(qmp: QmpSession, planned: StandIn): Promise<void> {
  const { standIn: node, qomPath, iothread, layers } = reopeningOf(planned);
  const devices = await qmp.execute("query-block");
  if (devices.some(({ inserted }) => inserted?.["node-name"] === node)) {
    const names = await nodeNames(qmp);
    const isOpen = (layer: (typeof layers)[number]): boolean =>
      names.has(layer.nextNode) || names.has(layer.node);
    for (const { options, bitmaps } of layers.slice(layers.findLastIndex(isOpen) + 1)) {
      await qmp.execute("blockdev-add", options);
      if (bitmaps.length > 0) await qmp.execute("transaction", { actions: [...bitmaps] });
    }
    const top = layers.at(-1);
    if (top === undefined) return;
    const isNew = (await nodeNames(qmp)).has(top.nextNode);
    await give(qmp, { qomPath, iothread, node: isNew ? top.nextNode : top.node });
  }
  await remove(qmp, node);
}

/** The disk's node once its images are open again. */
export function reopenedNode({ node, layers }: StandIn): string {
  return layers.at(-1)?.nextNode ?? node;
}

/** As `settleGuest`, and the guest has its images before it runs. */
export async function settleSaving(
  qmp: QmpSession,
  clock: Clock,
  { wasRunning, standIns = [] }: { readonly wasRunning: boolean; readonly standIns?: readonly StandIn[] },
): Promise<void> {
  if (standIns.length > 0) {
    await settledState(qmp, clock);
    for (const each of standIns) await takeBack(qmp, each);
  }
  await settleGuest(qmp, clock, wasRunning);
}

/** A device in an iothread is in the main loop, or not, while its guest stands still; QEMU demands the same of a node. */
async function give(
  qmp: QmpSession,
  {
    qomPath,
    iothread,
    node,
  }: { readonly qomPath: string; readonly iothread: string | undefined; readonly node: string },
): Promise<void> {
  const attempt = { path: qomPath, property: "drive", value: node };
  try {
    await qmp.execute("qom-set", attempt);
  } catch (error) {
    if (iothread === undefined || !isQmpError(error, "QMP_COMMAND_FAILED")) throw error;
    await qmp.execute("x-blockdev-set-iothread", { "node-name": node, iothread });
    await qmp.execute("qom-set", attempt);
  }
}

/** What belongs to another node, and not to the monitor, is gone with it. */
async function remove(qmp: QmpSession, node: string): Promise<void> {
  if ((await nodeNames(qmp)).has(node)) await qmp.execute("blockdev-del", { "node-name": node });
}

async function nodeNames(qmp: QmpSession): Promise<ReadonlySet<string | undefined>> {
  const nodes = await qmp.execute("query-named-block-nodes", { flat: true });
  return new Set(nodes.map((node) => node["node-name"]));
}
