import * as z from "zod";
import type { Manifest, ManifestDisk } from "../../model/backup.js";
import { BLOCK_SIZE } from "../../model/extents.js";
import { isName, type NameKind } from "../../model/names.js";
import { DISK_FORMATS } from "../../model/snapshot-plan.js";
import { digestsFile, imageFile, isMergedDigestsFile } from "./layout.js";

/** Of a new backup. */
export const SCHEMA_VERSION = 2;
/** Of one that another has been merged into: its digests have a name that earlier versions of this program do not know. */
export const MERGED_SCHEMA_VERSION = 3;

/** Of one that has machine files; otherwise like the one before. */
export const FILES_SCHEMA_VERSION = 4;
/** Of one that is encrypted, in part or all; otherwise like the one before. */
export const ENCRYPTED_SCHEMA_VERSION = 5;
const NEWEST_SCHEMA_VERSION = ENCRYPTED_SCHEMA_VERSION;

const name = (kind: NameKind) =>
  z.string().refine((value) => isName(kind, value), { error: `Expected a ${kind} name` });
/** Beyond 2^53 numbers would lose their last digits; zod's int refuses those. */
const bytes = z.int().nonnegative();
const milliseconds = z.number().nonnegative();
const time = z.iso.datetime();

const diskFields = {
  target: name("disk"),
  sourceFormat: z.enum(DISK_FORMATS),
  sizeBytes: bytes,
  image: z.string(),
  digests: z.string(),
  digestsSha256: z.string().regex(/^[0-9a-f]{64}$/),
  digestBlockBytes: z.literal(BLOCK_SIZE),
  readBytes: bytes,
  storedBytes: bytes,
  zeroBytes: bytes,
  durationMs: milliseconds,
};
const reason = z.string().max(10_000);

const keyId = z
  .string()
  .regex(/^[0-9a-f]{32}$/)
  .optional();

/** A disk had no mode of its own then. */
const diskSchema1 = z.strictObject(diskFields);
const diskSchema = z.strictObject({
  ...diskFields,
  sourceFile: z.string().max(10_000).optional(),
  mode: z.enum(["changes", "compare", "whole"]),
  reason,
  keyId,
});

const manifestFields = {
  id: name("backup"),
  domain: name("domain"),
  level: z.enum(["full", "incremental"]),
  parent: name("backup").optional(),
  reason,
  time,
  startedAt: time,
  finishedAt: time,
  consistency: z.enum(["clean", "filesystem", "crash"]),
  heldMs: milliseconds,
  checkpoint: name("checkpoint"),
};

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);

/** It must not be able to point at a file elsewhere either. */
const fileSchema = z.strictObject({
  path: z
    .string()
    .max(4096)
    .refine((path) => path.split("/").every((part) => !["", ".", ".."].includes(part)), {
      error: "Expected a path below the directory of machine files",
    }),
  sizeBytes: bytes,
  sha256,
  keyId,
});

const manifestSchema1 = z
  .strictObject({
    schemaVersion: z.literal(1),
    ...manifestFields,
    disks: z.array(diskSchema1).min(1).max(10_000),
  })
  .transform((manifest) => {
    const mode = manifest.level === "full" ? "whole" : "changes";
    const disks = manifest.disks.map((disk) => ({ ...disk, mode, reason: manifest.reason }) as const);
    return { ...manifest, disks };
  });
const manifestSchema2 = z.strictObject({
  schemaVersion: z.literal([
    SCHEMA_VERSION,
    MERGED_SCHEMA_VERSION,
    FILES_SCHEMA_VERSION,
    ENCRYPTED_SCHEMA_VERSION,
  ]),
  ...manifestFields,
  frozenMs: milliseconds.optional(),
  quiesceFailure: reason.optional(),
  scratchPeakBytes: bytes.optional(),
  waits: z
    .strictObject({ readLimit: milliseconds, writeLimit: milliseconds, guestLatency: milliseconds })
    .optional(),
  request: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
  disks: z.array(diskSchema).min(1).max(10_000),
  machineFiles: z.array(fileSchema).max(100_000).optional(),
});

const manifestSchema = z
  .discriminatedUnion("schemaVersion", [manifestSchema1, manifestSchema2])
  .refine((manifest) => (manifest.level === "incremental") === (manifest.parent !== undefined), {
    error: "Expected a parent for an incremental, and none for a full",
  })
  .refine(({ level, disks }) => level === "incremental" || disks.every(({ mode }) => mode === "whole"), {
    error: "Expected every disk of a full to be whole",
  })
  .refine(({ disks }) => new Set(disks.map(({ target }) => target)).size === disks.length, {
    error: "Expected each target once",
  })
  // A manifest must not be able to point at a file elsewhere.
  .refine(({ schemaVersion, disks }) => disks.every((disk) => isNamedAfterTarget(disk, schemaVersion)), {
    error: "Expected image and digests to be named after the target",
  });

function isNamedAfterTarget({ target, image, digests }: ManifestDisk, schemaVersion: number): boolean {
  const named =
    digests === digestsFile(target) ||
    (schemaVersion >= MERGED_SCHEMA_VERSION && isMergedDigestsFile(digests, target));
  return image === imageFile(target) && named;
}

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
  if (version.success && version.data.schemaVersion > NEWEST_SCHEMA_VERSION) {
    return {
      damage: `its manifest was made by a newer version of this program (schema ${version.data.schemaVersion}, this one knows ${NEWEST_SCHEMA_VERSION})`,
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
