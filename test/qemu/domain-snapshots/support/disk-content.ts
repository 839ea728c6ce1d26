import { readFile, rm } from "node:fs/promises";
import { expect } from "vitest";
import { StorageDaemon } from "../../../../src/drivers/storage-daemon.js";
import { parseBitmapName } from "../../../../src/model/checkpoint.js";
import { changedBlocks } from "../../../support/changed-blocks.js";
import { qemuImg } from "../../../support/image-tool.js";
import { BLOCK } from "./scene-model.js";

/** The byte that fills each block; -1 for one that is not of one byte. */
export async function blocksOf(file: string, format: string): Promise<number[]> {
  const raw = `${file}.${Math.random().toString(36).slice(2)}.raw`;
  try {
    await qemuImg("convert", "-U", "-q", "-f", format, "-O", "raw", file, raw);
    const content = await readFile(raw);
    return Array.from({ length: content.length / BLOCK }, (_, index) => {
      const block = content.subarray(index * BLOCK, (index + 1) * BLOCK);
      return block.every((byte) => byte === block[0]) ? (block[0] ?? -1) : -1;
    });
  } finally {
    await rm(raw, { force: true });
  }
}

/** Blocks that the bitmaps of all layers of an inactive disk call changed, by the bitmap of the checkpoint. */
export async function changedSince(
  runtime: string,
  file: string,
  checkpoints: readonly string[],
): Promise<Map<string, number[]>> {
  const directory = `${runtime}/t-${Math.random().toString(36).slice(2)}`;
  await using daemon = await StorageDaemon.start({ directory, lifetime: "process" });
  await daemon.execute("blockdev-add", {
    ...{ driver: "qcow2", "node-name": "top", "read-only": true },
    file: { driver: "file", filename: file, "read-only": true },
  });
  const nodes = await daemon.execute("query-named-block-nodes", { flat: true });
  const order = (name: string): number => parseBitmapName(name)?.order ?? -1;
  const found = new Map<string, number[]>();
  for (const [index, checkpoint] of checkpoints.entries()) {
    const sources = nodes.flatMap((node) =>
      (node["dirty-bitmaps"] ?? []).flatMap(({ name = "" }) =>
        order(name) >= order(checkpoint) ? [{ node: node["node-name"] ?? "", name }] : [],
      ),
    );
    expect(
      sources.some(({ name }) => name === checkpoint),
      `${checkpoint} in ${file}`,
    ).toBe(true);
    const name = `merged${index}`;
    await daemon.execute("block-dirty-bitmap-add", { node: "top", name, disabled: true });
    await daemon.execute("block-dirty-bitmap-merge", { node: "top", target: name, bitmaps: sources });
    await daemon.execute("block-export-add", {
      ...{ type: "nbd", id: name, "node-name": "top", name, bitmaps: [name] },
    });
    const uri = `nbd+unix:///${name}?socket=${daemon.nbdSocketPath}`;
    found.set(checkpoint, await changedBlocks(uri, `qemu:dirty-bitmap:${name}`));
  }
  return found;
}
