import { describe, expect, it } from "vitest";
import { loadConfig, startAgent } from "../../src/agent.js";
import { BLOCK_SIZE } from "../../src/model/extents.js";
import { restoreBackup, verifyBackup } from "../../src/services/backup-read.js";
import { runBackup } from "../../src/services/backup-run.js";
import type { ServiceContext } from "../../src/services/context.js";
import { compareImages, fillImage, imageInfo, qemuImg } from "../support/image-tool.js";
import { startSite, type Site } from "../support/site.js";

const MIB = 1024 * 1024;

async function agent(at: Site, sample: number): Promise<ServiceContext> {
  const ignore = (): void => undefined;
  const config = { ...(await loadConfig(at.configPath)), sample };
  return startAgent(config, { debug: ignore, info: ignore, warn: ignore });
}

async function expectTrue(at: Site, context: ServiceContext, id: string): Promise<void> {
  await verifyBackup(context, id);
  const directory = at.directory.file(`restored-${id}`);
  const [restored] = await restoreBackup(context, { id, directory, format: "raw" });
  const [disk] = at.vm.disks;
  if (at.vm.running) await at.vm.quit();
  expect(
    await compareImages(disk?.path ?? "", disk?.format ?? "raw", restored?.file ?? "", "raw"),
  ).toMatchObject({
    identical: true,
  });
}

const DISKS = [{ target: "vda", format: "qcow2", sizeBytes: 8 * MIB + 512, filledBytes: 4 * MIB }] as const;

describe("A sample of what bitmaps call unchanged", () => {
  it("finds a change of a running guest that a cleared bitmap has lost, and the backup is right all the same", async () => {
    const at = await startSite({ disks: DISKS });
    const full = await runBackup(await agent(at, 1), { domain: "vm" });
    await at.vm.guestWrite("vda", 5 * MIB, 5000, 1);
    await at.vm.guestWrite("vda", 8 * MIB, 512, 2);
    const { bitmaps } = await at.vm.blockState();
    for (const { name } of bitmaps) await at.vm.qmp("block-dirty-bitmap-clear", { node: "vda-format", name });
    await at.vm.guestWrite("vda", MIB, 5000, 3);

    const blind = await runBackup(await agent(at, 0), { domain: "vm" });
    expect(blind.manifest.disks[0]).toMatchObject({ mode: "changes", storedBytes: BLOCK_SIZE });
    const seeing = await agent(at, 1);
    const compared = await runBackup(seeing, { domain: "vm", level: "incremental" });
    expect(compared.manifest).toMatchObject({
      parent: blind.id,
      disks: [{ mode: "compare", storedBytes: BLOCK_SIZE + 512 }],
    });
    expect(compared.manifest.disks[0]?.reason).toContain("a sample at");
    expect((await at.vm.blockState()).bitmaps.map(({ name }) => name.split(":").at(-1))).toEqual([
      full.id,
      blind.id,
      compared.id,
    ]);
    await at.vm.guestWrite("vda", 6 * MIB, 5000, 4);
    const after = await runBackup(seeing, { domain: "vm" });
    expect(after.manifest.disks[0]).toMatchObject({ mode: "changes", storedBytes: BLOCK_SIZE });
    await expectTrue(at, seeing, after.id);
  });

  it("finds what was written to the image of an inactive domain behind the bitmaps' back", async () => {
    const at = await startSite({ disks: DISKS });
    await runBackup(await agent(at, 1), { domain: "vm" });
    await at.vm.quit();
    const [disk] = at.vm.disks;
    // qemu-io records into the bitmap, too, so what it has recorded is cleared.
    await fillImage(disk?.path ?? "", "qcow2", { offset: 2 * MIB, length: 512, pattern: 0x11 });
    const { bitmaps } = await imageInfo(disk?.path ?? "", "qcow2");
    for (const { name } of bitmaps) await qemuImg("bitmap", "--clear", disk?.path ?? "", name);
    const context = await agent(at, 1);
    const compared = await runBackup(context, { domain: "vm", level: "incremental" });
    expect(compared.manifest.disks[0]).toMatchObject({ mode: "compare", storedBytes: BLOCK_SIZE });
    await expectTrue(at, context, compared.id);
  });
});
