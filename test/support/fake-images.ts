import { open } from "node:fs/promises";
import type { BlockWriter } from "../../src/ports/block-io.js";
import type { ImageFactory, NewImage, OpenImages } from "../../src/ports/image-writer.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";

/** Writes images as plain files, whatever their format. */
export const fakeImages: ImageFactory = {
  async create(images: readonly NewImage[]): Promise<OpenImages> {
    const writers = new Map<string, BlockWriter>();
    for (const { target, path, sizeBytes } of images) {
      const file = await open(path, "wx", 0o600);
      await file.truncate(sizeBytes);
      const close = (): Promise<void> => file.close();
      writers.set(target, {
        sizeBytes,
        write: async (offset, data) => void (await file.write(data, 0, data.length, offset)),
        writeZeroes: async (offset, length) => {
          const zeroes = new Uint8Array(BLOCK_SIZE);
          for (let at = 0; at < length; at += BLOCK_SIZE) {
            await file.write(zeroes, 0, Math.min(BLOCK_SIZE, length - at), offset + at);
          }
        },
        flush: () => file.sync(),
        close,
        [Symbol.asyncDispose]: close,
      });
    }
    const close = async (): Promise<void> => {
      for (const writer of writers.values()) await writer.close();
      writers.clear();
    };
    return {
      writer: (target) => {
        const writer = writers.get(target);
        if (writer === undefined) throw new Error(`There is no image for disk ${target}`);
        return writer;
      },
      finish: close,
      close,
      [Symbol.asyncDispose]: close,
    };
  },
};
