import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { IntactEntry, Manifest, ManifestDisk, ManifestFile } from "../../model/backup.js";
import { BLOCK_SIZE } from "../../model/extents.js";
import { checkName } from "../../model/names.js";
import type { ExportAddress } from "../../model/snapshot-plan.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { ImageFactory, OpenImages } from "../../ports/image-writer.js";
import type { BackupDraft, DraftRequest, DraftSummary, OpenBackup } from "../../ports/repository.js";
import { fileError, FleeceError } from "../../shared/errors.js";
import { isDirectory } from "./backup-directory.js";
import { BlockHasher } from "./block-hasher.js";
import { DigestWriter } from "./digest-writer.js";
import { ChainExpectations } from "./chain-expectations.js";
import type { ChainLink } from "./chain-images.js";
import { CompareSink } from "./compare-sink.js";
import { writeCopyRecord } from "./copy-record.js";
import { ImageSink } from "./disk-sink.js";
import { syncDirectory, writeDurably } from "../durable-files.js";
import {
  backingFile,
  digestsFile,
  imageFile,
  type Layout,
  MACHINE_DIRECTORY,
  MANIFEST_FILE,
} from "./layout.js";
import { FileEncryption } from "./file-cipher.js";
import { checkSources, copyMachineFiles } from "./machine-files.js";
import {
  ENCRYPTED_SCHEMA_VERSION,
  FILES_SCHEMA_VERSION,
  formatManifest,
  SCHEMA_VERSION,
} from "./manifest-schema.js";
import type { RepositoryKey } from "./repository-key.js";

export interface DraftPlace {
  readonly repository: string;
  readonly layout: Layout;
  readonly images: ImageFactory;
  readonly compressed: boolean;
  /** The backup is encrypted with it. */
  readonly key: RepositoryKey | undefined;
  /** The parent's files of each disk that is based on it, by target; the oldest first. Checks them, beside other work. */
  readonly bases: () => Promise<ReadonlyMap<string, readonly ChainLink[]>>;
}

type DraftSink = ImageSink | CompareSink;

/** What is open while a draft is. */
interface DraftParts {
  readonly images: OpenImages;
  readonly hasher: BlockHasher;
  readonly sinks: Map<string, DraftSink>;
}

type Bases = Awaited<ReturnType<DraftPlace["bases"]>>;

/** A backup that is being written under a name which no list shows. */
export class DirectoryDraft implements BackupDraft {
  readonly #place: DraftPlace;
  readonly #request: DraftRequest;
  readonly #directory: string;
  readonly #parts: DraftParts;
  readonly #bases: Bases;
  #state: "open" | "published" | "discarded" = "open";
  #machineFiles: readonly ManifestFile[] = [];

  private constructor(
    place: DraftPlace,
    request: DraftRequest,
    directory: string,
    parts: DraftParts,
    bases: Bases,
  ) {
    this.#place = place;
    this.#request = request;
    this.#directory = directory;
    this.#parts = parts;
    this.#bases = bases;
  }

  /** Fails with ALREADY_EXISTS if there is a backup of that id; after any error nothing is left but the undo entry. */
  static async begin(
    place: DraftPlace,
    request: DraftRequest,
    undo: UndoLog,
    signal?: AbortSignal,
  ): Promise<DirectoryDraft> {
    checkRequest(request);
    await checkSources(request.machineFiles ?? []);
    const { layout } = place;
    if (await isDirectory(layout.backup(request.domain, request.id))) {
      throw new FleeceError("ALREADY_EXISTS", `Backup ${request.id} of ${request.domain} exists already`);
    }
    const directory = layout.draft(request.domain, request.id);
    await undo.register({ kind: "directory", path: directory });
    try {
      await mkdir(directory, { mode: 0o700 });
    } catch (error) {
      throw fileError(error, "create the directory", directory);
    }
    try {
      const { images, bases } = await createImages(place, request, directory, signal);
      const parts = { images, hasher: new BlockHasher(), sinks: new Map<string, DraftSink>() };
      await openSinks(parts, bases, request, { directory, key: place.key });
      return new DirectoryDraft(place, request, directory, parts, bases);
    } catch (error) {
      await rm(directory, { recursive: true, force: true });
      throw error;
    }
  }

