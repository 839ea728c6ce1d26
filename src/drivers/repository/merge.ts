import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { IntactEntry, Manifest, ManifestDisk } from "../../model/backup.js";
import type { Merged, MergeOptions } from "../../ports/repository.js";
import { BLOCK_SIZE } from "../../model/extents.js";
import { fileError, FleeceError } from "../../shared/errors.js";
import { replaceDurably, syncDirectory } from "../durable-files.js";
import { readLuksHeader } from "../luks.js";
import { createImage } from "../qemu-tools.js";
import { type ChainLink, chainLinks, checkImage, findMoved } from "./chain-images.js";
import { DigestFile } from "./digest-file.js";
import {
  isMergedDigestsFile,
  digestsFile,
  encryptedImagePath,
  type Layout,
  MANIFEST_FILE,
  mergedDigestsFile,
} from "./layout.js";
import { formatManifest } from "./manifest-schema.js";
import { uniteDigests } from "./merge-digests.js";
import { type MergedImage, MergeImages } from "./merge-images.js";
import { isBased, type MergedFigures, mergedManifest } from "./merge-manifest.js";
import { writeMergeRecord } from "./merge-record.js";
import type { Keys } from "./repository-key.js";

/*
 * A backup X is merged into Y, the only one based on it:
 *
 *     P <── X <── Y <── Z     becomes     P <── Y <── Z
 *
 * X's image is the one that is kept, since it may be a full of terabytes and Y an increment of a few blocks. Y's blocks are
 * written into it while Y still lies over it: what Y shows does not change thereby, for each block that is written is one
 * that Y has itself. Only X changes, and X has expired. Then X's image takes the place of Y's, under Y's name, so that Z's
 * header stays true.
 *
 *     1  X/merging.json                   from now on X is no backup; lists leave it out, chains still go through it
 *     2  Y's blocks into X/vda.qcow2      synced; to be compressed, they become zero there before
 *     3  Y/vda.digests~X                  the digests of both, Y's over X's; synced, and nobody looks at it yet
 *     4  X/vda.qcow2 to Y/vda.qcow2       for each disk; one that is missing from X has been moved
 *     5  Y/manifest.json                  based on P, with the new digests
 *     6  Y's old digests and X go
 *
 * After a kill between any two of them everything can be read: before 5 Y's digests with X's over those of P say what
 * the disk holds, whether its image has been moved or not. All of it may be done again from 2 on.
 *
 * If Y is encrypted and X is not, nothing of Y may get into X's image. Then steps 2 and 4 are:
 *
 *     2' the blocks of X, then of Y, into X/vda.qcow2.encrypted
 *     4' that to Y/vda.qcow2, synced; then X/vda.qcow2 is removed
 *
 * Between the two parts of 4', Y's image holds what is below it, too. It lies over X's all the same, to no effect.
 */

export interface MergePlace {
  readonly layout: Layout;
  readonly keys: Keys;
  readonly runtimeRoot: string | undefined;
  /** What is written is to be compressed, where QEMU can. */
  readonly compressed: boolean;
}

export interface MergePair {
  readonly older: IntactEntry;
  readonly younger: IntactEntry;
  /** The younger one with all it is based on, the full first. */
  readonly chain: readonly IntactEntry[];
  /** Its record is written. */
  readonly begun: boolean;
}

/** A disk whose image is to be replaced. */
interface MergedDisk {
  readonly target: string;
  readonly older: ChainLink;
  readonly younger: ChainLink;
  readonly digests: { readonly older: DigestFile; readonly younger: DigestFile };
}

