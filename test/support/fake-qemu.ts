import { BLOCK_SIZE } from "../../src/model/extents.js";
import type { FakeDisk } from "./fake-disk.js";
import { refused } from "./fake-disk.js";
import type { FakeExport, FakeImage } from "./fake-reader.js";

type FakeNode =
  | { readonly kind: "scratch" }
  | { readonly kind: "filter"; readonly disk: FakeDisk; readonly scratch: string; frozen?: Buffer }
  | { readonly kind: "target"; readonly image: FakeImage }
  | { readonly kind: "access"; readonly filter: string; readonly bitmaps: Map<string, ReadonlySet<number>> };

/** One QEMU process: the nodes, exports and the NBD server that end with it. Refuses what QEMU refuses. */
export class FakeQemu {
  readonly nodes = new Map<string, FakeNode>();
  /** Which filter a disk's device uses instead of the disk. */
  readonly roots = new Map<string, string>();
  readonly exports = new Map<string, FakeExport & { readonly node: string; readonly bitmap?: string }>();
  /** Copies, by the node that they write to, with the node that they read. */
  readonly jobs = new Map<string, { readonly from: string }>();
  nbdSocketPath: string | undefined;
  status: "running" | "paused" = "running";
  /** Whether the guest's file systems are, through its agent. */
  frozen = false;

  addNode(name: string, node: FakeNode): void {
    if (name.length > 31) throw refused(`Invalid node-name: ${name}`);
    if (this.nodes.has(name)) throw refused(`Duplicate nodes with node-name='${name}'`);
    this.nodes.set(name, node);
  }

  removeNode(name: string): void {
    const usedByNode = [...this.nodes.values()].some(
      (node) =>
        (node.kind === "filter" && node.scratch === name) || (node.kind === "access" && node.filter === name),
    );
    const usedByExport = [...this.exports.values()].some(({ node }) => node === name);
    const usedByJob = [...this.jobs].some(([to, { from }]) => to === name || from === name);
    if (usedByNode || usedByExport || usedByJob || [...this.roots.values()].includes(name)) {
      throw refused(`Node ${name} is in use`);
    }
    if (!this.nodes.delete(name)) throw refused(`Failed to find node with node-name='${name}'`);
  }

  /** From this moment the filter preserves what the disk held. */
  insertFilter(name: string): Buffer {
    const node = this.nodes.get(name);
    if (node?.kind !== "filter") throw refused(`Failed to find node with node-name='${name}'`);
    node.frozen = Buffer.from(node.disk.content);
    this.roots.set(node.disk.target, name);
    return node.frozen;
  }

  removeFilter(name: string): void {
    for (const [target, filter] of this.roots) if (filter === name) this.roots.delete(target);
  }

  addExport(
    id: string,
    { node, exportName, bitmap }: { node: string; exportName: string; bitmap?: string },
  ): string {
    if (this.nbdSocketPath === undefined) throw refused("NBD server not running");
    if (this.exports.has(id)) throw refused(`Block export id '${id}' is already in use`);
    const access = this.#access(node);
    const filter = this.nodes.get(access.filter);
    const content = filter?.kind === "filter" ? filter.frozen : undefined;
    if (content === undefined) throw refused(`Node ${node} has nothing frozen`);
    const changes = bitmap === undefined ? undefined : access.bitmaps.get(bitmap);
    if (bitmap !== undefined && changes === undefined) throw refused(`Bitmap ${bitmap} not found`);
    this.exports.set(id, {
      node,
      exportName,
      socketPath: this.nbdSocketPath,
      content,
      ended: false,
      ...(bitmap === undefined || changes === undefined ? {} : { bitmap, changes }),
    });
    return this.nbdSocketPath;
  }

  startCopy(from: string, to: string): void {
    if (this.jobs.has(to)) throw refused(`Job ID '${to}' already in use`);
    this.#access(from);
    if (this.nodes.get(to)?.kind !== "target") throw refused(`Failed to find node with node-name='${to}'`);
    this.jobs.set(to, { from });
  }

  /** Writes a part of what is frozen to the target of a copy. */
  copy(job: string, blocks: readonly number[]): void {
    const access = this.#access(this.jobs.get(job)?.from ?? "");
    const filter = this.nodes.get(access.filter);
    const target = this.nodes.get(job);
    if (filter?.kind !== "filter" || filter.frozen === undefined || target?.kind !== "target") {
      throw refused(`Job ${job} has nothing to copy`);
    }
    if (target.image.ended) throw refused("Input/output error");
    for (const block of blocks) {
      const [start, end] = [block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE];
      target.image.content.set(filter.frozen.subarray(start, end), start);
      target.image.written.add(block);
    }
  }

  removeExport(id: string): void {
    const found = this.exports.get(id);
    if (found !== undefined) found.ended = true;
    this.exports.delete(id);
  }

  addBitmap(node: string, bitmap: string, blocks: ReadonlySet<number>): void {
    const { bitmaps } = this.#access(node);
    if (bitmaps.has(bitmap)) throw refused(`Bitmap already exists: ${bitmap}`);
    bitmaps.set(bitmap, blocks);
  }

  removeBitmap(node: string, bitmap: string): void {
    const found = this.nodes.get(node);
    if (found?.kind !== "access" || !found.bitmaps.has(bitmap)) return;
    const busy = [...this.exports.values()].some((each) => each.node === node && each.bitmap === bitmap);
    if (busy) throw refused(`Bitmap '${bitmap}' is currently in use by another operation`);
    found.bitmaps.delete(bitmap);
  }

  end(): void {
    for (const each of this.exports.values()) each.ended = true;
  }

  traces(): unknown {
    const bitmaps = [...this.nodes.values()].flatMap((node) =>
      node.kind === "access" ? [...node.bitmaps.keys()] : [],
    );
    const { status, frozen, nbdSocketPath } = this;
    return {
      nodes: [...this.nodes.keys()],
      bitmaps,
      roots: [...this.roots],
      exports: [...this.exports.keys()],
      nbdSocketPath,
      status,
      frozen,
      jobs: [...this.jobs.keys()],
    };
  }

  #access(name: string): Extract<FakeNode, { kind: "access" }> {
    const node = this.nodes.get(name);
    if (node?.kind !== "access") throw refused(`Failed to find node with node-name='${name}'`);
    return node;
  }
}
