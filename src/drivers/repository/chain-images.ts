import { lstat } from "node:fs/promises";
import { chainOfDisk, type IntactEntry, type ManifestDisk } from "../../model/backup.js";
import type { BlockdevOptions } from "../../qmp/index.js";
import { errnoOf, fileError, FleeceError, isFleeceError } from "../../shared/errors.js";
import { exists } from "../durable-files.js";
import { imageInfo, type ImageInfo } from "../qemu-tools.js";
import { ENCRYPTED } from "../luks.js";
import { backingFile, imageFile, type Layout } from "./layout.js";
import type { Keys, RepositoryKey } from "./repository-key.js";
import { join } from "node:path";

/** The files of one disk in one backup, with what the manifests say of them. */
export interface ChainLink {
  readonly id: string;
  readonly disk: ManifestDisk;
  readonly imagePath: string;
  readonly digestsPath: string;
  /** What the image's header must name. */
  readonly backing: string | undefined;
  /** Its image has taken the place of the next one's, whose content is in it: see merge.ts. Its digests count. */
  readonly moved: boolean;
  /** Of the digests, and unless a merge was interrupted of the image, too; undefined: they are not encrypted. */
  readonly key: RepositoryKey | undefined;
  /** The image is. */
  readonly imageKey: RepositoryKey | undefined;
  /** Amid a merge that encrypts: its image may already hold what is below it, too, and then names this. */
  readonly merged?: { readonly backing: string | undefined };
}

/**
 * The links of a disk, from the backup that stored it whole. Fails with DAMAGED if a backup between lacks it or has it in
 * another size, with KEY_WRONG if it needs another key.
 */
export function chainLinks(
  layout: Layout,
  chain: readonly IntactEntry[],
  target: string,
  keys: Keys,
): readonly ChainLink[] {
  const links = chainOfDisk(chain, target);
  return links.map(({ domain, id, manifest }, index) => {
    const disk = manifest.disks.find((candidate) => candidate.target === target);
    const size = chain.at(-1)?.manifest.disks.find((candidate) => candidate.target === target)?.sizeBytes;
    if (disk === undefined || disk.sizeBytes !== size) {
      const what = disk === undefined ? "has no such disk" : `has it with ${disk.sizeBytes} bytes`;
      throw new FleeceError("DAMAGED", `Disk ${target} is based on backup ${id}, which ${what}`, {
        facts: { domain, backup: id, target },
      });
    }
    const parent = index === 0 ? undefined : links[index - 1]?.id;
    const key = keys(disk.keyId);
    return {
      id,
      disk,
      imagePath: join(layout.backup(domain, id), imageFile(target)),
      digestsPath: join(layout.backup(domain, id), disk.digests),
      backing: parent === undefined ? undefined : backingFile(parent, target),
      moved: false,
      ...{ key, imageKey: key },
    };
  });
}

/** The links as they are amid an interrupted merge of some of these backups (ids) into their children. */
export async function findMoved(
  links: readonly ChainLink[],
  merging: ReadonlySet<string>,
): Promise<readonly ChainLink[]> {
  const found: ChainLink[] = [];
  for (const link of links) {
    const before = found.at(-1);
    const moved = merging.has(link.id) && !(await exists(link.imagePath));
    found.push({ ...link, moved, ...(before === undefined ? {} : afterMerging(before, link, merging)) });
  }
  return found;
}

/** What an interrupted merge of the link `before` may have changed in the image of the next one. */
function afterMerging(
  before: ChainLink,
  { key }: ChainLink,
  merging: ReadonlySet<string>,
): Partial<ChainLink> {
  if (before.moved) return { backing: before.backing, imageKey: key ?? before.imageKey };
  const encrypts = merging.has(before.id) && key !== undefined && before.key === undefined;
  return encrypts ? { merged: { backing: before.backing } } : {};
}

/**
 * Fails with DAMAGED unless the image is a plain qcow2 file whose header names exactly what the chain says. The header is
 * never followed; but other tools would follow it, and one that names something else is not what was written.
 */
export async function checkImage(
  { imagePath, disk, backing, moved, imageKey, merged }: ChainLink,
  signal?: AbortSignal,
): Promise<void> {
  if (moved) return;
  const info = await readHeader(imagePath, signal);
  const fault =
    info.dataFile !== undefined
      ? `names the data file ${info.dataFile}, expected none`
      : info.backingFile !== backing && (merged === undefined || info.backingFile !== merged.backing)
        ? `names the backing file ${info.backingFile ?? "none"}, expected ${backing ?? "none"}`
        : info.backingFile !== undefined && info.backingFormat !== "qcow2"
          ? `names the backing format ${info.backingFormat ?? "none"}, expected qcow2`
          : info.sizeBytes !== disk.sizeBytes
            ? `has ${info.sizeBytes} bytes, expected ${disk.sizeBytes}`
            : info.encrypted !== (imageKey !== undefined)
              ? `is ${info.encrypted ? "encrypted" : "not encrypted"}, unlike what its manifest says`
              : undefined;
  if (fault !== undefined) throw damagedImage(imagePath, fault);
}

async function readHeader(path: string, signal: AbortSignal | undefined): Promise<ImageInfo> {
  try {
    if (!(await lstat(path)).isFile()) throw damagedImage(path, "is not a regular file");
    return await imageInfo(path, "qcow2", { signal });
  } catch (error) {
    if (errnoOf(error) === "ENOENT" || isFleeceError(error, "PATH_NOT_FOUND")) {
      throw damagedImage(path, "is missing", error);
    }
    if (isFleeceError(error, "QEMU_FAILED"))
      throw damagedImage(path, `is not usable: ${error.message}`, error);
    throw fileError(error, "read", path);
  }
}

function damagedImage(path: string, fault: string, cause?: unknown): FleeceError {
  return new FleeceError("DAMAGED", `The image ${path} ${fault}`, { cause, facts: { path } });
}

/** The chain as one node for `blockdev-add`, read-only, with every format and file spelled out: nothing is probed. */
export function chainNode(links: readonly ChainLink[], nodeName: string): BlockdevOptions {
  let node: BlockdevOptions | undefined;
  for (const [index, { imagePath, moved, imageKey }] of links.entries()) {
    if (moved) continue;
    node = {
      driver: "qcow2",
      "read-only": true,
      file: { driver: "file", "read-only": true, filename: imagePath },
      ...(imageKey === undefined ? {} : { encrypt: ENCRYPTED }),
      backing: node ?? null,
      ...(index === links.length - 1 ? { "node-name": nodeName } : {}),
    };
  }
  if (node === undefined)
    throw new FleeceError("INTERNAL", "Expected a chain of at least one image, got none");
  return node;
}
