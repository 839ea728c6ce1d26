import { rm } from "node:fs/promises";
import type { BlockWriter } from "../ports/block-io.js";
import type { ExportAddress } from "../model/snapshot-plan.js";
import type { ImageFactory, NewImage, OpenImages } from "../ports/image-writer.js";
import { FleeceError, isFleeceError } from "../shared/errors.js";
import { syncFile } from "./durable-files.js";
import { ENCRYPTED, giveKey, newLuksHeader, readLuksHeader } from "./luks.js";
import { openNbdWriter } from "./nbd-io.js";
import { removeExport } from "./node-exports.js";
import { createImage } from "./qemu-tools.js";
import { processDirectoryPath } from "./runtime-directory.js";
import { StorageDaemon } from "./storage-daemon.js";
import type { BlockdevOptions } from "../qmp/index.js";

export interface StorageDaemonImagesOptions {
  /** Where the sockets are; default: the runtime root of this user. */
  readonly runtimeRoot?: string | undefined;
}

/** Creates images and writes to all of one call through one storage daemon. */
export class StorageDaemonImages implements ImageFactory {
  readonly #runtimeRoot: string | undefined;

  constructor(options: StorageDaemonImagesOptions = {}) {
    this.#runtimeRoot = options.runtimeRoot;
  }

