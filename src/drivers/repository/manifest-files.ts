import type { BigIntStats } from "node:fs";
import { type FileHandle, lstat } from "node:fs/promises";
import { errnoOf, isFleeceError } from "../../shared/errors.js";
import { openExisting } from "../durable-files.js";
import { type ParsedManifest, parseManifest } from "./manifest-schema.js";

/** A manifest has a few hundred bytes a disk; more than this is not one of ours. */
const MAX_MANIFEST_BYTES = 16 * 1024 * 1024;
/** About 2 KiB of memory each. */
const MOST_KNOWN = 10_000;

/**
 * Reads manifests, and parses each file once: a backup reads those of its domain four times, a year of nights is many, and
 * checking one against its schema takes half a millisecond.
 */
export class ManifestFiles {
  readonly #known = new Map<string, { readonly identity: string; readonly parsed: ParsedManifest }>();

  async read(path: string): Promise<ParsedManifest> {
    try {
      const known = this.#known.get(path);
      if (known !== undefined && known.identity === identityOf(await lstat(path, { bigint: true }))) {
        return known.parsed;
      }
      const file = await openExisting(path);
      try {
        return await this.#parse(path, file);
      } finally {
        await file.close();
      }
    } catch (error) {
      if (isFleeceError(error)) return { damage: "its manifest is not a regular file" };
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      if (errno === "ENOENT") return { damage: "it has no manifest" };
      if (errno === "ELOOP") return { damage: "its manifest is a symbolic link" };
      return { damage: `its manifest cannot be read (${errno})` };
    }
  }

  async #parse(path: string, file: FileHandle): Promise<ParsedManifest> {
    const found = await file.stat({ bigint: true });
    if (found.size > MAX_MANIFEST_BYTES) {
      return { damage: `its manifest has ${found.size} bytes, more than any of ours` };
    }
    const parsed = parseManifest(await file.readFile("utf8"));
    if (this.#known.size >= MOST_KNOWN) this.#known.clear();
    this.#known.set(path, { identity: identityOf(found), parsed });
    return parsed;
  }
}

/** A link has another one than the file. */
function identityOf({ dev, ino, size, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, ctimeNs].join(" ");
}
