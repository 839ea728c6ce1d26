import type { BackupEntry, IntactEntry, Manifest } from "../../src/model/backup.js";
import { chainOf, chainOfDisk } from "../../src/model/backup.js";
import { mergedManifest } from "../../src/drivers/repository/merge-manifest.js";
import { BLOCK_SIZE, type BlockRun } from "../../src/model/extents.js";
import type { UndoLog } from "../../src/ports/block-driver.js";
import type {
  BackupDraft,
  BackupRepository,
  BlockExpectations,
  DraftRequest,
  DraftSummary,
  Merged,
  OpenBackup,
  OpenOptions,
  RepositoryLock,
} from "../../src/ports/repository.js";
import { FleeceError } from "../../src/shared/errors.js";
import type { FakeImage } from "./fake-reader.js";
import { FakeSink } from "./fake-sink.js";
import type { FakeDomain } from "./fake-domain.js";

interface Stored {
  readonly manifest: Manifest;
  readonly sinks: ReadonlyMap<string, FakeSink>;
}

/** A repository in memory. Unfinished backups are directories of the fake host, so that what is left of them shows. */
export class FakeRepository implements BackupRepository {
  readonly name: string;
  reserveBytes = 0;
  /** Of these, by id, the first byte of each disk is not what was stored any more. */
  isRotten: (id: string) => boolean = () => false;
  readonly #domain: FakeDomain;
  readonly #stored = new Map<string, Stored>();
  readonly #locks = new Set<string>();
  readonly #protected = new Set<string>();
  /** Where copies are from, by id. */
  readonly #copies = new Map<string, string>();

  constructor(domain: FakeDomain, name = "default") {
    this.name = name;
    this.#domain = domain;
  }

  checkWritable(): Promise<void> {
    return Promise.resolve();
  }

  checkKey(): Promise<boolean> {
    return Promise.resolve(false);
  }

