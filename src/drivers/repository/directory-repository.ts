import { access, constants, mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { byTime, chainOf, type BackupEntry, type IntactEntry } from "../../model/backup.js";
import type { UndoLog } from "../../ports/block-driver.js";
import type { ImageFactory } from "../../ports/image-writer.js";
import type {
  BackupDraft,
  BackupRepository,
  DraftRequest,
  OpenBackup,
  OpenOptions,
  RepositoryLock,
} from "../../ports/repository.js";
import { errnoOf, fileError, FleeceError } from "../../shared/errors.js";
import { freeBytes } from "../free-bytes.js";
import { describeHolder, tryKernelLock } from "../kernel-lock.js";
import { isDirectory, namedDirectories, readBackup } from "./backup-directory.js";
import { type ChainLink, chainLinks, checkImage } from "./chain-images.js";
import { DirectoryDraft } from "./directory-draft.js";
import { syncDirectory } from "../durable-files.js";
import { isLeftover, Layout, LOCK_FILE } from "./layout.js";
import { ServedBackup } from "./served-backup.js";

export interface DirectoryRepositoryOptions {
  readonly name: string;
  /** Must exist: a mount that is missing must not be filled silently. */
  readonly path: string;
  readonly images: ImageFactory;
  /** For the sockets of what is served; default: the runtime root of this user. */
  readonly runtimeRoot?: string | undefined;
}

/** A repository that is a directory; see layout.ts for what is in it. */
export class DirectoryRepository implements BackupRepository {
  readonly name: string;
  readonly #layout: Layout;
  readonly #images: ImageFactory;
  readonly #runtimeRoot: string | undefined;

  constructor(options: DirectoryRepositoryOptions) {
    this.name = options.name;
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

  freeBytes(): Promise<number> {
    return freeBytes(this.#layout.root);
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
    const bases = () => this.#bases(request, signal);
    const place = { repository: this.name, layout: this.#layout, images: this.#images, bases };
    return await DirectoryDraft.begin(place, request, undo, signal);
  }

  async open(entry: IntactEntry, options: OpenOptions = {}): Promise<OpenBackup> {
    const chain = await this.#chain(entry);
    return await ServedBackup.open(this.#layout, chain, { ...options, runtimeRoot: this.#runtimeRoot });
  }

  async remove(entry: BackupEntry): Promise<void> {
    const { domain, id } = entry;
    const doomed = this.#layout.deleted(domain, id);
    try {
      await rm(doomed, { recursive: true, force: true });
      // First out of sight, so that a kill in between leaves no half of a backup in the list.
      await rename(this.#layout.backup(domain, id), doomed);
      await syncDirectory(this.#layout.domain(domain));
      await rm(doomed, { recursive: true, force: true });
    } catch (error) {
      if (errnoOf(error) !== "ENOENT")
        throw fileError(error, "remove backup", this.#layout.backup(domain, id));
    }
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

  async #listDomain(domain: string): Promise<BackupEntry[]> {
    const path = this.#layout.domain(domain);
    if (!(await isDirectory(path))) return [];
    const entries: BackupEntry[] = [];
    for (const id of await namedDirectories(path, "backup")) {
      const directory = this.#layout.backup(domain, id);
      const entry = await readBackup({ repository: this.name, domain, id, directory });
      if (entry !== undefined) entries.push(entry);
    }
    return entries.toSorted(byTime);
  }

  async #chain({ domain, id }: IntactEntry): Promise<readonly IntactEntry[]> {
    const chain = chainOf(await this.list(domain), id);
    if (chain.complete) return chain.entries;
    throw new FleeceError("DAMAGED", `Cannot use backup ${id} of ${domain}: ${chain.reason}`, {
      facts: { domain, backup: id },
    });
  }

  /** The header of a new image names its parent unseen; one that is gone would make a gap that nobody notices. */
  async #bases(
    { disks, parent }: DraftRequest,
    signal: AbortSignal | undefined,
  ): Promise<ReadonlyMap<string, readonly ChainLink[]>> {
    const bases = new Map<string, readonly ChainLink[]>();
    if (parent === undefined) return bases;
    const chain = await this.#chain(parent);
    const known = new Set(parent.manifest.disks.map(({ target }) => target));
    for (const { target, mode } of disks) {
      if (mode === "whole" || !known.has(target)) continue;
      bases.set(target, chainLinks(this.#layout, chain, target));
    }
    const newest = [...bases.values()].flatMap((links) => links.slice(-1));
    await Promise.all(newest.map((link) => checkImage(link, signal)));
    return bases;
  }
}

/** Their writers are dead, since the caller holds the lock. */
async function sweep(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (isLeftover(name)) await rm(join(directory, name), { recursive: true, force: true });
  }
}
