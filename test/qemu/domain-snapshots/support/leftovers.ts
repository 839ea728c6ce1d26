import { expect } from "vitest";
import type { Scene } from "../scene.js";
import { leftoversOf } from "./quiet-agent.js";

/** Fails unless all files of snapshots are in the document, and QEMU, the journal and the runtime directory have nothing else. */
export async function expectNothingLeft(scene: Scene): Promise<void> {
  const { snapshots, layers } = await scene.document();
  const named = [
    ...layers.map(({ active }) => active),
    ...snapshots.flatMap(({ disks }) => disks.map(({ file }) => file)),
    ...snapshots.flatMap(({ memory }) => (memory?.kind === "external" ? [memory.file] : [])),
  ];
  const places = named.map(
    (file) => scene.directory.file("state/domain-snapshots/vm/") + (file.split("/").at(-1) ?? ""),
  );
  const expected = named.filter((file) => places.includes(file)).map((file) => file.split("/").at(-1));
  const found = await leftoversOf(scene.directory, scene.context);
  expect(found.filter((name) => name !== "snapshots.json")).toEqual([...new Set(expected)].toSorted());
  if (scene.vm?.running !== true) return;
  const nodes = (await scene.vm.qmp("query-named-block-nodes", { flat: true })) as {
    file: string;
    drv: string;
  }[];
  const homes = layers.map(({ home }) => home);
  const known = new Set([...named, ...homes, ...scene.vm.disks.map(({ path }) => path)]);
  expect(nodes.filter(({ file }) => !known.has(file))).toEqual([]);
  expect(await scene.vm.qmp("query-jobs")).toEqual([]);
}