/** Does all that is left to do of a merge. The caller holds the domain's lock, and nobody reads the older backup. */
export async function merge(place: MergePlace, pair: MergePair, options: MergeOptions): Promise<Merged> {
  const { older, younger } = pair;
  const directory = place.layout.backup(younger.domain, younger.id);
  const disks: MergedDisk[] = [];
  let manifest: Manifest;
  let writtenBytes: number;
  try {
    for (const disk of younger.manifest.disks.filter(isBased)) {
      disks.push(await openDisk(place, pair, disk, options.signal));
    }
    writtenBytes = await copyBlocks(place, pair, disks, options);
    const figures = await uniteAll(directory, older.id, disks);
    for (const disk of disks) await moveImage(disk, directory);
    await syncDirectory(directory);
    await syncDirectory(place.layout.backup(older.domain, older.id));
    manifest = mergedManifest(older.manifest, younger.manifest, figures);
    await replaceDurably(join(directory, MANIFEST_FILE), formatManifest(manifest));
  } finally {
    for (const { digests } of disks) {
      await digests.older.close();
      await digests.younger.close();
    }
  }
  await dropMerged(place.layout, older, manifest);
  return { entry: { ...younger, manifest }, writtenBytes };
}

/** What is left to do when the younger backup needs the older one no more, or is gone itself (no `manifest`). */
export async function dropMerged(
  layout: Layout,
  { domain, id }: Pick<IntactEntry, "domain" | "id">,
  manifest: Manifest | undefined,
): Promise<void> {
  if (manifest !== undefined) await removeOldDigests(layout.backup(domain, manifest.id), manifest);
  await removeBackup(layout, domain, id);
}

/** First out of sight, so that a kill in between leaves no half of a backup in the list. */
export async function removeBackup(layout: Layout, domain: string, id: string): Promise<void> {
  const doomed = layout.deleted(domain, id);
  await rm(doomed, { recursive: true, force: true });
  await rename(layout.backup(domain, id), doomed);
  await syncDirectory(layout.domain(domain));
  await rm(doomed, { recursive: true, force: true });
}

/** Fails with DAMAGED unless all files of the disk are what was stored, as far as the headers of images tell. */
async function openDisk(
  { layout, keys }: MergePlace,
  { older, chain, begun }: MergePair,
  { target }: ManifestDisk,
  signal: AbortSignal | undefined,
): Promise<MergedDisk> {
  const merging = new Set(begun ? [older.id] : []);
  const links = await findMoved(chainLinks(layout, chain, target, keys), merging);
  const [from, to] = [links.at(-2), links.at(-1)];
  if (from === undefined || to === undefined || from.id !== older.id) {
    throw new FleeceError(
      "DAMAGED",
      `Disk ${target} of backup ${chain.at(-1)?.id ?? ""} has no backup below`,
      {
        facts: { target },
      },
    );
  }
  await checkImage(from, signal);
  await checkImage(to, signal);
  const newer = await openDigests(to);
  try {
    return { target, older: from, younger: to, digests: { older: await openDigests(from), younger: newer } };
  } catch (error) {
    await newer.close();
    throw error;
  }
}

function openDigests({ digestsPath, disk, key }: ChainLink): Promise<DigestFile> {
  return DigestFile.open({ path: digestsPath, diskBytes: disk.sizeBytes, sha256: disk.digestsSha256, key });
}

/** The older image is not encrypted, and must not get the younger one's blocks. */
function isToEncrypt({ older, younger }: MergedDisk): boolean {
  return !older.moved && younger.key !== undefined && older.key === undefined;
}

/** What is copied for a disk, in this order. */
function copiesOf(disk: MergedDisk, firstIndex: number, compressed: boolean): readonly MergedImage[] {
  const { target, older, younger, digests } = disk;
  const { sizeBytes } = younger.disk;
  const encrypts = isToEncrypt(disk);
  const isEncrypted = encrypts || older.imageKey !== undefined;
  const copy = (index: number, source: "older" | "younger"): MergedImage => ({
    ...{ target, index, sizeBytes, digests: digests[source] },
    from: disk[source].imagePath,
    to: encrypts ? encryptedImagePath(older.imagePath) : older.imagePath,
    encrypted: {
      from: disk[source].imageKey !== undefined,
      to: isEncrypted,
    },
    // As for new images: see directory-draft.ts.
    compressed: compressed && !isEncrypted && sizeBytes % BLOCK_SIZE === 0,
  });
  return encrypts
    ? [copy(firstIndex, "older"), copy(firstIndex + 1, "younger")]
    : [copy(firstIndex, "younger")];
}

