import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { cloneDomainSnapshot } from "../../../src/services/domain-snapshots/clone.js";
import { deleteDomainSnapshot } from "../../../src/services/domain-snapshots/delete.js";
import { createInternal } from "../../../src/services/domain-snapshots/internal.js";
import { writeImage } from "../../support/image-tool.js";
import { untilTestEnds } from "../../support/lifetime.js";
import { TestVm } from "../../support/vm.js";
import { Scene } from "./scene.js";
import { blocksOf } from "./support/disk-content.js";
import { TARGETS } from "./support/scene-model.js";

/** A snapshot `gold` of a running domain, with memory that is not QEMU's: it is copied, not read. */
async function withGold(): Promise<{ scene: Scene; memory: string; content: Buffer; gold: number[][] }> {
  const scene = untilTestEnds(await Scene.create({ running: true }));
  for (const target of TARGETS) await scene.write(target, 3, 4, 9);
  await scene.snapshot("gold");
  const all = await scene.document();
  const [memory, content] = [scene.directory.file("gold.save"), randomBytes(3_000_000)];
  await writeFile(memory, content);
  const sha256 = createHash("sha256").update(content).digest("hex");
  const described = { kind: "external" as const, file: memory, sizeBytes: content.length, sha256 };
  const machine = {
    ...{
      type: "pc-q35-7.2",
      cpu: "qemu64",
      memoryBytes: 64 << 20,
      cpus: 1,
      qemuVersion: "7.2.22",
      devices: [],
    },
    arguments: [
      ...["qemu-system-x86_64", "-machine", "q35", "-S"],
      ...all.layers.flatMap(({ target, home }) => [
        ...[
          "-blockdev",
          JSON.stringify({ driver: "qcow2", "node-name": target, file: { driver: "file", filename: home } }),
        ],
        ...["-device", `virtio-blk-pci,id=${target},drive=${target}`],
      ]),
    ],
  };
  const snapshots = all.snapshots.map((each) => ({ ...each, memory: described, machine }));
  await scene.context.domainSnapshots.write({ ...all, snapshots });
  const gold = await Promise.all(
    TARGETS.map((target) => blocksOf(scene.directory.file(`${target}.img`), "qcow2")),
  );
  return { scene, memory, content, gold };
}

describe("Cloning a domain snapshot", () => {
  it("gives any number of independent domains what it was, while the original runs", async () => {
    const { scene, content, gold } = await withGold();
    for (const name of ["c1", "c2"]) {
      const directory = scene.directory.file(name);
      const clone = await cloneDomainSnapshot(scene.context, { domain: "vm", name: "gold", directory });
      expect(clone.disks.map(({ file }) => file)).toEqual(
        TARGETS.map((target) => join(directory, `${target}.qcow2`)),
      );
      expect(Buffer.compare(await readFile(clone.memory ?? ""), content)).toBe(0);
      for (const file of [clone.memory ?? "", ...clone.disks.map((disk) => disk.file)]) {
        expect((await stat(file)).mode & 0o777).toBe(0o600);
      }
      const words = clone.arguments ?? [];
      for (const { file } of clone.disks) expect(words.some((word) => word.includes(file))).toBe(true);
      expect(words.slice(-2)).toEqual(["-incoming", `exec:cat '${clone.memory ?? ""}'`]);
      for (const [index, { file }] of clone.disks.entries())
        expect(await blocksOf(file, "qcow2")).toEqual(gold[index]);
      for (const { file } of clone.disks) await writeImage(file, "qcow2", `write -P 77 0 65536`);
    }
    const [disk] = TARGETS;
    const file = scene.directory.file(`c2/${disk}.qcow2`);
    await using other = await TestVm.start({
      ...{ directory: scene.directory.path, name: "c2" },
      disks: [{ target: disk, path: file, format: "qcow2" }],
    });
    expect((await other.guestWrite(disk, 0, 65_536, 78)).ok).toBe(true);
    await scene.write(disk, 3, 1, 5);
    await scene.check();
    await expect(deleteDomainSnapshot(scene.context, { domain: "vm", name: "gold" })).rejects.toMatchObject({
      code: "DOMAIN_SNAPSHOT_IN_USE",
    });
    await other.quit();
    for (const name of ["c1", "c2"]) await rm(scene.directory.file(name), { recursive: true });
    await deleteDomainSnapshot(scene.context, { domain: "vm", name: "gold" });
    scene.model.forget("gold");
    await scene.check();
    expect(existsSync(scene.directory.file("gold.save"))).toBe(false);
  });

  it("refuses memory that is not what it was, and leaves nothing", async () => {
    const { scene, memory, content } = await withGold();
    content[1_000_000] = (content[1_000_000] ?? 0) ^ 1;
    await writeFile(memory, content);
    const directory = scene.directory.file("c1");
    const request = { domain: "vm", name: "gold", directory };
    await expect(cloneDomainSnapshot(scene.context, request)).rejects.toMatchObject({ code: "DAMAGED" });
    expect(existsSync(directory)).toBe(false);
    expect((await scene.document()).snapshots[0]?.clones).toEqual([]);
    expect(await scene.context.store.operations()).toEqual([]);
    await expect(
      cloneDomainSnapshot(scene.context, { ...request, directory: scene.directory.path }),
    ).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
  });

  it("takes an internal one out of its image, and is independent of it", async () => {
    const scene = untilTestEnds(await Scene.create({ running: true }));
    await scene.write("vda", 1, 2, 4);
    await createInternal(scene.context, { domain: "vm", name: "in", diskOnly: true });
    await scene.write("vda", 0, 9, 6);
    const directory = scene.directory.file("c1");
    const clone = await cloneDomainSnapshot(scene.context, { domain: "vm", name: "in", directory });
    await deleteDomainSnapshot(scene.context, { domain: "vm", name: "in" });
    expect((await blocksOf(clone.disks[0]?.file ?? "", "qcow2")).slice(0, 4)).toEqual([0, 4, 4, 0]);
  });
});
