import type { IntactEntry } from "../../model/backup.js";
import type { ExportAddress } from "../../model/snapshot-plan.js";
import type { BlockExpectations, OpenBackup, OpenOptions } from "../../ports/repository.js";
import { forEachLimited } from "../../shared/async.js";
import { FleeceError } from "../../shared/errors.js";
import { giveKey } from "../luks.js";
import { processDirectoryPath } from "../runtime-directory.js";
import { StorageDaemon } from "../storage-daemon.js";
import { ChainExpectations } from "./chain-expectations.js";
import { checkMachineFiles, type StoredMachine } from "./machine-files.js";
import { chainNode, checkImage, type ChainLink } from "./chain-images.js";

/** Each is a qemu-img of a few milliseconds. */
const PARALLEL_CHECKS = 4;

interface ServedParts {
  readonly chain: readonly IntactEntry[];
  readonly machine: StoredMachine;
}

/** A backup whose disks a read-only storage daemon offers. */
export class ServedBackup implements OpenBackup {
  readonly chain: readonly IntactEntry[];
  readonly addresses: readonly ExportAddress[];
  readonly ended: Promise<string>;
  readonly #daemon: StorageDaemon;
  readonly #links: ReadonlyMap<string, readonly ChainLink[]>;
  readonly #hold: AsyncDisposable;
  readonly #machine: StoredMachine;

  private constructor(
    daemon: StorageDaemon,
    links: ReadonlyMap<string, readonly ChainLink[]>,
    addresses: readonly ExportAddress[],
    hold: AsyncDisposable,
    { chain, machine }: ServedParts,
  ) {
    this.chain = chain;
    this.#machine = machine;
    this.#daemon = daemon;
    this.#links = links;
    this.#hold = hold;
    this.addresses = addresses;
    this.ended = daemon.ended;
  }

  /** `hold` keeps the files as they are; it is let go when the backup is closed, not after an error here. */
  static async open(
    links: ReadonlyMap<string, readonly ChainLink[]>,
    hold: AsyncDisposable,
    options: OpenOptions & ServedParts & { readonly runtimeRoot: string | undefined },
  ): Promise<ServedBackup> {
    const { signal } = options;
    await forEachLimited([...links.values()].flat(), PARALLEL_CHECKS, checkImage, signal);
    const daemon = await StorageDaemon.start({
      directory: processDirectoryPath(options.runtimeRoot),
      lifetime: "process",
      socketPath: options.socketPath,
      signal,
    });
    try {
      const key = [...links.values()].flat().find(({ imageKey }) => imageKey !== undefined)?.imageKey;
      if (key !== undefined) await giveKey(daemon, key.passphrase, signal);
      const addresses: ExportAddress[] = [];
      for (const [target, disk] of links) {
        addresses.push(await serve(daemon, target, disk, `disk-${addresses.length}`, signal));
      }
      return new ServedBackup(daemon, links, addresses, hold, options);
    } catch (error) {
      await daemon.stop();
      throw error;
    }
  }

  async expectations(target: string): Promise<BlockExpectations> {
    const links = this.#links.get(target);
    if (links === undefined) throw diskNotFound(target);
    return ChainExpectations.open(links);
  }

  checkMachineFiles(
    options: Parameters<OpenBackup["checkMachineFiles"]>[0] = {},
  ): ReturnType<OpenBackup["checkMachineFiles"]> {
    return checkMachineFiles(this.#machine, options);
  }

  async close(): Promise<void> {
    await this.#daemon.stop();
    await this.#hold[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Of the newest backup of a chain. Fails with DISK_NOT_FOUND. */
export function chosenTargets(
  chain: readonly IntactEntry[],
  chosen: readonly string[] | undefined,
): string[] {
  const all = (chain.at(-1)?.manifest.disks ?? []).map(({ target }) => target);
  const missing = chosen?.find((target) => !all.includes(target));
  if (missing !== undefined) throw diskNotFound(missing);
  return chosen === undefined ? all : [...new Set(chosen)];
}

async function serve(
  daemon: StorageDaemon,
  target: string,
  links: readonly ChainLink[],
  id: string,
  signal: AbortSignal | undefined,
): Promise<ExportAddress> {
  await daemon.execute("blockdev-add", chainNode(links, id), { signal });
  await daemon.execute("block-export-add", { type: "nbd", id, "node-name": id, name: target }, { signal });
  const sizeBytes = links.at(-1)?.disk.sizeBytes ?? 0;
  return { target, exportName: target, socketPath: daemon.nbdSocketPath, sizeBytes };
}

function diskNotFound(target: string): FleeceError {
  return new FleeceError("DISK_NOT_FOUND", `The backup has no disk ${target}`, { facts: { target } });
}