/** Empty, with the younger image's LUKS header. What was left of one is removed. */
async function createEncrypted(
  { older, younger }: MergedDisk,
  signal: AbortSignal | undefined,
): Promise<void> {
  const path = encryptedImagePath(older.imagePath);
  await rm(path, { force: true });
  const luksHeader = await readLuksHeader(younger.imagePath);
  const { sizeBytes } = younger.disk;
  await createImage({ path, format: "qcow2", sizeBytes, backing: older.backing, luksHeader, signal });
}

async function copyBlocks(
  { layout, runtimeRoot, compressed }: MergePlace,
  { older, younger, begun }: MergePair,
  disks: readonly MergedDisk[],
  { signal, onProgress }: MergeOptions,
): Promise<number> {
  const unmoved = disks.filter((disk) => !disk.older.moved);
  const directory = layout.backup(older.domain, older.id);
  if (unmoved.length === 0) {
    if (!begun) await writeMergeRecord(directory, younger.id);
    return 0;
  }
  const keys = unmoved.flatMap(({ older: { imageKey }, younger: { key } }) => [imageKey, key]);
  const key = keys.find((candidate) => candidate !== undefined);
  await using daemon = await MergeImages.open(runtimeRoot, key, signal);
  const copies = unmoved.map((disk, index) => copiesOf(disk, 2 * index, compressed));
  for (const disk of unmoved.filter(isToEncrypt)) await createEncrypted(disk, signal);
  for (const [first] of copies) if (first !== undefined) await daemon.add(first, signal);
  if (!begun) await writeMergeRecord(directory, younger.id);
  let writtenBytes = 0;
  for (const images of copies) {
    const totalBytes = images.reduce(
      (sum, { digests, sizeBytes }) => sum + Math.min(digests.runs.blockCount * BLOCK_SIZE, sizeBytes),
      0,
    );
    let doneBytes = 0;
    for (const [index, image] of images.entries()) {
      if (index > 0) await daemon.add(image, signal);
      writtenBytes += await daemon.copy(image, signal, (bytes) => {
        doneBytes += bytes;
        onProgress?.({ id: younger.id, target: image.target, doneBytes, totalBytes });
      });
    }
  }
  return writtenBytes;
}

async function uniteAll(
  directory: string,
  olderId: string,
  disks: readonly MergedDisk[],
): Promise<ReadonlyMap<string, MergedFigures>> {
  const figures = new Map<string, MergedFigures>();
  for (const { target, older, younger, digests } of disks) {
    const name = mergedDigestsFile(target, olderId);
    const files = [digests.younger, digests.older];
    const key = younger.key ?? older.key;
    const united = await uniteDigests(join(directory, name), files, younger.disk.sizeBytes, key);
    figures.set(target, { digests: name, ...united });
  }
  return figures;
}

async function moveImage(disk: MergedDisk, directory: string): Promise<void> {
  const { older, younger } = disk;
  if (older.moved) return;
  try {
    if (isToEncrypt(disk)) {
      await rename(encryptedImagePath(older.imagePath), younger.imagePath);
      // Only one that is known to be there makes the other one superfluous.
      await syncDirectory(directory);
      await rm(older.imagePath);
    } else {
      await rename(older.imagePath, younger.imagePath);
    }
  } catch (error) {
    throw fileError(error, "move the image", older.imagePath);
  }
}

/** Those of before the last merge; nobody looks at them any more. */
async function removeOldDigests(directory: string, { disks }: Manifest): Promise<void> {
  const named = new Set(disks.map(({ digests }) => digests));
  try {
    for (const name of await readdir(directory)) {
      const isDigests = disks.some(
        ({ target }) => name === digestsFile(target) || isMergedDigestsFile(name, target),
      );
      if (isDigests && !named.has(name)) await rm(join(directory, name), { force: true });
    }
  } catch (error) {
    throw fileError(error, "tidy up", directory);
  }
}
