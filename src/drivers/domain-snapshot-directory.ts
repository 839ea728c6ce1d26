import { readFile } from "node:fs/promises";
import path from "node:path";
import * as z from "zod";
import { type DomainSnapshots, noSnapshots } from "../model/domain-snapshot.js";
import { DISK_FORMATS } from "../model/snapshot-plan.js";
import type { DomainSnapshotStore } from "../ports/domain-snapshot-store.js";
import { errnoOf, fileError, FleeceError } from "../shared/errors.js";
import { makePrivateDirectory, replaceDurably } from "./state-directory.js";

/**
 * `<stateDir>/domain-snapshots/<domain>/snapshots.json`, and beside it the overlays and memory images that were given no other place.
 * What the document says of files is checked when they are used, not when it is read.
 */
export class DomainSnapshotDirectory implements DomainSnapshotStore {
  readonly #root: string;

  constructor(stateDir: string) {
    this.#root = path.join(stateDir, "domain-snapshots");
  }

  async read(domain: string): Promise<DomainSnapshots> {
    const file = path.join(this.#root, domain, DOCUMENT);
    let text: string;
    try {
      text = await readFile(file, "utf8");
    } catch (error) {
      if (errnoOf(error) === "ENOENT") return noSnapshots(domain);
      throw fileError(error, "read", file);
    }
    const document = parse(text, file);
    if (document.domain === domain) return document;
    throw damaged(file, `it is of domain ${document.domain}`);
  }

  async write(snapshots: DomainSnapshots): Promise<void> {
    await replaceDurably(path.join(this.#root, snapshots.domain), DOCUMENT, snapshots);
  }

  async directory(domain: string): Promise<string> {
    const directory = path.join(this.#root, domain);
    await makePrivateDirectory(directory);
    return directory;
  }
}

const DOCUMENT = "snapshots.json";

const bytes = z.int().nonnegative();
const file = z.string().startsWith("/");
const diskFormat = z.enum(DISK_FORMATS);

const memory = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("external"),
    file,
    sizeBytes: bytes,
    sha256: z.string().regex(/^[0-9a-f]{64}$/),
  }),
  z.strictObject({ kind: z.literal("internal"), target: z.string(), sizeBytes: bytes }),
]);

const snapshot = z.strictObject({
  name: z.string(),
  description: z.string(),
  timeMs: bytes,
  parent: z.string().exactOptional(),
  state: z.enum(["running", "paused", "inactive"]),
  kind: z.enum(["external", "internal"]),
  live: z.boolean(),
  memory: memory.exactOptional(),
  consistency: z.enum(["clean", "filesystem", "crash"]).exactOptional(),
  pausedMs: z.number().nonnegative(),
  disks: z.array(
    z.strictObject({
      target: z.string(),
      file,
      format: diskFormat,
      sizeBytes: bytes,
      bitmaps: z.array(z.string()),
      volume: z
        .strictObject({
          kind: z.enum(["thin", "classic"]),
          group: z.string(),
          name: z.string(),
          tag: z.string().startsWith("fleece:"),
        })
        .exactOptional(),
    }),
  ),
  machine: z
    .strictObject({
      type: z.string(),
      cpu: z.string(),
      memoryBytes: bytes,
      cpus: bytes,
      qemuVersion: z.string(),
      arguments: z.array(z.string()),
      devices: z.array(z.string()),
    })
    .exactOptional(),
  directory: file.exactOptional(),
  keptByRevert: z.literal(true).exactOptional(),
  clones: z.array(z.strictObject({ directory: file, timeMs: bytes })),
  deleting: z.literal(true).exactOptional(),
  leftOut: z.array(z.string()).exactOptional(),
  request: z.string().exactOptional(),
});

const lastRevert = z.strictObject({
  request: z.string(),
  name: z.string(),
  state: z.enum(["running", "paused", "inactive"]),
  keptAs: z.string().exactOptional(),
  endedCheckpoints: z.array(z.string()),
  risks: z.array(z.string()),
  pid: z.int().positive().exactOptional(),
});

const document: z.ZodType<DomainSnapshots> = z.strictObject({
  schemaVersion: z.literal(1),
  domain: z.string(),
  current: z.string().exactOptional(),
  layers: z.array(
    z.strictObject({
      target: z.string(),
      home: file,
      active: file,
      format: diskFormat,
      former: z.array(file).exactOptional(),
    }),
  ),
  snapshots: z.array(snapshot),
  lastRevert: lastRevert.exactOptional(),
});

function parse(text: string, path: string): DomainSnapshots {
  try {
    return document.parse(JSON.parse(text));
  } catch (error) {
    throw damaged(path, error instanceof z.ZodError ? z.prettifyError(error) : "it is not JSON", error);
  }
}

function damaged(path: string, why: string, cause?: unknown): FleeceError {
  return new FleeceError("DAMAGED", `Cannot use the record of domain snapshots ${path}: ${why}`, {
    cause,
    facts: { path },
  });
}
