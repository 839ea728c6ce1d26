import { access, constants, mkdir, readdir, rm, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import {
  byTime,
  chainOf,
  isIntact,
  keyIdOf,
  type BackupEntry,
  type IntactEntry,
} from "../../model/backup.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { ImageFactory } from "../../ports/image-writer.js";
import type {
  BackupDraft,
  BackupRepository,
  DraftRequest,
  OpenBackup,
  Merged,
  MergeOptions,
  OpenOptions,
  RepositoryLock,
} from "../../ports/repository.js";
import { forEachLimited } from "../../shared/async.js";
import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { freeBytes } from "../free-bytes.js";
import { describeHolder, tryKernelLock } from "../kernel-lock.js";
import { isDirectory, namedDirectories, readStored, type StoredBackup } from "./backup-directory.js";
import { type ChainLink, chainLinks, checkImage, findMoved } from "./chain-images.js";
import { DirectoryDraft } from "./directory-draft.js";
import { createPrivate, exists, syncDirectory } from "../durable-files.js";
import { type KeyPlace, readKey } from "./key-source.js";
import { isLeftover, Layout, LOCK_FILE, MACHINE_DIRECTORY, MANIFEST_FILE, PROTECTED_FILE } from "./layout.js";
import { ManifestFiles } from "./manifest-files.js";
import { dropMerged, merge, removeBackup } from "./merge.js";
import { type HeldBackup, holdAlone, holdToRead } from "./reading.js";
import { type Keys, keysOf, type RepositoryKey } from "./repository-key.js";
import { chosenTargets, ServedBackup } from "./served-backup.js";
import { asListed, mergingIds } from "./stored-backups.js";

/** As many as Node has threads for files. */
const PARALLEL_READS = 4;

export interface DirectoryRepositoryOptions {
  readonly name: string;
  /** Must exist: a mount that is missing must not be filled silently. */
  readonly path: string;
  readonly images: ImageFactory;
  /** Default: 0. */
  readonly reserveBytes?: number;
  /** Of the content of new backups; default: none. Those that are there are read as they are. */
  readonly compression?: "none" | "zstd";
  /** New backups are encrypted with this key; it also opens those that are there. */
  readonly encryption?: KeyPlace | undefined;
  /** For the sockets of what is served; default: the runtime root of this user. */
  readonly runtimeRoot?: string | undefined;
}

/** A repository that is a directory; see layout.ts for what is in it. */
export class DirectoryRepository implements BackupRepository {
  readonly name: string;
  readonly reserveBytes: number;
  readonly #layout: Layout;
  readonly #compressed: boolean;
  readonly #encryption: KeyPlace | undefined;
  readonly #images: ImageFactory;
  readonly #runtimeRoot: string | undefined;
  readonly #manifests = new ManifestFiles();

  constructor(options: DirectoryRepositoryOptions) {
    this.name = options.name;
    this.reserveBytes = options.reserveBytes ?? 0;
    this.#compressed = options.compression === "zstd";
    this.#encryption = options.encryption;
    this.#layout = new Layout(resolve(options.path));
    this.#images = options.images;
    this.#runtimeRoot = options.runtimeRoot;
  }

  async checkWritable(): Promise<void> {
    await this.#checkRoot();
    try {
      await access(this.#layout.root, constants.W_OK | constants.X_OK | constants.R_OK);
    } catch (error) {
      throw fileError(error, "write to the repository", this.#layout.root);
    }
  }

  async checkKey(parent?: IntactEntry, signal?: AbortSignal): Promise<boolean> {
    if (this.#encryption !== undefined) await readKey(this.#encryption, signal);
    if (parent !== undefined) await this.#keys((await this.#chain(parent)).chain, signal);
    return this.#encryption !== undefined;
  }

  async freeBytes(): Promise<number> {
    return Math.max(0, (await freeBytes(this.#layout.root)) - this.reserveBytes);
  }

  async list(domain?: string): Promise<readonly BackupEntry[]> {
    await this.#checkRoot();
    const domains = domain === undefined ? await namedDirectories(this.#layout.root, "domain") : [domain];
    const lists: BackupEntry[] = [];
    for (const name of domains.toSorted()) lists.push(...(await this.#listDomain(name)));
    return lists;
  }

  async has(domain: string, id: string): Promise<boolean> {
    await this.#checkRoot();
    return await isDirectory(this.#layout.backup(domain, id));
  }

  async lock(domain: string): Promise<RepositoryLock> {
    await this.checkWritable();
    const directory = this.#layout.domain(domain);
    await this.#makeDomain(directory);
    const attempt = await tryKernelLock(join(directory, LOCK_FILE), "writes backups");
    if (!attempt.held) {
      throw new FleeceError(
        "REPOSITORY_BUSY",
        `Backups of ${domain} in repository ${this.name} are locked: ${describeHolder(attempt.holder)}`,
        { facts: { domain, repository: this.name } },
      );
    }
    try {
      await sweep(directory);
    } catch (error) {
      await attempt.lock.release();
      throw error;
    }
    return attempt.lock;
  }

  async begin(request: DraftRequest, undo: UndoLog, signal?: AbortSignal): Promise<BackupDraft> {
    const { parent } = request;
    const key = this.#encryption === undefined ? undefined : await readKey(this.#encryption, signal);
    // The caller's lock on the domain keeps it as it is.
    const files = parent === undefined ? undefined : await this.#chain(parent);
    const keys = await this.#keys(files?.chain ?? [], signal, key);
    const bases = () => this.#bases(request.disks, files, keys, signal);
    const place = {
      ...{ repository: this.name, layout: this.#layout, images: this.#images, bases },
      compressed: this.#compressed,
      key,
    };
    return await DirectoryDraft.begin(place, request, undo, signal);
  }

  async open(entry: IntactEntry, options: OpenOptions = {}): Promise<OpenBackup> {
    const { chain, merging, hold } = await this.#hold(entry, options.signal);
    try {
      const keys = await this.#keys(chain, options.signal);
      const links = new Map<string, readonly ChainLink[]>();
      for (const target of chosenTargets(chain, options.targets)) {
        links.set(target, await findMoved(chainLinks(this.#layout, chain, target, keys), merging));
      }
      const machine = {
        directory: join(this.#layout.backup(entry.domain, entry.id), MACHINE_DIRECTORY),
        files: chain.at(-1)?.manifest.machineFiles ?? [],
        keys,
      };
      return await ServedBackup.open(links, hold, {
        ...options,
        runtimeRoot: this.#runtimeRoot,
        chain,
        machine,
      });
    } catch (error) {
      await hold[Symbol.asyncDispose]();
      throw error;
    }
  }

  async remove(entry: BackupEntry): Promise<void> {
    const { domain, id } = entry;
    await using _ = await holdAlone(this.#held(entry));
    try {
      await removeBackup(this.#layout, domain, id);
    } catch (error) {
      if (errnoOf(error) !== "ENOENT")
        throw fileError(error, "remove backup", this.#layout.backup(domain, id));
    }
    // What was on the way into it is of no use to anybody else.
    await this.#finish(domain, ({ mergingInto }) => mergingInto === id);
  }

  async merge({ domain, id }: IntactEntry, options: MergeOptions = {}): Promise<Merged> {
    const isParent = ({ entry }: StoredBackup): boolean => entry.manifest?.parent === id;
    await this.#finish(domain, (stored) => stored.mergingInto === id || isParent(stored), options);
    const stored = await this.#stored(domain);
    const [child, ...others] = stored.filter(isParent).map(({ entry }) => entry);
    if (child === undefined || others.length > 0) {
      throw new FleeceError(
        "BACKUP_HAS_CHILDREN",
        `Expected one backup that is based on ${id}, to merge it into, got ${others.length === 0 ? "none" : others.length + 1}`,
        { facts: { domain, backup: id } },
      );
    }
    return await this.#merge(stored, { domain, older: id, younger: child.id, begun: false }, options);
  }

  async finishMerges(domain: string, options: MergeOptions = {}): Promise<void> {
    await this.#finish(domain, () => true, options);
  }

  async protect(entry: BackupEntry, isProtected: boolean): Promise<void> {
    const directory = this.#layout.backup(entry.domain, entry.id);
    const path = join(directory, PROTECTED_FILE);
    if (isProtected === (await exists(path))) return;
    if (isProtected) await (await createPrivate(path)).close();
    else await rm(path, { force: true });
    await syncDirectory(directory);
  }

  async #checkRoot(): Promise<void> {
    const { root } = this.#layout;
    try {
      if ((await stat(root)).isDirectory()) return;
    } catch (error) {
      throw fileError(error, "use the repository", root);
    }
    throw new FleeceError("PATH_NOT_FOUND", `Cannot use the repository ${root}: it is not a directory`, {
      facts: { path: root },
    });
  }

  async #makeDomain(directory: string): Promise<void> {
    try {
      await mkdir(directory, { mode: 0o700 });
      await syncDirectory(this.#layout.root);
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw fileError(error, "create the directory", directory);
      if (await isDirectory(directory)) return;
      throw new FleeceError(
        "PERMISSION_DENIED",
        `Cannot write backups to ${directory}: it is not a directory`,
        {
          facts: { path: directory },
        },
      );
    }
  }

  async #listDomain(domain: string): Promise<readonly BackupEntry[]> {
    return asListed(await this.#stored(domain)).toSorted(byTime);
  }

  /** All that is there, also what is being merged away. */
  async #stored(domain: string): Promise<readonly StoredBackup[]> {
    const path = this.#layout.domain(domain);
    if (!(await isDirectory(path))) return [];
    const ids = await namedDirectories(path, "backup");
    const found = new Array<StoredBackup | undefined>(ids.length);
    await forEachLimited(ids.entries(), PARALLEL_READS, async ([index, id]) => {
      const directory = this.#layout.backup(domain, id);
      found[index] = await readStored({ repository: this.name, domain, id, directory }, this.#manifests);
    });
    return found.filter((stored) => stored !== undefined);
  }

  async #chain({ domain, id }: BackupEntry): Promise<ChainFiles> {
    await this.#checkRoot();
    const stored = await this.#stored(domain);
    return { chain: wholeChain(domain, stored, id), merging: mergingIds(stored) };
  }

  /** For all of a chain; `key` is that of the repository, if it is known already. Fails with KEY_WRONG or KEY_UNAVAILABLE. */
  async #keys(
    chain: readonly IntactEntry[],
    signal: AbortSignal | undefined,
    key?: RepositoryKey,
  ): Promise<Keys> {
    const encrypted = chain.find(({ manifest }) => keyIdOf(manifest) !== undefined);
    if (encrypted === undefined) return keysOf(this.name, undefined);
    const { domain, id } = encrypted;
    if (this.#encryption === undefined) {
      throw new FleeceError(
        "KEY_UNAVAILABLE",
        `Backup ${id} of ${domain} in repository ${this.name} is encrypted: expected the key of the repository (\`encryption\` in the configuration, or --key-file beside --repository-path), got none`,
        { facts: { domain, backup: id, repository: this.name } },
      );
    }
    const keys = keysOf(this.name, key ?? (await readKey(this.#encryption, signal)));
    for (const { manifest } of chain) {
      for (const { keyId } of [...manifest.disks, ...(manifest.machineFiles ?? [])]) keys(keyId);
    }
    return keys;
  }

  /** Keeps the files of a chain as they are until that is disposed of. */
  async #hold(
    entry: IntactEntry,
    signal: AbortSignal | undefined,
  ): Promise<ChainFiles & { readonly hold: AsyncDisposable }> {
    for (;;) {
      signal?.throwIfAborted();
      const found = await this.#chain(entry);
      const hold = await holdToRead(found.chain.map((member) => this.#held(member)));
      if (hold === undefined) continue;
      const { chain, merging } = await this.#chain(entry).catch(async (error: unknown) => {
        await hold[Symbol.asyncDispose]();
        throw error;
      });
      // A merge that has ended in between has changed what was just read.
      if (JSON.stringify(chain) === JSON.stringify(found.chain)) return { chain, merging, hold };
      await hold[Symbol.asyncDispose]();
    }
  }

  #held({ domain, id }: BackupEntry): HeldBackup {
    return { domain, id, manifestPath: join(this.#layout.backup(domain, id), MANIFEST_FILE) };
  }

  async #merge(
    stored: readonly StoredBackup[],
    { domain, older: olderId, younger: youngerId, begun }: MergeIds,
    options: MergeOptions,
  ): Promise<Merged> {
    const chain = wholeChain(domain, stored, youngerId);
    const [older, younger] = [chain.at(-2), chain.at(-1)];
    if (older?.id !== olderId || younger === undefined) {
      throw new FleeceError("INTERNAL", `Expected backup ${youngerId} to be based on ${olderId}`);
    }
    const keys = await this.#keys(chain, options.signal);
    await using _ = await holdAlone(this.#held(older));
    const place = {
      ...{ layout: this.#layout, keys, runtimeRoot: this.#runtimeRoot },
      compressed: this.#compressed,
    };
    return await merge(place, { older, younger, chain, begun }, options);
  }

  /** Of merges that were interrupted. One that cannot be finished does not keep others from it. */
  async #finish(
    domain: string,
    which: (stored: StoredBackup) => boolean,
    options: MergeOptions = {},
  ): Promise<void> {
    let failure: { readonly error: unknown } | undefined;
    for (const { entry, mergingInto } of (await this.#stored(domain)).filter(which)) {
      if (mergingInto === undefined) continue;
      try {
        await this.#finishOne(entry, mergingInto, options);
      } catch (error) {
        options.signal?.throwIfAborted();
        failure ??= { error };
      }
    }
    if (failure !== undefined) throw failure.error;
  }

  async #finishOne(entry: BackupEntry, into: string, options: MergeOptions): Promise<void> {
    const { domain, id } = entry;
    const stored = await this.#stored(domain);
    const younger = stored.find((candidate) => candidate.entry.id === into)?.entry;
    if (younger?.manifest?.parent === id) {
      await this.#merge(stored, { domain, older: id, younger: into, begun: true }, options);
      return;
    }
    // One that nobody can read may still need it.
    const isNeeded = stored.some((other) => other.entry.manifest?.parent === id);
    if (isNeeded || (younger !== undefined && !isIntact(younger))) return;
    await dropMerged(this.#layout, { domain, id }, younger?.manifest);
  }

  /** The header of a new image names its parent unseen; one that is gone would make a gap that nobody notices. */
  async #bases(
    disks: DraftRequest["disks"],
    files: ChainFiles | undefined,
    keys: Keys,
    signal: AbortSignal | undefined,
  ): Promise<ReadonlyMap<string, readonly ChainLink[]>> {
    const bases = new Map<string, readonly ChainLink[]>();
    if (files === undefined) return bases;
    const { chain, merging } = files;
    const known = new Set(chain.at(-1)?.manifest.disks.map(({ target }) => target));
    for (const { target, mode } of disks) {
      if (mode === "whole" || !known.has(target)) continue;
      bases.set(target, await findMoved(chainLinks(this.#layout, chain, target, keys), merging));
    }
    const newest = [...bases.values()].flatMap((links) => links.slice(-1));
    await Promise.all(newest.map((link) => checkImage(link, signal)));
    return bases;
  }
}

interface MergeIds {
  readonly domain: string;
  readonly older: string;
  readonly younger: string;
  readonly begun: boolean;
}

/** What is needed to read a backup. */
interface ChainFiles {
  /** As it is stored, with backups that are being merged away; the full first. */
  readonly chain: readonly IntactEntry[];
  /** Ids of those. */
  readonly merging: ReadonlySet<string>;
}

function wholeChain(domain: string, stored: readonly StoredBackup[], id: string): readonly IntactEntry[] {
  const chain = chainOf(
    stored.map(({ entry }) => entry),
    id,
  );
  if (chain.complete) return chain.entries;
  throw new FleeceError("DAMAGED", `Cannot use backup ${id} of ${domain}: ${chain.reason}`, {
    facts: { domain, backup: id },
  });
}

/** Their writers are dead, since the caller holds the lock. */
async function sweep(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (isLeftover(name)) await rm(join(directory, name), { recursive: true, force: true });
  }
}