  freeBytes(): Promise<number> {
    return Promise.resolve(this.#domain.host.freeBytes);
  }

  list(domain?: string): Promise<readonly BackupEntry[]> {
    const entries = [...this.#stored.values()].map(({ manifest }) => this.#entry(manifest));
    return Promise.resolve(
      entries.filter((entry) => domain === undefined || entry.manifest.domain === domain),
    );
  }

  has(_domain: string, id: string): Promise<boolean> {
    return Promise.resolve(this.#stored.has(id));
  }

  async lock(domain: string): Promise<RepositoryLock> {
    await Promise.resolve();
    if (this.#locks.has(domain)) throw new FleeceError("REPOSITORY_BUSY", `Repository ${this.name} is busy`);
    this.#locks.add(domain);
    for (const path of this.#domain.host.directories) {
      if (path.startsWith(this.#draftPath(domain, ""))) this.#domain.host.directories.delete(path);
    }
    return {
      release: () => {
        this.#locks.delete(domain);
        return Promise.resolve();
      },
    };
  }

  /** As the kernel does when the process that holds them ends. */
  dropLocks(): void {
    this.#locks.clear();
  }

  async begin(request: DraftRequest, undo: UndoLog, signal?: AbortSignal): Promise<BackupDraft> {
    signal?.throwIfAborted();
    if (!this.#locks.has(request.domain)) throw new Error("The caller must hold the lock");
    const path = this.#draftPath(request.domain, request.id);
    await undo.register({ kind: "directory", path });
    const { directories } = this.#domain.host;
    directories.add(path);
    const sinks = new Map(
      request.disks.map(({ target, sizeBytes, mode, isKnown }) => {
        const parent =
          mode === "compare" && isKnown !== true
            ? this.content(request.parent?.id ?? "no parent", target)
            : undefined;
        return [target, new FakeSink(target, sizeBytes, parent)];
      }),
    );
    const images = new Map(
      request.disks.flatMap((disk) => (disk.pushed === true ? [[disk.target, imageOf(request, disk)]] : [])),
    );
    for (const image of images.values()) this.#domain.images.add(image);
    const endImages = (): Promise<void> => {
      this.#domain.endImages(images.values());
      return Promise.resolve();
    };
    return {
      disk: (target) => {
        const sink = sinks.get(target);
        if (sink === undefined) throw new Error(`The draft has no disk ${target}`);
        return sink;
      },
      image: (target) => {
        const image = images.get(target);
        if (image === undefined) throw new Error(`Nobody serves the image of disk ${target}`);
        const { exportName, socketPath, content, changes } = image;
        const context = changes === undefined ? {} : { changesContext: "written" };
        return { target, exportName, socketPath, sizeBytes: content.length, ...context };
      },
      keepMachineFiles: () => Promise.resolve(),
      takeMachineFiles: () => Promise.resolve(),
      parentExpectations: (target) =>
        Promise.resolve(this.#expectations(request.parent?.id ?? "no parent", target)),
      explain: (error) => Promise.resolve(error),
      publish: async (summary) => {
        await Promise.resolve();
        for (const sink of sinks.values()) sink.requireFinished();
        await endImages();
        if (!directories.delete(path)) throw new FleeceError("PATH_NOT_FOUND", `${path} is gone`);
        const manifest = manifestOf(request, summary, sinks);
        this.#stored.set(request.id, { manifest, sinks });
        if (request.copiedFrom !== undefined) this.#copies.set(request.id, request.copiedFrom);
        return this.#entry(manifest);
      },
      abandon: endImages,
      discard: async () => {
        await endImages();
        directories.delete(path);
      },
    };
  }

  open(entry: IntactEntry, options: OpenOptions = {}): Promise<OpenBackup> {
    const disks = entry.manifest.disks.filter(
      ({ target }) => options.targets === undefined || options.targets.includes(target),
    );
    const served = disks.map(({ target }) => ({
      exportName: target,
      socketPath: `/fake-repository/${entry.id}.sock`,
      content: this.#servedContent(entry.id, target),
      ended: false,
    }));
    this.#domain.served.push(...served);
    const close = (): Promise<void> => {
      for (const each of served) each.ended = true;
      return Promise.resolve();
    };
    return Promise.resolve({
      chain: this.#chain(entry.id),
      addresses: served.map(({ exportName, socketPath, content }) => ({
        target: exportName,
        exportName,
        socketPath,
        sizeBytes: content.length,
      })),
      expectations: (target) => Promise.resolve(this.#expectations(entry.id, target)),
      checkMachineFiles: () => Promise.resolve([]),
      ended: new Promise<never>(() => undefined),
      close,
      [Symbol.asyncDispose]: close,
    });
  }

  remove(entry: BackupEntry): Promise<void> {
    this.#stored.delete(entry.id);
    return Promise.resolve();
  }

  merge({ id }: IntactEntry): Promise<Merged> {
    const entries = [...this.#stored.values()].map(({ manifest }) => this.#entry(manifest));
    const [child, ...others] = entries.filter(({ manifest }) => manifest.parent === id);
    const older = this.#stored.get(id);
    const younger = this.#stored.get(child?.id ?? "");
    if (older === undefined || younger === undefined || others.length > 0) {
      return Promise.reject(new FleeceError("BACKUP_HAS_CHILDREN", `Not one is based on ${id}`));
    }
    const sinks = new Map(
      [...younger.sinks].map(([target, sink]) => {
        const based = younger.manifest.disks.find((disk) => disk.target === target)?.mode !== "whole";
        return [target, based ? sink.over(older.sinks.get(target)) : sink];
      }),
    );
    const manifest = mergedManifest(older.manifest, younger.manifest);
    this.#stored.set(manifest.id, { manifest, sinks });
    this.#stored.delete(id);
    return Promise.resolve({ entry: this.#entry(manifest), writtenBytes: 0 });
  }

  finishMerges(): Promise<void> {
    return Promise.resolve();
  }

  protect({ id }: BackupEntry, isProtected: boolean): Promise<void> {
    if (isProtected) this.#protected.add(id);
    else this.#protected.delete(id);
    return Promise.resolve();
  }

  /** What a restore of one disk would bring back. */
  content(id: string, target: string): Buffer {
    const chain = this.#chain(id);
    const sizeBytes = chain.at(-1)?.manifest.disks.find((disk) => disk.target === target)?.sizeBytes;
    const content = Buffer.alloc(sizeBytes ?? 0);
    for (const entry of chainOfDisk(chain, target))
      this.#stored.get(entry.id)?.sinks.get(target)?.applyTo(content);
    return content;
  }

  #chain(id: string): readonly IntactEntry[] {
    const entries = [...this.#stored.values()].map(({ manifest }) => this.#entry(manifest));
    const chain = chainOf(entries, id);
    if (!chain.complete) throw new Error(chain.reason);
    return chain.entries;
  }

  #expectations(id: string, target: string): BlockExpectations {
    const links = chainOfDisk(this.#chain(id), target).map((entry) => entry.id);
    const runs = (since: string | undefined): readonly BlockRun[] => {
      const ids = since === undefined ? links : links.slice(links.indexOf(since) + 1);
      const [first, ...newer] = ids.flatMap((each) => this.#stored.get(each)?.sinks.get(target) ?? []);
      return first?.runs(newer) ?? [];
    };
    return { ...expectationsOf(this.content(id, target)), runs };
  }

  #servedContent(id: string, target: string): Buffer {
    const content = this.content(id, target);
    if (this.isRotten(id)) content.writeUInt8(content.readUInt8(0) ^ 0xff, 0);
    return content;
  }

  #entry(manifest: Manifest): IntactEntry {
    const { id, domain } = manifest;
    const isProtected = this.#protected.has(id) ? { protected: true } : {};
    const copiedFrom = this.#copies.get(id);
    const copy = copiedFrom === undefined ? {} : { copiedFrom };
    return { repository: this.name, domain, id, manifest, ...isProtected, ...copy };
  }

  #draftPath(domain: string, id: string): string {
    return `/fake-repository/${this.name}/${domain}/.partial-${id}`;
  }
}

function imageOf(
  { id }: DraftRequest,
  { target, sizeBytes, mode }: DraftRequest["disks"][number],
): FakeImage {
  const written = new Set<number>();
  return {
    exportName: `${target}-${id}`,
    socketPath: `/fake-repository/.partial-${id}.sock`,
    content: Buffer.alloc(sizeBytes),
    ...(mode === "whole" ? {} : { changes: written }),
    written,
    ended: false,
  };
}

function manifestOf(
  { id, domain, disks, parent }: DraftRequest,
  summary: DraftSummary,
  sinks: ReadonlyMap<string, FakeSink>,
): Manifest {
  const { timeMs, startedAtMs, finishedAtMs, ...rest } = summary;
  const time = (ms: number): string => new Date(ms).toISOString();
  return {
    schemaVersion: 2,
    id,
    domain,
    ...(parent === undefined ? {} : { parent: parent.id }),
    ...rest,
    time: time(timeMs),
    startedAt: time(startedAtMs),
    finishedAt: time(finishedAtMs),
    disks: disks.map(({ isKnown: _, ...disk }) => ({
      ...disk,
      image: `${disk.target}.qcow2`,
      digests: `${disk.target}.digests`,
      digestsSha256: "0".repeat(64),
      digestBlockBytes: BLOCK_SIZE,
      readBytes: sinks.get(disk.target)?.readBytes ?? 0,
      storedBytes: sinks.get(disk.target)?.storedBytes ?? 0,
      zeroBytes: sinks.get(disk.target)?.zeroBytes ?? 0,
      durationMs: 0,
    })),
  };
}

function expectationsOf(content: Buffer): Omit<BlockExpectations, "runs"> {
  const firstDifference = (offset: number, data: Uint8Array): number | undefined => {
    for (let at = 0; at < data.length; at += BLOCK_SIZE) {
      const block = data.subarray(at, at + BLOCK_SIZE);
      if (!content.subarray(offset + at, offset + at + block.length).equals(block)) return offset + at;
    }
    return undefined;
  };
  return {
    firstMismatch: (offset, data) => Promise.resolve(firstDifference(offset, data)),
    firstNonZero: (offset, length) => Promise.resolve(firstDifference(offset, new Uint8Array(length))),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}
