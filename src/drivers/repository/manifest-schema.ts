import * as z from "zod";
import type { Manifest } from "../../model/backup.js";
import { BLOCK_SIZE } from "../../model/extents.js";
import { isName, type NameKind } from "../../model/names.js";
import { digestsFile, imageFile } from "./layout.js";

export const SCHEMA_VERSION = 1;

const name = (kind: NameKind) =>
  z.string().refine((value) => isName(kind, value), { error: `Expected a ${kind} name` });
/** Beyond 2^53 numbers would lose their last digits; zod's int refuses those. */
const bytes = z.int().nonnegative();
const milliseconds = z.number().nonnegative();
const time = z.iso.datetime();

const diskSchema = z
  .strictObject({
    target: name("disk"),
    sourceFormat: z.enum(["qcow2", "raw"]),
    sizeBytes: bytes,
    image: z.string(),
    digests: z.string(),
    digestsSha256: z.string().regex(/^[0-9a-f]{64}$/),
    digestBlockBytes: z.literal(BLOCK_SIZE),
    readBytes: bytes,
    storedBytes: bytes,
    zeroBytes: bytes,
    durationMs: milliseconds,
  })
  // A manifest must not be able to point at a file elsewhere.
  .refine((disk) => disk.image === imageFile(disk.target) && disk.digests === digestsFile(disk.target), {
    error: "Expected image and digests to be named after the target",
  });

const manifestSchema = z
  .strictObject({
    schemaVersion: z.literal(SCHEMA_VERSION),
    id: name("backup"),
    domain: name("domain"),
    level: z.enum(["full", "incremental"]),
    parent: name("backup").optional(),
    reason: z.string().max(10_000),
    time,
    startedAt: time,
    finishedAt: time,
    consistency: z.enum(["clean", "filesystem", "crash"]),
    heldMs: milliseconds,
    frozenMs: milliseconds.optional(),
    quiesceFailure: z.string().max(10_000).optional(),
    checkpoint: name("checkpoint"),
    disks: z.array(diskSchema).min(1).max(10_000),
  })
  .refine((manifest) => (manifest.level === "incremental") === (manifest.parent !== undefined), {
    error: "Expected a parent for an incremental, and none for a full",
  })
  .refine(({ disks }) => new Set(disks.map(({ target }) => target)).size === disks.length, {
    error: "Expected each target once",
  });

export type ParsedManifest =
  | { readonly manifest: Manifest; readonly damage?: undefined }
  | { readonly manifest?: undefined; readonly damage: string };

/** What a manifest says, or why it cannot be used. */
export function parseManifest(text: string): ParsedManifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { damage: "its manifest is not JSON" };
  }
  const version = z.object({ schemaVersion: z.int() }).safeParse(value);
  if (version.success && version.data.schemaVersion > SCHEMA_VERSION) {
    return {
      damage: `its manifest was made by a newer version of this program (schema ${version.data.schemaVersion}, this one knows ${SCHEMA_VERSION})`,
    };
  }
  const parsed = manifestSchema.safeParse(value);
  if (parsed.success) return { manifest: parsed.data };
  const [issue] = parsed.error.issues;
  const place =
    issue === undefined || issue.path.length === 0 ? "" : ` at ${issue.path.map(String).join(".")}`;
  return { damage: `its manifest is not valid${place}: ${issue?.message ?? "unknown"}` };
}

export function formatManifest(manifest: Manifest): string {
  return `${JSON.stringify(manifest, undefined, 2)}\n`;
}
