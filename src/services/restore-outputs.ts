import type { ManifestDisk } from "../model/backup.js";
import type { ImageFormat } from "../model/snapshot-plan.js";
import type { BlockWriter } from "../ports/block-io.js";
import type { TargetKind } from "../ports/disk-targets.js";
import type { OpenImages } from "../ports/image-writer.js";
import type { OutputDirectory } from "../ports/output-directory.js";
import { FleeceError } from "../shared/errors.js";
import type { ServiceContext } from "./context.js";
import type { Operation } from "./operation.js";

/** Where one disk goes: a block device or an NBD URI, which are written over, or the path of a new file. */
export interface DiskPlace {
  readonly target: string;
  readonly to: string;
}

export interface RestoredDisk {
  readonly target: string;
  readonly kind: TargetKind;
  /** The path of a file or device, or an NBD URI. */
  readonly file: string;
  /** Of a device or NBD export: raw. */
  readonly format: ImageFormat;
  readonly sizeBytes: number;
}

export interface PlaceOptions {
  /** To be created for disks that have no place of their own. */
  readonly directory?: string | undefined;
  readonly places?: readonly DiskPlace[];
  /** Of new files; left out: qcow2 if the disk was that in the domain, else raw. */
  readonly format?: ImageFormat | undefined;
}

/** Decides what is written where, and looks at places. Changes nothing. Fails with INVALID_ARGUMENT or PATH_NOT_FOUND. */
export async function planOutputs(
  { diskTargets }: ServiceContext,
  disks: readonly ManifestDisk[],
  { directory, places = [], format: wanted }: PlaceOptions,
): Promise<readonly RestoredDisk[]> {
  const plan: RestoredDisk[] = [];
  for (const { target, sizeBytes, sourceFormat } of disks) {
    const place = places.find((candidate) => candidate.target === target);
    const format = wanted ?? (sourceFormat === "qcow2" ? "qcow2" : "raw");
    if (place !== undefined) {
      const kind = await diskTargets.kindOf(place.to);
      plan.push({ target, kind, file: place.to, format: kind === "file" ? format : "raw", sizeBytes });
    } else if (directory !== undefined) {
      plan.push({ target, kind: "file", file: `${directory}/${target}.${format}`, format, sizeBytes });
    }
  }
  const twice = repeated(places.map(({ target }) => target)) ?? repeated(plan.map(({ file }) => file));
  if (twice === undefined) return plan;
  throw new FleeceError("INVALID_ARGUMENT", `Expected one place for each disk, got ${twice} twice`, {
    facts: { field: "places" },
  });
}

function repeated(names: readonly string[]): string | undefined {
  return names.find((name, index) => names.indexOf(name) !== index);
}

interface NewOutput {
  readonly output: OutputDirectory;
  /** The one file that is wanted of it; undefined: all. */
  readonly file: string | undefined;
}

/** What a restore writes. New files appear when all is complete; devices and exports are held from before the first write. */
export class RestoreOutputs {
  readonly #news: readonly NewOutput[];
  readonly #images: OpenImages;
  readonly #existing: ReadonlyMap<string, BlockWriter>;

  private constructor(
    news: readonly NewOutput[],
    images: OpenImages,
    existing: ReadonlyMap<string, BlockWriter>,
  ) {
    this.#news = news;
    this.#images = images;
    this.#existing = existing;
  }

  /** After an error nothing is left. */
  static async open(
    context: ServiceContext,
    plan: readonly RestoredDisk[],
    { operation, directory, signal }: RestoreParts,
  ): Promise<RestoreOutputs> {
    const news: NewOutput[] = [];
    const existing = new Map<string, BlockWriter>();
    try {
      const paths = new Map<string, string>();
      const shared = directory === undefined ? undefined : await context.outputs.begin(directory, operation);
      if (shared !== undefined) news.push({ output: shared, file: undefined });
      for (const { target, kind, file, format, sizeBytes } of plan) {
        if (kind !== "file") {
          existing.set(target, await context.diskTargets.open({ target, kind, to: file }, sizeBytes, signal));
          continue;
        }
        const name = `${target}.${format}`;
        const isOwn = file !== `${directory ?? ""}/${name}`;
        const output = isOwn || shared === undefined ? await context.outputs.begin(file, operation) : shared;
        if (output !== shared) news.push({ output, file: name });
        paths.set(target, `${output.temporaryPath}/${name}`);
      }
      const images = plan.flatMap(({ target, format, sizeBytes }) => {
        const path = paths.get(target);
        return path === undefined ? [] : [{ target, format, sizeBytes, path }];
      });
      return new RestoreOutputs(news, await context.images.create(images, signal), existing);
    } catch (error) {
      await closeAll(existing);
      for (const { output } of news) await output.discard();
      throw error;
    }
  }

  /** In a new file everything is zero already. */
  writer(target: string): { readonly writer: BlockWriter; readonly isNew: boolean } {
    const writer = this.#existing.get(target);
    return writer === undefined
      ? { writer: this.#images.writer(target), isNew: true }
      : { writer, isNew: false };
  }

  /** Where machine files go: into a directory beside the disks, if there is one for those. */
  get machineFiles(): string | undefined {
    const shared = this.#news.find(({ file }) => file === undefined)?.output;
    return shared === undefined ? undefined : `${shared.temporaryPath}/machine`;
  }

  /** What was flushed is durable then. */
  async finish(): Promise<void> {
    await this.#images.finish();
    await closeAll(this.#existing);
  }

  /** What tells the new files from any others; empty if there are none. */
  async identity(): Promise<string> {
    const identities: string[] = [];
    for (const { output, file } of this.#news) identities.push(await output.identity(file));
    return identities.join(" ");
  }

  async publish(): Promise<void> {
    for (const { output, file } of this.#news.toReversed()) await output.publish(file);
  }

  /** Closes everything and removes what was not published. Idempotent. */
  async discard(): Promise<void> {
    await this.#images.close();
    await closeAll(this.#existing);
    for (const { output } of this.#news) await output.discard();
  }
}

export interface RestoreParts {
  readonly operation: Operation;
  readonly directory: string | undefined;
  readonly signal: AbortSignal | undefined;
}

async function closeAll(writers: ReadonlyMap<string, BlockWriter>): Promise<void> {
  for (const writer of writers.values()) await writer.close();
}
