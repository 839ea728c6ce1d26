import { rm } from "node:fs/promises";
import { isAbsolute } from "node:path";
import { execa } from "execa";
import * as z from "zod";
import type { BitmapStep } from "../model/checkpoint.js";
import type { DiskFormat, ImageFormat } from "../model/snapshot-plan.js";
import { fileError, FleeceError } from "../shared/errors.js";
import { createPrivate, writeAt } from "./durable-files.js";
import { emptyQcow2 } from "./qcow2-image.js";
import { cleanOutput, toolFailure } from "./tool-failure.js";

/** Every call here takes milliseconds; one that takes this long waits for storage that does not answer. */
const DEFAULT_TIMEOUT_MS = 120_000;
const MAX_OUTPUT_CHARACTERS = 16 * 1024 * 1024;

export interface ToolOptions {
  readonly signal?: AbortSignal | undefined;
  /** Default: 120,000. */
  readonly timeoutMs?: number;
}

/**
 * Runs a QEMU tool without a shell and returns its standard output. A file that the tool works on goes into the message
 * of an error: TOOL_MISSING, DISK_IN_USE, NO_SPACE, PERMISSION_DENIED, PATH_NOT_FOUND or QEMU_FAILED.
 */
export async function runTool(
  tool: string,
  args: readonly string[],
  options: ToolOptions & {
    readonly path?: string;
    /** A descriptor that the tool has as its standard input; default: none. */
    readonly input?: number;
  } = {},
): Promise<string> {
  options.signal?.throwIfAborted();
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  const result = await execa(tool, args, {
    // Any descriptor will do; the types list a few.
    stdin: (options.input as 3 | undefined) ?? "ignore",
    env: { LC_ALL: "C" },
    reject: false,
    timeout: timeoutMs,
    maxBuffer: MAX_OUTPUT_CHARACTERS,
    ...(options.signal === undefined ? {} : { cancelSignal: options.signal }),
  });
  if (!result.failed) return result.stdout;
  options.signal?.throwIfAborted();
  throw toolFailure(tool, {
    path: options.path,
    errno: result.code,
    output: cleanOutput(result.stderr, tool),
    ending: result.timedOut
      ? `did not end within ${timeoutMs / 1000} s`
      : result.signal === undefined
        ? `ended with exit code ${result.exitCode ?? "unknown"}`
        : `was ended by ${result.signal}`,
    cause: result.cause,
  });
}

export interface ImageInfo {
  /** Virtual size. */
  readonly sizeBytes: number;
  /** What the file takes on its host. */
  readonly allocatedBytes: number | undefined;
  /** As the header has it, usually relative to the image. */
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  /** An external file with the data of a qcow2 image. */
  readonly dataFile: string | undefined;
  /** A file that a VMDK keeps data in beside, or instead of, its own. */
  readonly extentFile: string | undefined;
  readonly encrypted: boolean;
  /** Persistent bitmaps of a qcow2 image. */
  readonly bitmaps: readonly ImageBitmap[];
  /** Inside the image; without memory these have 0 bytes of it. */
  readonly internalSnapshots: readonly { readonly name: string; readonly memoryBytes: number }[];
}

export interface ImageBitmap {
  readonly name: string;
  readonly granularityBytes: number;
  /** Flag `auto`: records as soon as the image is opened for writing. */
  readonly recording: boolean;
  /** Flag `in-use`: open for writing right now, or left inconsistent by a crash. */
  readonly inUse: boolean;
}

const infoSchema = z.object({
  "virtual-size": z.int().nonnegative(),
  "actual-size": z.int().nonnegative().optional(),
  "backing-filename": z.string().optional(),
  "backing-filename-format": z.string().optional(),
  encrypted: z.boolean().optional(),
  snapshots: z.array(z.object({ name: z.string(), "vm-state-size": z.int().nonnegative() })).optional(),
  "format-specific": z
    .object({
      data: z
        .object({
          "data-file": z.string().optional(),
          extents: z.array(z.object({ filename: z.string() })).optional(),
          bitmaps: z
            .array(
              z.object({ name: z.string(), granularity: z.int().positive(), flags: z.array(z.string()) }),
            )
            .optional(),
        })
        .optional(),
    })
    .optional(),
});

/**
 * What the header of an image says, without opening its backing files. Takes a shared lock: fails with DISK_IN_USE
 * while a program has the image open for writing, unless `forceShare` (the answer may then be torn).
 */
