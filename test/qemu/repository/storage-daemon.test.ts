import { fork } from "node:child_process";
import { once } from "node:events";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { endDaemon, findDaemons } from "../../../src/drivers/end-daemon.js";
import { processOwner, isOwnerAlive } from "../../../src/drivers/process-owner.js";
import { StorageDaemon } from "../../../src/drivers/storage-daemon.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";

describe("StorageDaemon", () => {
  it("answers QMP, keeps its sockets private, and leaves nothing when it is stopped", async () => {
    const { path } = await temporaryDirectory();
    const directory = join(path, "a,b c");
    const daemon = untilTestEnds(await StorageDaemon.start({ directory, lifetime: "process" }));
    expect(await daemon.execute("query-named-block-nodes", { flat: true })).toEqual([]);
    for (const name of ["nbd.sock", "qmp.sock"]) {
      expect((await lstat(join(directory, name))).mode & 0o777).toBe(0o700);
    }
    await daemon.stop();
    await daemon.stop();
    expect(await readdir(path)).toEqual([]);
    expect(await findDaemons(directory)).toEqual([]);
  });

  it("says with the daemon's words why it cannot start", async () => {
    const { path } = await temporaryDirectory();
    const socketPath = join(path, "missing", "nbd.sock");
    await expect(
      StorageDaemon.start({ directory: join(path, "d"), lifetime: "process", socketPath }),
    ).rejects.toMatchObject({ code: "PATH_NOT_FOUND" });
    expect(await readdir(path)).toEqual([]);
  });

  it("refuses a socket path at which something is already", async () => {
    const { path } = await temporaryDirectory();
    await expect(
      StorageDaemon.start({ directory: join(path, "d"), lifetime: "process", socketPath: path }),
    ).rejects.toMatchObject({ code: "ALREADY_EXISTS" });
  });

  it("turns a refused command into a coded error and goes on", async () => {
    const { path } = await temporaryDirectory();
    const daemon = untilTestEnds(
      await StorageDaemon.start({ directory: join(path, "d"), lifetime: "process" }),
    );
    await expect(daemon.execute("blockdev-del", { "node-name": "none" })).rejects.toMatchObject({
      code: "QEMU_FAILED",
    });
    expect(await daemon.execute("query-named-block-nodes", { flat: true })).toEqual([]);
  });

  it("resolves `ended` with how it ended, and fails later commands with that", async () => {
    const { path } = await temporaryDirectory();
    const daemon = untilTestEnds(
      await StorageDaemon.start({ directory: join(path, "d"), lifetime: "process" }),
    );
    process.kill(daemon.pid, "SIGKILL");
    expect(await daemon.ended).toBe("qemu-storage-daemon was ended by SIGKILL");
    await expect(daemon.execute("query-named-block-nodes", { flat: true })).rejects.toThrow(/SIGKILL/);
    await daemon.stop();
    expect(await readdir(path)).toEqual([]);
  });

  it("dies with a parent that gets SIGKILL when its lifetime is the process", async () => {
    const { path } = await temporaryDirectory();
    const child = fork(fileURLToPath(new URL("hold-daemon.ts", import.meta.url)), [join(path, "d")], {
      execArgv: ["--import", "tsx", "--conditions=source"],
    });
    const [message] = (await once(child, "message")) as [{ pid: number }];
    const owner = processOwner(message.pid);
    child.kill("SIGKILL");
    await once(child, "exit");
    await expect.poll(() => isOwnerAlive(owner)).toBe(false);
    await endDaemon(join(path, "d"));
    expect(await readdir(path)).toEqual([]);
  });
});

describe("a detached StorageDaemon", () => {
  it("is found again by its directory and ended by it", async () => {
    const { path } = await temporaryDirectory();
    const directory = join(path, "d-x,y");
    const socketPath = join(path, "own,name.sock");
    untilTestEnds({ [Symbol.asyncDispose]: () => endDaemon(directory) });
    const first = await StorageDaemon.start({ directory, lifetime: "detached", socketPath });
    await first.detach();
    const again = await StorageDaemon.attach(directory);
    expect(again).toMatchObject({ pid: first.pid, nbdSocketPath: socketPath });
    expect(await again?.execute("query-block-exports")).toEqual([]);
    await again?.detach();
    await endDaemon(directory);
    await endDaemon(directory);
    expect(await StorageDaemon.attach(directory)).toBeUndefined();
    expect(await readdir(path)).toEqual([]);
  });

  it("tells an attached session when it ends", async () => {
    const { path } = await temporaryDirectory();
    const directory = join(path, "d-x");
    untilTestEnds({ [Symbol.asyncDispose]: () => endDaemon(directory) });
    await (await StorageDaemon.start({ directory, lifetime: "detached" })).detach();
    const daemon = await StorageDaemon.attach(directory);
    if (daemon === undefined) throw new Error("Expected a daemon");
    process.kill(daemon.pid, "SIGTERM");
    expect(await daemon.ended).toMatch(/qemu-storage-daemon ended/);
    await daemon.stop();
    expect(await readdir(path)).toEqual([]);
  });
});
