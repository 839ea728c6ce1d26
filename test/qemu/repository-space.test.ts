import { readFile, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parse, stringify } from "yaml";
import { mountTmpfs } from "../support/mount.js";
import { type Site, startSite } from "../support/site.js";

const MIB = 1024 * 1024;
const DISK = { target: "vda", format: "qcow2" as const, sizeBytes: 32 * MIB, filledBytes: 24 * MIB };

async function withReserve(at: Site, reserve: string): Promise<void> {
  const config = parse(await readFile(at.configPath, "utf8")) as object;
  const repositories = [{ name: "default", path: at.directory.file("backups"), reserve }];
  await writeFile(at.configPath, stringify({ ...config, repositories }));
}

describe("a repository's reserve", () => {
  it("is not touched by a backup, which ends with the reason and leaves nothing", async ({ skip }) => {
    const at = await startSite({ disks: [DISK] });
    if (!(await mountTmpfs(at.directory.file("backups"), "size=40m"))) skip("mount is not permitted here");
    await withReserve(at, "20M");
    const bitmaps = (await at.vm.blockState()).bitmaps;
    const { exitCode, stderr } = await at.run("backup", "run", "vm");
    expect(exitCode).toBe(1);
    expect(stderr).toContain("Repository default has no more free than its reserve of 20 MiB (NO_SPACE)");
    expect((await at.vm.blockState()).bitmaps).toEqual(bitmaps);
    expect(await at.json("backup", "list")).toEqual({ backups: [] });
    await withReserve(at, "12M");
    const { id } = await at.json<{ id: string }>("backup", "run", "vm");
    // What is there can be read and removed below the reserve, too.
    await withReserve(at, "1T");
    const refused = await at.run("doctor", "vm");
    expect(refused.stdout).toContain("REPOSITORY_FULL");
    await at.json("backup", "verify", id);
    await at.json("backup", "delete", id);
  });
});
