import { chmod, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { describe, expect, it } from "vitest";
import { startMachine } from "../../../src/drivers/machine/launcher.js";
import { describeProcess, findByArguments, findQemu } from "../../../src/drivers/machine/machine-process.js";
import { keepNew, setAside, settleNew, takeBack } from "../../../src/drivers/machine/moved-paths.js";
import { movedPaths } from "../../../src/model/machine-ends.js";
import type { MachineProcess } from "../../../src/model/machine-start.js";
import { temporaryDirectory, untilTestEnds } from "../../support/lifetime.js";
import type { TemporaryDirectory } from "../../support/temporary-directory.js";

const argumentsFor = (directory: TemporaryDirectory, ...more: string[]): string[] => [
  ...["qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none"],
  ...["-qmp", `unix:${directory.file("q")},server=on,wait=off`, ...more],
];

const start = (directory: TemporaryDirectory, args: readonly string[], like?: MachineProcess) =>
  startMachine(
    { domain: "vm", arguments: args, like },
    { monitor: directory.file("q"), logPath: directory.file("log"), signal: undefined },
  );

function endsWithTest({ pid }: MachineProcess): void {
  untilTestEnds({
    [Symbol.asyncDispose]: () => {
      process.kill(pid, "SIGKILL");
      return Promise.resolve();
    },
  });
}

describe("startMachine", () => {
  it("gives the new QEMU user, directory and environment of the one whose place it takes, and a session of its own", async () => {
    const directory = await temporaryDirectory();
    await chmod(directory.path, 0o777);
    const self = await describeProcess(process.pid);
    if (self === undefined) throw new Error("Expected to find this process");
    // Another user, if we may be one: `nobody` of Debian.
    const uid = process.geteuid?.() === 0 ? 65_534 : self.uid;
    const gid = process.geteuid?.() === 0 ? 65_534 : self.gid;
    const PATH = `PATH=${process.env["PATH"] ?? ""}`;
    const like = { ...self, uid, gid, groups: [gid], cwd: "/tmp", environment: [PATH, "MARK=a=b"] };
    const args = argumentsFor(directory);
    const { process: started, qmp } = await start(directory, args, like);
    endsWithTest(started);
    await qmp.close();
    expect(started).toMatchObject({ arguments: args, uid, gid, groups: [gid], cwd: "/tmp" });
    expect(started.environment.toSorted()).toEqual(["MARK=a=b", PATH]);
    const stat = await readFile(`/proc/${started.pid}/stat`, "utf8");
    // proc(5): state, parent, process group and session follow the command in parentheses.
    expect(Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[3])).toBe(started.pid);
    expect(await findQemu(directory.file("q"))).toMatchObject({ pid: started.pid });
    expect((await findByArguments(args)).map(({ pid }) => pid)).toEqual([started.pid]);
  });

  it("is not taken for a proxy that listens in its place", async () => {
    const path = (await temporaryDirectory()).file("q");
    const proxy = createServer();
    await new Promise<void>((resolve) => proxy.listen(path, resolve));
    expect(await findQemu(path)).toBeUndefined();
    proxy.close();
  });

  it("fails with the words of a QEMU that does not start, and keeps only the last start's", async () => {
    const directory = await temporaryDirectory();
    await writeFile(directory.file("log"), "words of an earlier start\n");
    const args = argumentsFor(directory, "-device", "no-such-device");
    await expect(start(directory, args)).rejects.toMatchObject({
      code: "QEMU_FAILED",
      message: expect.stringMatching(
        /ended with exit code 1: .*'no-such-device' is not a valid device/,
      ) as unknown,
    });
    expect(await readFile(directory.file("log"), "utf8")).not.toContain("earlier");
    expect(await findByArguments(args)).toEqual([]);
    await expect(start(directory, ["no-such-program"])).rejects.toMatchObject({ code: "TOOL_MISSING" });
  });
});

describe("moved paths", () => {
  it("change hands whoever ends first, and however often it is done", async () => {
    const directory = await temporaryDirectory();
    const path = directory.file("q");
    const moved = movedPaths([path, directory.file("absent")], "op");
    const content = () => readFile(path, "utf8").catch(() => "none");

    await writeFile(path, "old");
    await setAside(moved);
    expect(await content()).toBe("none");
    await takeBack(moved);
    await takeBack(moved);
    expect(await content()).toBe("old");

    await setAside(moved);
    await writeFile(path, "new");
    await keepNew(moved);
    await keepNew(moved);
    // As an ending QEMU does.
    await rm(path);
    await settleNew(moved);
    await settleNew(moved);
    expect(await content()).toBe("new");

    await keepNew(moved);
    await settleNew(moved);
    expect(await content()).toBe("new");
  });
});