  /** After an error none of the files is left. */
  async create(images: readonly NewImage[], signal?: AbortSignal): Promise<OpenImages> {
    const created: string[] = [];
    try {
      const headers = await Promise.all(images.map((image) => this.#luksHeader(image, signal)));
      for (const [index, image] of images.entries()) {
        await createImage({ ...image, luksHeader: headers[index], signal });
        created.push(image.path);
      }
      return await this.#serve(images, signal);
    } catch (error) {
      for (const path of created) await rm(path, { force: true });
      throw error;
    }
  }

  async #luksHeader({ luks }: NewImage, signal: AbortSignal | undefined): Promise<Buffer | undefined> {
    if (luks === undefined) return undefined;
    if (luks.headerOf !== undefined) return await readLuksHeader(luks.headerOf);
    return await newLuksHeader(luks.passphrase, { runtimeRoot: this.#runtimeRoot, signal });
  }

  async #serve(images: readonly NewImage[], signal: AbortSignal | undefined): Promise<OpenImages> {
    const directory = processDirectoryPath(this.#runtimeRoot);
    const daemon = await StorageDaemon.start({ directory, lifetime: "process", signal });
    try {
      const served: ServedImage[] = [];
      const passphrase = images.find(({ luks }) => luks !== undefined)?.luks?.passphrase;
      if (passphrase !== undefined) await giveKey(daemon, passphrase, signal);
      for (const [index, image] of images.entries()) {
        served.push(await serve(daemon, image, `image-${index}`, signal));
      }
      return new ServedImages(daemon, served);
    } catch (error) {
      await daemon.stop();
      throw error;
    }
  }
}

interface ServedImage {
  readonly image: NewImage;
  readonly nodes: readonly BlockdevOptions[];
  /** Of the node and of its export. */
  readonly id: string;
  readonly writer: BlockWriter;
}

async function serve(
  daemon: StorageDaemon,
  image: NewImage,
  id: string,
  signal: AbortSignal | undefined,
): Promise<ServedImage> {
  const nodes = await addNodes(daemon, image, id, signal);
  await daemon.execute(
    "block-export-add",
    { type: "nbd", id, "node-name": id, name: id, writable: true, "allocation-depth": image.pushed === true },
    { signal },
  );
  const address = { target: image.target, exportName: id, socketPath: daemon.nbdSocketPath };
  return { image, nodes, id, writer: await openNbdWriter(address, (error) => daemon.explain(error), signal) };
}

/**
 * An image is written past the host's page cache (O_DIRECT) where its file system can do that (one in memory may not): nobody
 * reads it soon, its pages would push out those of others, guests' among them, and a copy into it is nearly twice as fast
 * (measured; "Speed" in nbd-client-ts). Not compressed ones, of which QEMU writes less than whole clusters, nor raw ones,
 * which may end within a sector, nor those that are pushed, which are read back for their digests.
 */
async function addNodes(
  daemon: StorageDaemon,
  image: NewImage,
  id: string,
  signal: AbortSignal | undefined,
): Promise<readonly BlockdevOptions[]> {
  const add = async (direct: boolean): Promise<readonly BlockdevOptions[]> => {
    const nodes = imageNodes(image, id, direct);
    for (const node of nodes) await daemon.execute("blockdev-add", node, { signal });
    return nodes;
  };
  if (image.format !== "qcow2" || image.pushed === true || image.compressed === true) return await add(false);
  try {
    return await add(true);
  } catch (error) {
    signal?.throwIfAborted();
    if (!isFleeceError(error, "QEMU_FAILED")) throw error;
    return await add(false);
  }
}

/** The last is what is written to. */
function imageNodes(image: NewImage, id: string, direct: boolean): readonly BlockdevOptions[] {
  if (image.compressed !== true) return [imageNode(image, id, direct)];
  const plain = imageNode(image, plainNode(id), direct);
  return [plain, { driver: "compress", "node-name": id, file: plainNode(id) }];
}

function plainNode(id: string): string {
  return `${id}-plain`;
}

/**
 * `backing: null`: the parents are neither opened nor locked, since whole clusters are written; zeroes are written as zero
 * clusters all the same, which hide the parent's data. `no-flush`: QEMU hands its metadata to the kernel but leaves the
 * waiting for the disk to one fsync at the end.
 */
function imageNode({ path, format, pushed, luks }: NewImage, id: string, direct: boolean): BlockdevOptions {
  const common = { discard: "unmap", cache: { direct, "no-flush": true } } as const;
  const file = { ...common, driver: "file", filename: path } as const;
  const node = { ...common, "node-name": id, file, ...(pushed === true ? DETECT_ZEROES : {}) };
  if (format === "raw") return { ...node, driver: "raw" };
  return { ...node, driver: "qcow2", backing: null, ...(luks === undefined ? {} : { encrypt: ENCRYPTED }) };
}

const DETECT_ZEROES = { "detect-zeroes": "on" } as const;

/**
 * Of QEMU's interop/nbd.rst: 0 is what no image of the chain holds, 1 what the topmost holds, as data or as zeroes. No backing
 * file is open here, so that it tells what has been written, in the bit that marks changes in bitmaps too.
 */
const WRITTEN = "qemu:allocation-depth";

class ServedImages implements OpenImages {
  readonly #daemon: StorageDaemon;
  readonly #images: readonly ServedImage[];

  constructor(daemon: StorageDaemon, images: readonly ServedImage[]) {
    this.#daemon = daemon;
    this.#images = images;
  }

  writer(target: string): BlockWriter {
    return this.#served(target).writer;
  }

  address(target: string): ExportAddress {
    const { id, image } = this.#served(target);
    const { sizeBytes, backing } = image;
    const changes = backing === undefined ? {} : { changesContext: WRITTEN };
    return { target, exportName: id, socketPath: this.#daemon.nbdSocketPath, sizeBytes, ...changes };
  }

  explain(error: unknown): Promise<unknown> {
    return this.#daemon.explain(error);
  }

  async finish(): Promise<void> {
    // Before the nodes go: closing an image would only print an error, and say nothing over QMP.
    for (const { writer } of this.#images) await writer.flush();
    for (const { id, nodes, writer } of this.#images) {
      await writer.close();
      await this.#daemon.attempt((qmp) => removeExport(qmp, id));
      for (const node of nodes.toReversed()) {
        await this.#daemon.execute("blockdev-del", { "node-name": node["node-name"] ?? "" });
      }
    }
    await this.#daemon.stop();
    for (const { image } of this.#images) await syncFile(image.path);
  }

  async close(): Promise<void> {
    // What was not finished is worth nothing. Its storage may hang, and with it whoever waits for this.
    await this.#daemon.stop({ atOnce: true });
    await Promise.all(this.#images.map(({ writer }) => writer.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #served(target: string): ServedImage {
    const found = this.#images.find(({ image }) => image.target === target);
    if (found !== undefined) return found;
    throw new FleeceError("INTERNAL", `Expected an image for disk ${target}, there is none`);
  }
}
