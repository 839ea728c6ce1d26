import { mkdir, readdir, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import { type Site, startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const DISK = { target: "vda", format: "qcow2" as const, sizeBytes: 4 * MIB, filledBytes: MIB };

interface Taken {
  readonly id: string;
  readonly machineFiles: readonly { readonly path: string; readonly sizeBytes: string }[];
}

/** A domain with a file of UEFI variables and a directory of a TPM's state. */
async function withMachineFiles(): Promise<Site> {
  const at = await startSite({ disks: [DISK] });
  await writeFile(at.directory.file("vars.fd"), Buffer.alloc(540_672, 7));
  await mkdir(at.directory.file("tpm/nested"), { recursive: true });
  await writeFile(at.directory.file("tpm/tpm2-00.permall"), "state");
  await writeFile(at.directory.file("tpm/nested/empty"), "");
  await symlink("/etc/passwd", at.directory.file("tpm/link"));
  const config = parse(await readFile(at.configPath, "utf8")) as { domains: [object] };
  const machineFiles = [
    { name: "nvram", path: at.directory.file("vars.fd") },
    { name: "tpm", path: "tpm" },
  ];
  config.domains = [{ ...config.domains[0], machineFiles }];
  await writeFile(at.configPath, stringify(config));
  return at;
}

describe("machineFiles", () => {
  it("are in each backup as they were then, also after merges, and restored beside the disks", async () => {
    const at = await withMachineFiles();
    const first = await at.json<Taken>("backup", "run", "vm");
    expect(first.machineFiles).toEqual([
      { path: "nvram", sizeBytes: "540672" },
      { path: "tpm/nested/empty", sizeBytes: "0" },
      { path: "tpm/tpm2-00.permall", sizeBytes: "5" },
    ]);
    await writeFile(at.directory.file("tpm/tpm2-00.permall"), "changed");
    const second = await at.json<Taken>("backup", "run", "vm");
    expect((await at.run("backup", "show", second.id)).stdout).toMatch(
      /^Machine files +nvram, tpm\/nested\/empty, /m,
    );
    const restored = async (id: string, to: string): Promise<string[]> => {
      await at.json("backup", "restore", id, "--to", at.directory.file(to));
      const vars = await readFile(at.directory.file(`${to}/machine/nvram`));
      expect(vars.equals(await readFile(at.directory.file("vars.fd")))).toBe(true);
      return [
        await readFile(at.directory.file(`${to}/machine/tpm/tpm2-00.permall`), "utf8"),
        ...(await readdir(at.directory.file(`${to}/machine/tpm`))),
      ];
    };
    expect(await restored(first.id, "a")).toEqual(["state", "nested", "tpm2-00.permall"]);
    expect(await restored(second.id, "b")).toEqual(["changed", "nested", "tpm2-00.permall"]);
    // The first is merged into the second, which keeps what it had.
    await at.json("backup", "delete", first.id);
    await at.json("backup", "verify", second.id);
    expect(await restored(second.id, "c")).toEqual(["changed", "nested", "tpm2-00.permall"]);
    const alone = await at.run("backup", "restore", second.id, "--disk", `vda=${at.directory.file("x.img")}`);
    expect(alone.stdout).not.toContain("Machine files");
  });

  it("that were damaged in the repository are found by verify, and never restored", async () => {
    const at = await withMachineFiles();
    const { id } = await at.json<Taken>("backup", "run", "vm");
    const stored = at.directory.file(`backups/vm/${id}/machine`);
    await writeFile(`${stored}/tpm/tpm2-00.permall`, "stale");
    const verified = await at.run("backup", "verify", id);
    expect(verified.exitCode).toBe(6);
    expect(verified.stderr).toContain("tpm2-00.permall is not what was stored");
    await rm(`${stored}/nvram`);
    const restored = await at.run("backup", "restore", id, "--to", at.directory.file("out"));
    expect(restored.exitCode).toBe(6);
    expect(restored.stderr).toContain("machine/nvram is missing");
    expect((await readdir(at.directory.path)).filter((name) => name.startsWith("out"))).toEqual([]);
  });

  it("that are missing or too large end the backup, and nothing is left of it", async () => {
    const at = await withMachineFiles();
    await truncate(at.directory.file("vars.fd"), 257 * MIB);
    const before = await at.state();
    const large = await at.run("backup", "run", "vm");
    expect(large.stderr).toContain("machine files have more than 256 MiB (UNSUPPORTED)");
    await rm(at.directory.file("vars.fd"));
    const missing = await at.run("backup", "run", "vm");
    expect(missing.stderr).toMatch(/Cannot back up .*vars\.fd: no such file or directory \(PATH_NOT_FOUND\)/);
    expect(await at.state()).toEqual(before);
  });
});