export async function imageInfo(
  path: string,
  format: DiskFormat,
  options: ToolOptions & { readonly forceShare?: boolean } = {},
): Promise<ImageInfo> {
  const share = options.forceShare === true ? ["-U"] : [];
  const args = ["info", "--output=json", ...share, "-f", format, "--", checkAbsolute(path)];
  const output = await runTool("qemu-img", args, { ...options, path });
  const info = parseInfo(output, path);
  const data = info["format-specific"]?.data;
  return {
    sizeBytes: info["virtual-size"],
    allocatedBytes: info["actual-size"],
    backingFile: info["backing-filename"],
    backingFormat: info["backing-filename-format"],
    dataFile: data?.["data-file"],
    extentFile: data?.extents?.map(({ filename }) => filename).find((file) => file !== path),
    encrypted: info.encrypted === true,
    bitmaps: (data?.bitmaps ?? []).map(({ name, granularity, flags }) => ({
      name,
      granularityBytes: granularity,
      recording: flags.includes("auto"),
      inUse: flags.includes("in-use"),
    })),
    internalSnapshots: (info.snapshots ?? []).map((snapshot) => ({
      name: snapshot.name,
      memoryBytes: snapshot["vm-state-size"],
    })),
  };
}

function parseInfo(output: string, path: string): z.infer<typeof infoSchema> {
  try {
    return infoSchema.parse(JSON.parse(output));
  } catch (cause) {
    throw new FleeceError(
      "QEMU_FAILED",
      `Expected the facts of ${path} from qemu-img info, got something else`,
      {
        cause,
        facts: { path },
      },
    );
  }
}

export interface CreateImageOptions {
  readonly signal?: AbortSignal | undefined;
  /** Absolute; must not exist. */
  readonly path: string;
  readonly format: ImageFormat;
  readonly sizeBytes: number;
  /** Written into the qcow2 header as it is, without being opened. */
  readonly backing?: string | undefined;
  /** QEMU's name for it. Default: `qcow2`. */
  readonly backingFormat?: string;
  /** What will be written compressed into a qcow2 image is so by zstd. */
  readonly compressed?: boolean;
  /** Of an encrypted qcow2 image: its LUKS header. */
  readonly luksHeader?: Uint8Array | undefined;
}

/**
 * Creates an empty image with mode 0600, which is not synced. Fails with ALREADY_EXISTS, never following a link, with NO_SPACE,
 * PERMISSION_DENIED, PATH_NOT_FOUND, or UNSUPPORTED for a size; after any error no file of ours is left.
 */
export async function createImage(options: CreateImageOptions): Promise<void> {
  const { path, format, sizeBytes, backing, backingFormat, compressed, luksHeader: luks } = options;
  const empty =
    format === "raw"
      ? { pieces: [], fileBytes: sizeBytes }
      : emptyQcow2(sizeBytes, { backing, backingFormat, compressed, luks });
  options.signal?.throwIfAborted();
  const file = await createPrivate(checkAbsolute(path));
  try {
    for (const { offset, bytes } of empty.pieces) await writeAt(file, bytes, offset);
    await file.truncate(empty.fileBytes);
  } catch (error) {
    await rm(path, { force: true });
    throw fileError(error, "write", path);
  } finally {
    await file.close();
  }
}

/** Applies one step to the persistent bitmaps of an inactive qcow2 image. Fails with DISK_IN_USE while it is open. */
export async function changeImageBitmap(
  path: string,
  step: BitmapStep,
  options: ToolOptions = {},
): Promise<void> {
  const args = ["bitmap", "-f", "qcow2", ...stepArguments(step), "--", checkAbsolute(path), step.bitmap];
  await runTool("qemu-img", args, { ...options, path });
}

function stepArguments(step: BitmapStep): string[] {
  switch (step.action) {
    case "add":
      return ["--add", "-g", String(step.granularityBytes)];
    case "merge":
      return ["--merge", step.source];
    case "enable":
    case "disable":
    case "remove":
      return [`--${step.action}`];
  }
}

/** A relative name with a colon would be a protocol to QEMU (`nbd:…`, `json:…`); an absolute one is a file. */
function checkAbsolute(path: string): string {
  if (isAbsolute(path)) return path;
  throw new FleeceError("INTERNAL", `Expected an absolute path of an image, got ${JSON.stringify(path)}`);
}