  disk(target: string): DraftSink {
    const sink = this.#parts.sinks.get(target);
    if (sink === undefined) {
      throw new FleeceError("INTERNAL", `Expected a disk of the backup, got ${target}`);
    }
    return sink;
  }

  image(target: string): ExportAddress {
    return this.#parts.images.address(target);
  }

  async keepMachineFiles(signal?: AbortSignal): Promise<void> {
    const { machineFiles = [] } = this.#request;
    this.#machineFiles = await copyMachineFiles(machineFiles, join(this.#directory, MACHINE_DIRECTORY), {
      key: this.#place.key,
      signal,
    });
  }

  async takeMachineFiles(from: OpenBackup, signal?: AbortSignal): Promise<void> {
    const { key } = this.#place;
    const files = await from.checkMachineFiles({
      copyTo: join(this.#directory, MACHINE_DIRECTORY),
      ...(key === undefined ? {} : { encrypt: (path) => new FileEncryption(key, path) }),
      signal,
    });
    this.#machineFiles = key === undefined ? files : files.map((file) => ({ ...file, keyId: key.id }));
  }

  parentExpectations(target: string): Promise<ChainExpectations> {
    return ChainExpectations.open(this.#bases.get(target) ?? []);
  }

  explain(error: unknown): Promise<unknown> {
    return this.#parts.images.explain(error);
  }

  async publish(summary: DraftSummary): Promise<IntactEntry> {
    const { domain, id, copiedFrom } = this.#request;
    const manifest = this.#manifest(summary);
    await this.#parts.images.finish();
    if (copiedFrom !== undefined) await writeCopyRecord(this.#directory, copiedFrom);
    await writeDurably(join(this.#directory, MANIFEST_FILE), formatManifest(manifest));
    await syncDirectory(this.#directory);
    await this.#giveFinalName();
    this.#state = "published";
    await closeParts(this.#parts);
    const copy = copiedFrom === undefined ? {} : { copiedFrom };
    return { repository: this.#place.repository, domain, id, manifest, ...copy };
  }

  abandon(): Promise<void> {
    return this.#parts.images.close();
  }

  async discard(): Promise<void> {
    if (this.#state === "published") return;
    this.#state = "discarded";
    await closeParts(this.#parts);
    try {
      await rm(this.#directory, { recursive: true, force: true });
    } catch (error) {
      throw fileError(error, "remove", this.#directory);
    }
  }

  async #giveFinalName(): Promise<void> {
    const { domain, id } = this.#request;
    const { layout } = this.#place;
    const final = layout.backup(domain, id);
    try {
      await rename(this.#directory, final);
    } catch (error) {
      throw fileError(error, "publish the backup as", final);
    }
    try {
      await syncDirectory(layout.domain(domain));
    } catch (error) {
      // Not known to be durable, so it must not be listed either.
      await rename(final, this.#directory);
      throw error;
    }
  }

  #manifest(summary: DraftSummary): Manifest {
    if (this.#state !== "open")
      throw new FleeceError("INTERNAL", `Expected an open draft, it is ${this.#state}`);
    const { id, domain, parent } = this.#request;
    if ((summary.level === "incremental") !== (parent !== undefined)) {
      throw new FleeceError("INTERNAL", `Expected the level of the draft, got ${summary.level}`);
    }
    const {
      level,
      reason,
      consistency,
      heldMs,
      frozenMs,
      quiesceFailure,
      scratchPeakBytes,
      checkpoint,
      request,
    } = summary;
    const machineFiles = this.#machineFiles;
    return {
      schemaVersion:
        this.#place.key !== undefined
          ? ENCRYPTED_SCHEMA_VERSION
          : machineFiles.length === 0
            ? SCHEMA_VERSION
            : FILES_SCHEMA_VERSION,
      ...{ id, domain, level },
      ...(parent === undefined ? {} : { parent: parent.id }),
      reason,
      time: new Date(summary.timeMs).toISOString(),
      startedAt: new Date(summary.startedAtMs).toISOString(),
      finishedAt: new Date(summary.finishedAtMs).toISOString(),
      ...{ consistency, heldMs, frozenMs, quiesceFailure, scratchPeakBytes, checkpoint, request },
      ...(summary.waits === undefined ? {} : { waits: summary.waits }),
      disks: this.#request.disks.map(({ target }) => this.#finishedDisk(target)),
      ...(machineFiles.length === 0 ? {} : { machineFiles }),
    };
  }

  #finishedDisk(target: string): ManifestDisk {
    const { result } = this.disk(target);
    const { key } = this.#place;
    if (result !== undefined) return key === undefined ? result : { ...result, keyId: key.id };
    throw new FleeceError(
      "INTERNAL",
      `Expected disk ${target} to be finished before the backup is published`,
    );
  }
}

function checkRequest({ id, disks, parent }: DraftRequest): void {
  const targets = new Set(disks.map(({ target }) => checkName("disk", target)));
  if (targets.size !== disks.length || disks.length === 0) {
    throw new FleeceError("INTERNAL", `Expected at least one disk and each once in backup ${id}`);
  }
  for (const { target, sizeBytes, mode, pushed } of disks) {
    if (mode === "whole") continue;
    if (mode === "compare" && pushed === true) {
      throw new FleeceError("INTERNAL", `Expected disk ${target} not to be pushed, since it is compared`);
    }
    const based = parent?.manifest.disks.find((disk) => disk.target === target);
    if (based?.sizeBytes === sizeBytes) continue;
    throw new FleeceError(
      "INTERNAL",
      `Expected disk ${target} with ${sizeBytes} bytes in backup ${parent?.id ?? "none"}, it has ${based?.sizeBytes ?? "none"}`,
    );
  }
}

/** The trouble of a damaged parent comes first: it is not of the moment. */
async function createImages(
  place: DraftPlace,
  { disks, parent }: DraftRequest,
  directory: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly images: OpenImages; readonly bases: Bases }> {
  const { key } = place;
  // A parent's LUKS header is used again.
  const finding = place.bases();
  const known = key === undefined ? undefined : await finding;
  const creating = place.images.create(
    disks.map(({ target, sizeBytes, mode, pushed }) => ({
      target,
      path: join(directory, imageFile(target)),
      format: "qcow2",
      sizeBytes,
      pushed: pushed === true,
      // QEMU compresses whole clusters alone, and offers no image for it that ends within one.
      compressed: place.compressed && sizeBytes % BLOCK_SIZE === 0,
      ...(parent === undefined || mode === "whole" ? {} : { backing: backingFile(parent.id, target) }),
      luks: key && { passphrase: key.passphrase, headerOf: encryptedImage(known?.get(target)) },
    })),
    signal,
  );
  const [bases, opened] = await Promise.allSettled([finding, creating]);
  if (opened.status === "rejected") throw bases.status === "rejected" ? bases.reason : opened.reason;
  if (bases.status === "fulfilled") return { images: opened.value, bases: bases.value };
  await opened.value.close();
  throw bases.reason;
}

/** The newest that is encrypted. */
function encryptedImage(links: readonly ChainLink[] = []): string | undefined {
  return links.findLast(({ imageKey, moved }) => imageKey !== undefined && !moved)?.imagePath;
}

async function openSinks(
  { images, hasher, sinks }: DraftParts,
  bases: Bases,
  { disks }: DraftRequest,
  { directory, key }: { readonly directory: string; readonly key: RepositoryKey | undefined },
): Promise<void> {
  try {
    for (const disk of disks) {
      const { target, mode } = disk;
      const storesData = disk.pushed !== true;
      const digests = await DigestWriter.create(join(directory, digestsFile(target)), disk.sizeBytes, key);
      const parts = { disk, image: images.writer(target), digests, hasher };
      const sink =
        mode === "compare" && disk.isKnown !== true
          ? await CompareSink.open(parts, bases.get(target) ?? [])
          : new ImageSink({ ...parts, storesData, storesZeroes: storesData && mode !== "whole" });
      sinks.set(target, sink);
    }
  } catch (error) {
    await closeParts({ images, hasher, sinks });
    throw error;
  }
}

async function closeParts({ images, hasher, sinks }: DraftParts): Promise<void> {
  await images.close();
  for (const sink of sinks.values()) await sink.close();
  await hasher.close();
}
