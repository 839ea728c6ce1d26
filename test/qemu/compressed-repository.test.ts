import { readFile, stat, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import { compareImages, qemuImg } from "../support/image-tool.js";
import { type Site, startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const DISK = { target: "vda", format: "qcow2" as const, sizeBytes: 8 * MIB, filledBytes: 8 * MIB };
/** QEMU cannot compress one that ends within a block. */
const ODD_DISK = { ...DISK, target: "vdb", sizeBytes: MIB + 512, filledBytes: MIB + 512 };

interface Taken {
  readonly id: string;
  readonly disks: readonly { readonly mode: string; readonly storedBytes: string }[];
}

async function setCompression(at: Site, compression: "none" | "zstd"): Promise<void> {
  const config = parse(await readFile(at.configPath, "utf8")) as object;
  const repositories = [{ name: "default", path: at.directory.file("backups"), compression }];
  await writeFile(at.configPath, stringify({ ...config, repositories }));
}

async function allocatedBytes(at: Site, id: string): Promise<number> {
  return (await stat(at.directory.file(`backups/vm/${id}/vda.qcow2`))).blocks * 512;
}

describe("compression: zstd", () => {
  it("makes images small, and chains of both kinds are verified, restored, compared and merged", async () => {
    const at = await startSite({ disks: [DISK] });
    await setCompression(at, "zstd");
    const full = await at.json<Taken>("backup", "run", "vm");
    expect(await allocatedBytes(at, full.id)).toBeLessThan(MIB);
    await setCompression(at, "none");
    await at.vm.guestWrite("vda", 0, 3 * MIB, 0x21);
    const plain = await at.json<Taken>("backup", "run", "vm");
    expect(await allocatedBytes(at, plain.id)).toBeGreaterThan(3 * MIB);
    await setCompression(at, "zstd");
    await at.vm.guestWrite("vda", 2 * MIB, 3 * MIB, 0x22);
    await at.vm.guestWriteZeroes("vda", 6 * MIB, MIB);
    const changed = await at.json<Taken>("backup", "run", "vm");
    await at.vm.restart();
    await at.vm.kill();
    await at.vm.restart();
    await at.vm.guestWrite("vda", 5 * MIB + 100, 70_000, 0x23);
    const compared = await at.json<Taken>("backup", "run", "vm");
    expect(compared.disks).toMatchObject([{ mode: "COMPARE", storedBytes: String(2 * 65_536) }]);
    expect(await allocatedBytes(at, compared.id)).toBeLessThan(MIB);
    await at.vm.quit();
    const check = async (to: string): Promise<void> => {
      await at.json("backup", "verify", compared.id);
      await at.json("backup", "restore", compared.id, "--to", at.directory.file(to));
      const restored = at.directory.file(`${to}/vda.qcow2`);
      const same = await compareImages(at.directory.file("vda.qcow2"), "qcow2", restored, "qcow2");
      expect(same.identical).toBe(true);
    };
    await check("before");
    // Also into the plain image; what is merged takes no more space than it did.
    for (const { id } of [plain, full, changed]) await at.json("backup", "delete", id);
    expect(await allocatedBytes(at, compared.id)).toBeLessThan(MIB);
    const checked = await qemuImg("check", at.directory.file(`backups/vm/${compared.id}/vda.qcow2`));
    expect(checked).toContain("No errors were found");
    expect(await at.json("backup", "list")).toMatchObject({ backups: [{ id: compared.id, level: "FULL" }] });
    await check("after");
  });

  it("compresses what QEMU pushes, too", async () => {
    const at = await startSite({ disks: [DISK, ODD_DISK], exports: "staged" });
    await setCompression(at, "zstd");
    const full = await at.json<Taken>("backup", "run", "vm");
    await at.vm.guestWrite("vda", MIB, MIB, 0x21);
    await at.vm.guestWriteZeroes("vda", 3 * MIB, MIB);
    const { id, disks } = await at.json<Taken>("backup", "run", "vm");
    expect(disks).toMatchObject([{ mode: "CHANGES" }, { mode: "CHANGES" }]);
    for (const backup of [full.id, id]) expect(await allocatedBytes(at, backup)).toBeLessThan(MIB);
    await at.vm.quit();
    await at.json("backup", "restore", id, "--to", at.directory.file("out"));
    for (const name of ["vda.qcow2", "vdb.qcow2"]) {
      const restored = at.directory.file(`out/${name}`);
      const same = await compareImages(at.directory.file(name), "qcow2", restored, "qcow2");
      expect(same.identical).toBe(true);
    }
  });
});
