import type { Stats } from "node:fs";
import { constants } from "node:fs";
import { access, realpath, stat } from "node:fs/promises";
import path from "node:path";
import type { ScratchSpace } from "../ports/scratch-space.js";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { formatBytes } from "../shared/units.js";
import { exists } from "./durable-files.js";
import { freeBytes } from "./free-bytes.js";

/** `stat` counts what is allocated in these units, whatever the file system's blocks are. */
const STAT_BLOCK_BYTES = 512;

export class ScratchDirectory implements ScratchSpace {
  readonly reserveBytes: number;
  readonly #path: string;

  constructor(options: { path: string; reserveBytes: number }) {
    this.#path = options.path;
    this.reserveBytes = options.reserveBytes;
  }

  /** A missing directory is not made: it may be a file system that is not mounted. */
  async check(): Promise<void> {
    let found;
    try {
      found = await stat(this.#path);
    } catch (error) {
      throw this.#refusal("PATH_NOT_FOUND", "does not exist; create it, or mount what belongs there", error);
    }
    if (!found.isDirectory()) throw this.#refusal("PATH_NOT_FOUND", "is not a directory");
    try {
      await access(this.#path, constants.W_OK | constants.X_OK);
    } catch (error) {
      throw this.#refusal("PERMISSION_DENIED", "cannot be written to", error);
    }
    const free = await this.freeBytes();
    if (free >= this.reserveBytes) return;
    const reserve = `the reserve of ${formatBytes(this.reserveBytes)}`;
    throw this.#refusal("NO_SPACE", `has ${formatBytes(free)} free, which is less than ${reserve}`);
  }

  async checkFile(file: string): Promise<void> {
    const directory = path.dirname(file);
    try {
      const real = await realpath(directory);
      if (real !== directory) {
        throw refusedFile(
          "INVALID_ARGUMENT",
          file,
          `${directory} to have no link in it, but it leads to ${real}`,
        );
      }
      for (let above = directory; ; above = path.dirname(above)) {
        if (!isSafe(await stat(above))) {
          throw refusedFile("PERMISSION_DENIED", file, `that no other user may replace what is in ${above}`);
        }
        if (above === "/") break;
      }
      await access(directory, constants.W_OK | constants.X_OK);
    } catch (error) {
      throw fileError(error, "create a file in", directory);
    }
    if (await exists(file)) throw refusedFile("ALREADY_EXISTS", file, "that it does not exist yet");
  }

  freeBytes(): Promise<number> {
    return freeBytes(this.#path);
  }

  async usedBytes(files: readonly string[]): Promise<number> {
    const sizes = await Promise.all(files.map(allocatedBytes));
    return sizes.reduce((sum, size) => sum + size, 0);
  }

  #refusal(
    code: "PATH_NOT_FOUND" | "PERMISSION_DENIED" | "NO_SPACE",
    why: string,
    cause?: unknown,
  ): FleeceError {
    const facts = { path: this.#path };
    return new FleeceError(code, `The scratch directory ${this.#path} ${why}`, { cause, facts });
  }
}

async function allocatedBytes(file: string): Promise<number> {
  try {
    return (await stat(file)).blocks * STAT_BLOCK_BYTES;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return 0;
    throw error;
  }
}

/** Only we and root can rename or remove what is in it; in a sticky directory everybody has only what is his own. */
function isSafe({ uid, mode }: Stats): boolean {
  const isSticky = (mode & 0o1000) !== 0;
  return (uid === 0 || uid === process.geteuid?.()) && (isSticky || (mode & 0o022) === 0);
}

function refusedFile(
  code: "INVALID_ARGUMENT" | "PERMISSION_DENIED" | "ALREADY_EXISTS",
  file: string,
  expected: string,
): FleeceError {
  return new FleeceError(code, `Cannot create ${file}: expected ${expected}`, {
    facts: { path: file },
  });
}
