import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { rm } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { z } from "zod";
import type { DiskFormat } from "./vm-arguments.js";

const run = promisify(execFile);
const maxOutputBytes = 64 << 20;

export interface CreateImageOptions {
  /** Default: `qcow2`. */
  readonly format?: DiskFormat;
  readonly backing?: { readonly path: string; readonly format: DiskFormat };
}

export async function createImage(
  path: string,
  sizeBytes: number,
  options: CreateImageOptions = {},
): Promise<void> {
  const backing =
    options.backing === undefined ? [] : ["-b", options.backing.path, "-F", options.backing.format];
  await qemuImg("create", "-q", "-f", options.format ?? "qcow2", ...backing, path, String(sizeBytes));
}

/** Runs qemu-io commands on an image that no VM has open; throws if any of them fails. */
export async function writeImage(path: string, format: DiskFormat, ...commands: string[]): Promise<void> {
  const args = ["-f", format, "-d", "unmap", ...commands.flatMap((command) => ["-c", command]), path];
  const { stdout, stderr } = await run("qemu-io", args);
  if (/failed|error/i.test(stdout + stderr)) throw new Error(`qemu-io did not succeed: ${stdout}${stderr}`);
}

/** Fills `length` bytes at `offset` of an inactive image with the byte `pattern`. */
export async function fillImage(
  path: string,
  format: DiskFormat,
  range: { offset: number; length: number; pattern: number },
): Promise<void> {
  await writeImage(path, format, `write -P ${range.pattern} ${range.offset} ${range.length}`);
}

export interface ImageRange {
  readonly offset: number;
  readonly length: number;
  /** No layer of the chain holds data here, or it holds zeroes: reads as zeroes. */
  readonly zero: boolean;
  readonly data: boolean;
  readonly present: boolean;
  /** Which layer of the chain holds it, 0 being the image itself. */
  readonly depth: number;
}

const mapSchema = z.array(
  z.object({
    start: z.number(),
    length: z.number(),
    zero: z.boolean(),
    data: z.boolean(),
    present: z.boolean().default(true),
    depth: z.number(),
  }),
);

/** The image's allocation, as `qemu-img map` sees it. */
export async function imageMap(path: string, format: DiskFormat): Promise<ImageRange[]> {
  const text = await qemuImg("map", "-U", "--output=json", "-f", format, path);
  return mapSchema.parse(JSON.parse(text)).map(({ start, ...range }) => ({ offset: start, ...range }));
}

export interface ImageContent {
  readonly sizeBytes: number;
  /** SHA-256 over the guest-visible bytes, holes as zeroes. */
  readonly digest: string;
}

/** What a guest would read from the image, whatever its format; holes cost nothing on the disk. */
export async function readImage(path: string, format: DiskFormat): Promise<ImageContent> {
  const raw = `${path}.${process.pid}-${Math.random().toString(36).slice(2)}.raw`;
  try {
    await qemuImg("convert", "-U", "-q", "-f", format, "-O", "raw", path, raw);
    const { size } = await imageInfo(raw, "raw");
    return { sizeBytes: size, digest: await fileDigest(raw) };
  } finally {
    await rm(raw, { force: true });
  }
}

/** A copy of the image as a raw file: the moment to compare a backup with. */
export async function copyToRaw(path: string, format: DiskFormat, to: string): Promise<void> {
  await qemuImg("convert", "-U", "-q", "-f", format, "-O", "raw", path, to);
}

export interface ImageComparison {
  readonly identical: boolean;
  /** qemu-img's words, which name the first offset that differs. */
  readonly text: string;
}

/** Compares what a guest would read; the sizes must be equal too. */
export async function compareImages(
  pathA: string,
  formatA: DiskFormat,
  pathB: string,
  formatB: DiskFormat,
): Promise<ImageComparison> {
  // qemu-img compare takes a longer image of zeroes for equal; its strict mode compares the allocation as well.
  const [sizeA, sizeB] = [(await imageInfo(pathA, formatA)).size, (await imageInfo(pathB, formatB)).size];
  if (sizeA !== sizeB) return { identical: false, text: `Sizes differ: ${sizeA} and ${sizeB} bytes` };
  try {
    const text = await qemuImg("compare", "-U", "-f", formatA, "-F", formatB, pathA, pathB);
    return { identical: true, text: text.trim() };
  } catch (error) {
    const failure = commandFailure(error);
    // 1 is the verdict "different"; anything above is a failure to compare.
    if (failure?.code !== 1) throw error;
    return { identical: false, text: failure.stdout.trim() };
  }
}

const infoSchema = z.object({
  "virtual-size": z.number(),
  "actual-size": z.number().default(0),
  "backing-filename": z.string().optional(),
  "backing-filename-format": z.string().optional(),
  "format-specific": z
    .object({
      data: z
        .object({
          bitmaps: z.array(z.object({ name: z.string(), flags: z.array(z.string()) })).optional(),
        })
        .optional(),
    })
    .optional(),
});

export interface ImageInfo {
  /** Virtual size in bytes. */
  readonly size: number;
  readonly allocatedBytes: number;
  readonly backing: string | undefined;
  readonly backingFormat: string | undefined;
  /** Persistent bitmaps; the flags are `auto` (records) and `in-use` (not closed cleanly). */
  readonly bitmaps: readonly { readonly name: string; readonly flags: readonly string[] }[];
}

export async function imageInfo(path: string, format: DiskFormat): Promise<ImageInfo> {
  const info = infoSchema.parse(JSON.parse(await qemuImg("info", "-U", "--output=json", "-f", format, path)));
  return {
    size: info["virtual-size"],
    allocatedBytes: info["actual-size"],
    backing: info["backing-filename"],
    backingFormat: info["backing-filename-format"],
    bitmaps: info["format-specific"]?.data?.bitmaps ?? [],
  };
}

/** SHA-256 of a file's bytes, in hexadecimal. */
export async function fileDigest(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

/** Any qemu-img command; resolves to its standard output. */
export async function qemuImg(...args: string[]): Promise<string> {
  const { stdout } = await run("qemu-img", args, { maxBuffer: maxOutputBytes });
  return stdout;
}

function commandFailure(error: unknown): { code: unknown; stdout: string } | undefined {
  if (!(error instanceof Error) || !("code" in error) || !("stdout" in error)) return undefined;
  return { code: error.code, stdout: String(error.stdout) };
}
