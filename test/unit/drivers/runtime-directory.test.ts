import { spawn } from "node:child_process";
import { once } from "node:events";
import { lstat, mkdir, readdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  checkSocketPath,
  detachedDirectoryPath,
  isOwnerAlive,
  makeRuntimeDirectory,
  processDirectoryPath,
  processOwner,
  sweepRuntimeDirectories,
} from "../../../src/drivers/runtime-directory.js";
import { temporaryDirectory } from "../../support/lifetime.js";

describe("makeRuntimeDirectory", () => {
  it("makes the root and the directory, both for this user alone", async () => {
    const { path } = await temporaryDirectory();
    const directory = detachedDirectoryPath("snap1", join(path, "root"));
    await makeRuntimeDirectory(directory);
    for (const made of [directory, join(path, "root")]) expect((await lstat(made)).mode & 0o777).toBe(0o700);
  });

  it("refuses a root that is a symbolic link", async () => {
    const { path } = await temporaryDirectory();
    await mkdir(join(path, "elsewhere"), { mode: 0o700 });
    await symlink(join(path, "elsewhere"), join(path, "root"));
    await expect(makeRuntimeDirectory(join(path, "root", "d-x"))).rejects.toMatchObject({
      code: "PERMISSION_DENIED",
    });
    expect(await readdir(join(path, "elsewhere"))).toEqual([]);
  });

  it("refuses a root that others may write to", async () => {
    const { path } = await temporaryDirectory();
    const { chmod } = await import("node:fs/promises");
    await mkdir(join(path, "root"));
    await chmod(join(path, "root"), 0o777);
    await expect(makeRuntimeDirectory(join(path, "root", "d-x"))).rejects.toMatchObject({
      code: "PERMISSION_DENIED",
    });
  });

  it("refuses a directory that is there already, be it a link", async () => {
    const { path } = await temporaryDirectory();
    await symlink("/tmp", join(path, "d-x"));
    await expect(makeRuntimeDirectory(join(path, "d-x"))).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
  });
});

describe("detachedDirectoryPath", () => {
  it("refuses a name that would leave the root", () => {
    expect(() => detachedDirectoryPath("../x", "/run/fleece")).toThrow(/plain name/);
  });
});

describe("checkSocketPath", () => {
  it("takes 107 bytes and refuses 108", () => {
    expect(checkSocketPath(`/${"a".repeat(106)}`)).toHaveLength(107);
    expect(() => checkSocketPath(`/${"a".repeat(107)}`)).toThrow(/at most 107 bytes, got 108/);
    expect(() => checkSocketPath(`/${"ä".repeat(54)}`)).toThrow(/got 109/);
  });
});

describe("isOwnerAlive", () => {
  it("is true for this process, and false for another start time of its pid", () => {
    const owner = processOwner();
    expect(isOwnerAlive(owner)).toBe(true);
    expect(isOwnerAlive({ ...owner, startTicks: owner.startTicks + 1 })).toBe(false);
  });

  it("is false once a process was killed", async () => {
    const child = spawn("sleep", ["60"]);
    const owner = processOwner(child.pid);
    expect(isOwnerAlive(owner)).toBe(true);
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(isOwnerAlive(owner)).toBe(false);
  });
});

describe("sweepRuntimeDirectories", () => {
  it("removes the directories of ended processes and of reused pids, and nothing else", async () => {
    const { path: root } = await temporaryDirectory();
    const mine = processDirectoryPath(root);
    const { pid, startTicks } = processOwner();
    const stale = [join(root, `p-${pid}-${startTicks - 1}-00ff`), join(root, "p-4194999-1-00ff")];
    const others = [detachedDirectoryPath("snap", root), join(root, "p-1"), join(root, "notes")];
    for (const path of [mine, ...stale, ...others]) await mkdir(path);
    await writeFile(join(stale[0] ?? "", "qmp.sock"), "");
    expect((await sweepRuntimeDirectories(root)).sort()).toEqual(stale.sort());
    expect((await readdir(root)).map((name) => join(root, name)).sort()).toEqual([mine, ...others].sort());
  });

  it("does nothing when the root does not exist", async () => {
    const { path } = await temporaryDirectory();
    expect(await sweepRuntimeDirectories(join(path, "none"))).toEqual([]);
  });
});
