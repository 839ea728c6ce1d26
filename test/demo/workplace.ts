import { mkdir, mkdtemp, rm, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { TemporaryDirectory } from "../support/temporary-directory.js";

const demoFolder = fileURLToPath(new URL("../../var/demo", import.meta.url));

/** Where the demo works, and what it started: all of it goes at the end, however the demo ends. */
export class Workplace implements AsyncDisposable {
  /** Disks, configuration, repository, restored files. */
  readonly folder: string;
  /** Sockets, whose paths must be short. */
  readonly sockets: TemporaryDirectory;
  /** Leaves the files behind. */
  keepFiles = false;
  readonly #owned: AsyncDisposable[] = [];
  #closed = false;

  private constructor(folder: string, sockets: TemporaryDirectory) {
    this.folder = folder;
    this.sockets = sockets;
  }

  static async create(): Promise<Workplace> {
    await mkdir(demoFolder, { recursive: true });
    const sockets = await TemporaryDirectory.create();
    return new Workplace(await mkdtemp(join(demoFolder, "run-")), sockets);
  }

  file(...names: string[]): string {
    return join(this.folder, ...names);
  }

  /** Hands over what must end with the demo. What comes too late, after Ctrl-C, ends at once. */
  async own<T extends AsyncDisposable>(resource: T): Promise<T> {
    if (this.#closed) await resource[Symbol.asyncDispose]();
    else this.#owned.unshift(resource);
    return resource;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    for (const resource of this.#owned.splice(0)) await resource[Symbol.asyncDispose]();
    if (this.keepFiles) return;
    await this.sockets[Symbol.asyncDispose]();
    await rm(this.folder, { recursive: true, force: true, maxRetries: 5 });
    // Stays if another demo works there.
    await rmdir(demoFolder).catch(() => undefined);
  }
}
