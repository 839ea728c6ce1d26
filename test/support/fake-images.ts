import { writeFile } from "node:fs/promises";
import type { BlockWriter } from "../../src/ports/block-io.js";
import type { ImageFactory, NewImage, OpenImages } from "../../src/ports/image-writer.js";

/** Makes plain files whatever the format, empty until they are finished. */
export const fakeImages: ImageFactory = {
  async create(images: readonly NewImage[]): Promise<OpenImages> {
    const open = new Map<string, { path: string; content: Buffer }>();
    for (const { target, path, sizeBytes } of images) {
      await writeFile(path, "", { flag: "wx", mode: 0o600 });
      open.set(target, { path, content: Buffer.alloc(sizeBytes) });
    }
    return {
      writer: (target) => {
        const image = open.get(target);
        if (image === undefined) throw new Error(`There is no image for disk ${target}`);
        return writerTo(image.content);
      },
      address: (target) => {
        throw new Error(`Nobody serves the image of disk ${target}`);
      },
      explain: (error) => Promise.resolve(error),
      finish: async () => {
        for (const { path, content } of open.values()) await writeFile(path, content);
      },
      close: () => Promise.resolve(),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
  },
};

function writerTo(content: Buffer): BlockWriter {
  return {
    sizeBytes: content.length,
    write: (offset, data) => {
      content.set(data, offset);
      return Promise.resolve();
    },
    writeZeroes: (offset, length) => {
      content.fill(0, offset, offset + length);
      return Promise.resolve();
    },
    flush: () => Promise.resolve(),
    close: () => Promise.resolve(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}
