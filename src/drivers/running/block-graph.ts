import type { DiskFormat, Obstacle } from "../../model/snapshot-plan.js";
import { DISK_FORMATS, formatOfDriver, isOurNode } from "../../model/snapshot-plan.js";
import type { QmpCommands } from "../../qmp/index.js";

type BlockDevice = QmpCommands["query-block"]["returns"][number];
type NamedNode = QmpCommands["query-named-block-nodes"]["returns"][number];
type Graph = QmpCommands["x-debug-query-block-graph"]["returns"];

/** What QEMU says about its block devices at one moment. */
export interface BlockFacts {
  readonly devices: readonly BlockDevice[];
  readonly nodes: readonly NamedNode[];
  readonly graph: Graph;
}

/** A writable, non-removable disk of a running domain. */
export interface LocatedDisk {
  /** The device id, the name of an old-style drive, or a made-up one for a device without either. */
  readonly id: string;
  /** Object path of the device whose `drive` property is the disk. */
  readonly qomPath: string;
  /** The node that the device uses: the disk itself, or a filter above it. */
  readonly rootNode: string;
  /** The node with the disk's content and bitmaps, below any filter. */
  readonly diskNode: string;
  readonly format: DiskFormat;
  readonly file: string;
  readonly sizeBytes: number;
  readonly allocatedBytes: number | undefined;
  /** The disk's own image first, then those below it. */
  readonly layers: readonly [NodeLayer, ...NodeLayer[]];
  readonly obstacle?: Obstacle;
}

/** Drivers that pass data through to a `file` child; anything else at the top of a disk is its format or protocol. */
const FILTERS: ReadonlySet<string> = new Set([
  "blkdebug",
  "blklogwrites",
  "blkverify",
  "copy-before-write",
  "copy-on-read",
  "preallocate",
  "replication",
  "throttle",
]);

/** A block device of an iothread-less guest is looked for by this alone; read-only disks and empty or removable drives are left out. */
export function locateDisks(facts: BlockFacts): readonly LocatedDisk[] {
  return facts.devices.flatMap((device) => {
    const root = device.inserted;
    if (root === undefined || root.ro || device.removable || device.qdev === undefined) return [];
    const rootNode = root["node-name"];
    if (rootNode === undefined) return [];
    const disk = belowFilters(facts, rootNode);
    if (disk === undefined) return [];
    const diskNode = disk["node-name"] ?? rootNode;
    const obstacle = filterObstacle(facts, rootNode, diskNode) ?? formatObstacle(disk);
    const [present, ...below] = layersOf(facts, diskNode);
    if (present === undefined) return [];
    return [
      {
        id: deviceId(device),
        qomPath: devicePath(device.qdev),
        rootNode,
        diskNode,
        format: formatOfDriver(disk.drv) ?? "raw",
        file: present.file,
        sizeBytes: root.image["virtual-size"],
        allocatedBytes: disk.image["actual-size"],
        layers: [present, ...below],
        ...(obstacle === undefined ? {} : { obstacle }),
      } satisfies LocatedDisk,
    ];
  });
}

/** The node that `filter` passes through to, or undefined if there is no such filter. */
export function filteredNode(graph: Graph, filter: string): string | undefined {
  return childNode(graph, filter, "file");
}

export function childNode(graph: Graph, node: string, role: "file" | "backing"): string | undefined {
  const parent = graph.nodes.find(({ name, type }) => name === node && type === "block-driver");
  const edge = graph.edges.find(({ parent: id, name }) => id === parent?.id && name === role);
  return graph.nodes.find(({ id }) => id === edge?.child)?.name;
}

/** One image of a disk's backing chain. */
export interface NodeLayer {
  readonly node: string;
  readonly driver: string;
  readonly file: string;
  readonly readOnly: boolean;
  readonly sizeBytes: number;
  readonly bitmaps: NonNullable<NamedNode["dirty-bitmaps"]>;
}

/** The disk itself and the images below it, down to the one without a backing file; filters between them are passed over. */
export function layersOf(facts: BlockFacts, diskNode: string): readonly NodeLayer[] {
  const layers: NodeLayer[] = [];
  let node = belowFilters(facts, diskNode);
  while (node !== undefined) {
    const name = node["node-name"] ?? "";
    layers.push({
      node: name,
      driver: node.drv,
      file: fileOf(facts, node),
      readOnly: node.ro,
      sizeBytes: node.image["virtual-size"],
      bitmaps: node["dirty-bitmaps"] ?? [],
    });
    const backing = childNode(facts.graph, name, "backing");
    node = backing === undefined ? undefined : belowFilters(facts, backing);
  }
  return layers;
}

/** QEMU makes up a `json:` name for an image whose parts were put together by node names. */
function fileOf(facts: BlockFacts, { file, "node-name": name }: NamedNode): string {
  if (!file.startsWith("json:")) return file;
  const below = childNode(facts.graph, name ?? "", "file");
  const node = facts.nodes.find((listed) => listed["node-name"] === below);
  return node === undefined ? file : fileOf(facts, node);
}

/** Images that have `node` as their backing file. */
export function overlaysOf(graph: Graph, node: string): readonly string[] {
  const child = graph.nodes.find(({ name, type }) => name === node && type === "block-driver");
  const parents = graph.edges.filter((edge) => edge.child === child?.id && edge.name === "backing");
  return parents.flatMap(({ parent }) => graph.nodes.find(({ id }) => id === parent)?.name ?? []);
}

function belowFilters(facts: BlockFacts, rootNode: string): NamedNode | undefined {
  const byName = new Map(facts.nodes.map((node) => [node["node-name"], node]));
  let node = byName.get(rootNode);
  while (node !== undefined && FILTERS.has(node.drv)) {
    node = byName.get(filteredNode(facts.graph, node["node-name"] ?? "") ?? "");
  }
  return node;
}

function filterObstacle(facts: BlockFacts, rootNode: string, diskNode: string): Obstacle | undefined {
  if (rootNode === diskNode) return undefined;
  const driver = facts.nodes.find((node) => node["node-name"] === rootNode)?.drv ?? "unknown";
  const reason = isOurNode(rootNode)
    ? `it already has a block snapshot (filter ${rootNode})`
    : `another tool's ${driver} filter ${rootNode} is on it`;
  return { code: "FOREIGN_FILTER", reason, filter: rootNode };
}

function formatObstacle(disk: NamedNode): Obstacle | undefined {
  if (formatOfDriver(disk.drv) !== undefined) return undefined;
  return {
    code: "UNSUPPORTED",
    reason: `its format is ${disk.drv}; expected one of ${DISK_FORMATS.join(", ")}`,
  };
}

/** `query-block` reports virtio-blk by the inner device; the `drive` property that can be set is the outer one's. */
export function devicePath(qdev: string): string {
  if (!qdev.startsWith("/")) return `/machine/peripheral/${qdev}`;
  return qdev.replace(/\/virtio-backend$/, "");
}

export function deviceId(device: BlockDevice): string {
  const path = devicePath(device.qdev ?? "");
  const peripheral = /^\/machine\/peripheral\/([^/]+)$/.exec(path)?.[1];
  if (peripheral !== undefined) return peripheral;
  if (device.device !== "") return device.device;
  return path.replace(/^.*\//, "").replaceAll(/[^A-Za-z0-9]+/g, "_");
}
