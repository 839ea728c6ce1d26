import net from "node:net";
import { chmod, link, mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { tryKernelLock } from "../../src/drivers/kernel-lock.js";
import { domainConfig, writeConfig } from "../support/config-file.js";
import type { TestConfig } from "../support/config-file.js";
import { runFleece } from "../support/fleece.js";
import { fillImage } from "../support/image-tool.js";
import { untilTestEnds } from "../support/lifetime.js";
import { mountTmpfs } from "../support/mount.js";
import { startSite, type Site } from "../support/site.js";

const MIB = 1024 * 1024;

const site = (config: TestConfig = {}, directories?: string[]): Promise<Site> =>
  startSite({ config, ...(directories === undefined ? {} : { directories }) });

/** Runs a command that must be refused with this exit code and error code, and must change nothing. */
async function refused(
  at: Site,
  args: string[],
  exitCode: number,
  code: string,
  words: RegExp,
): Promise<void> {
  const before = await at.state();
  const result = await at.run(...args);
  expect(result.stderr).toMatch(words);
  expect(result.stderr).toContain(`(${code})`);
  expect(result.stderr, "a stack trace").not.toMatch(/^\s+at /m);
  expect(result.exitCode, result.stderr).toBe(exitCode);
  expect(result.stdout).toBe("");
  expect(await at.state()).toEqual(before);
}

describe("A command given something that does not exist", () => {
  it("names what there is, and exits with 3", async () => {
    const at = await site();
    await refused(at, ["backup", "run", "nobody"], 3, "DOMAIN_NOT_FOUND", /no domain nobody; it has vm/);
    await refused(
      at,
      ["backup", "run", "vm", "--disk", "vdz"],
      3,
      "DISK_NOT_FOUND",
      /no disk vdz; it has vda, vdb/,
    );
    await refused(
      at,
      ["checkpoint", "delete", "vm", "never"],
      3,
      "CHECKPOINT_NOT_FOUND",
      /no checkpoint never/,
    );
    await refused(
      at,
      ["checkpoint", "show", "vm", "never"],
      3,
      "CHECKPOINT_NOT_FOUND",
      /no checkpoint never/,
    );
    for (const verb of ["show", "verify", "delete", "serve"]) {
      await refused(at, ["backup", verb, "20260101T000000Z-000000"], 3, "BACKUP_NOT_FOUND", /no.*backup/i);
    }
    const to = at.directory.file("restored");
    await refused(at, ["backup", "restore", "nope", "--to", to], 3, "BACKUP_NOT_FOUND", /no.*backup/i);
    await refused(
      at,
      ["backup", "run", "vm", "--repository", "elsewhere"],
      3,
      "REPOSITORY_NOT_FOUND",
      /it has default/,
    );
  });
});

describe("A command given a name that no name can be", () => {
  it("says what a name is and exits with 2, for a slash, a newline, an option, emptiness and 1,000 characters", async () => {
    const at = await site();
    for (const name of ["../etc", "a\nb", "", "x".repeat(1000), "white space", "ümlaut", "a,b"]) {
      await refused(at, ["backup", "run", "--", name], 2, "INVALID_NAME", /Expected a domain name of/);
      await refused(
        at,
        ["checkpoint", "delete", "vm", "--", name],
        2,
        "INVALID_NAME",
        /Expected a checkpoint name/,
      );
      await refused(at, ["backup", "verify", "--", name], 2, "INVALID_NAME", /Expected a backup name/);
    }
    await refused(at, ["backup", "run", "vm", "--disk", "../x"], 2, "INVALID_NAME", /Expected a disk name/);
    await refused(
      at,
      ["backup", "run", "vm", "--repository", "a/b"],
      2,
      "INVALID_NAME",
      /Expected a repository name/,
    );
  });

  it("shows no raw control characters in its message", async () => {
    const at = await site();
    const { stderr } = await at.run("backup", "run", "a\n\u001b[31mred");
    expect(stderr.trimEnd()).not.toMatch(/[\n\u001b]/);
  });
});

describe("backup run, when a directory is not usable", () => {
  it("refuses a repository that does not exist, and does not create it", async () => {
    const at = await site({}, ["scratch"]);
    await refused(at, ["backup", "run", "vm"], 1, "PATH_NOT_FOUND", /repository.*backups: no such file/);
    await expect(stat(at.directory.file("backups"))).rejects.toThrow();
  });

  it("refuses a scratch directory that does not exist, and does not create it", async () => {
    const at = await site({}, ["backups"]);
    await refused(at, ["backup", "run", "vm"], 1, "PATH_NOT_FOUND", /scratch directory.*does not exist/);
    await expect(stat(at.directory.file("scratch"))).rejects.toThrow();
  });

  it("refuses a repository or scratch directory that is a file", async () => {
    const at = await site({}, []);
    await writeFile(at.directory.file("backups"), "");
    await refused(at, ["backup", "run", "vm"], 1, "PATH_NOT_FOUND", /not a directory/);
    const other = await site({}, ["backups"]);
    await writeFile(other.directory.file("scratch"), "");
    await refused(other, ["backup", "run", "vm"], 1, "PATH_NOT_FOUND", /not a directory/);
  });

  it("refuses a repository or scratch directory that is read-only (needs root for a mount)", async ({
    skip,
  }) => {
    for (const name of ["backups", "scratch"]) {
      const at = await site();
      if (!(await mountTmpfs(at.directory.file(name), "ro,size=1m"))) skip("mount is not permitted here");
      await refused(
        at,
        ["backup", "run", "vm"],
        1,
        "PERMISSION_DENIED",
        /read-only|cannot be written|permission/i,
      );
    }
  });

  it("fails cleanly on a full repository: nothing listed, checkpoint merged away (needs root for a mount)", async ({
    skip,
  }) => {
    const at = await site();
    if (!(await mountTmpfs(at.directory.file("backups"), "size=2m"))) skip("mount is not permitted here");
    const before = await at.vm.blockState();
    const result = await at.run("backup", "run", "vm");
    expect(result.stderr).toContain("(NO_SPACE)");
    expect(result.exitCode).toBe(1);
    expect(await at.vm.blockState()).toEqual(before);
    expect((await at.run("backup", "list", "--json")).json()).toEqual({ backups: [] });
    expect(await at.files()).toEqual([]);
  });

  it("fails cleanly when no scratch image can be made for lack of space (needs root for a mount)", async ({
    skip,
  }) => {
    const at = await site();
    if (!(await mountTmpfs(at.directory.file("scratch"), "size=8k"))) skip("mount is not permitted here");
    await refused(at, ["backup", "run", "vm"], 1, "NO_SPACE", /no space/i);
  });

  it("refuses a state directory that cannot be made", async () => {
    const at = await site({ stateDir: "/proc/fleece" });
    const result = await at.run("backup", "run", "vm");
    expect(result.exitCode, result.stderr).toBe(1);
    expect(result.stderr).toMatch(/PATH_NOT_FOUND|PERMISSION_DENIED/);
  });
});

describe("backup run, when the domain's monitor is of no use", () => {
  const domain = (qmp: string): TestConfig => ({ domains: [{ name: "vm", qmp }] });

  it("exits with 5 when the socket is absent or refuses, and no disks are configured", async () => {
    const at = await site();
    await writeConfig(at.directory.path, { ...domain(at.directory.file("absent.qmp")) });
    await refused(at, ["backup", "run", "vm"], 5, "DOMAIN_UNREACHABLE", /does not run.*lists no disks/);
    const stale = at.directory.file("stale.qmp");
    const server = net.createServer().listen(stale);
    await new Promise((resolve) => server.once("listening", resolve));
    const copy = `${stale}.kept`;
    await link(stale, copy);
    await new Promise((resolve) => server.close(resolve));
    await writeConfig(at.directory.path, { ...domain(copy) });
    await refused(at, ["backup", "run", "vm"], 5, "DOMAIN_UNREACHABLE", /does not run/);
  });

  it("exits with 5, and takes nothing for inactive, when the socket hangs", async () => {
    const at = await site();
    const socketPath = at.directory.file("hang.qmp");
    await serve(socketPath, () => undefined);
    await writeConfig(at.directory.path, {
      domains: [{ ...domainConfig("vm", at.vm), qmp: socketPath }],
    });
    await refused(at, ["backup", "run", "vm"], 5, "DOMAIN_UNREACHABLE", /greeting/);
  });

  it("exits with 5 when the socket talks nonsense", async () => {
    const at = await site();
    for (const nonsense of ["HTTP/1.1 400 Bad Request\r\n\r\n", "{}\r\n", '{"QMP": 7}\r\n', "\0\0\0\0\n"]) {
      const socketPath = at.directory.file(`nonsense-${nonsense.length}.qmp`);
      await serve(socketPath, (socket) => void socket.write(nonsense));
      await writeConfig(at.directory.path, { domains: [{ ...domainConfig("vm", at.vm), qmp: socketPath }] });
      await refused(at, ["backup", "run", "vm"], 5, "DOMAIN_UNREACHABLE", /QMP/);
    }
  });

  it("exits with 5 when the socket may not be opened (not for root, whom nothing stops)", async ({
    skip,
  }) => {
    if (process.getuid?.() === 0) skip("root may open any socket");
    const at = await site();
    await chmod(at.vm.qmpPath, 0);
    await refused(at, ["backup", "run", "vm"], 5, "DOMAIN_UNREACHABLE", /permission/i);
  });
});

async function serve(socketPath: string, onClient: (socket: net.Socket) => void): Promise<void> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    onClient(socket);
  });
  await new Promise<void>((resolve) => server.listen(socketPath, () => resolve()));
  untilTestEnds({
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  });
}

describe("backup run, when a disk is not free", () => {
  it("exits with 4 for an inactive domain whose image another program holds", async () => {
    const at = await site();
    const domains = [{ ...domainConfig("vm", at.vm), qmp: at.directory.file("absent.qmp") }];
    await writeConfig(at.directory.path, { domains, more: { runtimeDir: at.directory.file("run") } });
    await refused(at, ["backup", "run", "vm"], 4, "DISK_IN_USE", /a\.qcow2|b\.qcow2/);
  });

  it("exits with 4 while another program has a filter on the disk", async () => {
    const at = await site();
    await at.vm
      .qmp("blockdev-add", {
        driver: "throttle",
        "node-name": "t",
        "throttle-group": "g",
        file: "vda-format",
      })
      .catch(() => undefined);
    await at.vm.qmp("blockdev-add", { driver: "copy-on-read", "node-name": "theirs", file: "vda-format" });
    await at.vm.qmp("qom-set", { path: "/machine/peripheral/vda", property: "drive", value: "theirs" });
    await refused(at, ["backup", "run", "vm"], 4, "FOREIGN_FILTER", /copy-on-read filter theirs/);
  });

  it("exits with 4 while another program's NBD server runs in the domain's QEMU", async () => {
    const at = await site();
    await at.vm.qmp("nbd-server-start", {
      addr: { type: "unix", data: { path: at.directory.file("their.sock") } },
    });
    await refused(at, ["backup", "run", "vm"], 4, "NBD_SERVER_BUSY", /only one/);
    await at.vm.qmp("nbd-server-stop");
  });
});

describe("The configuration, when it is wrong", () => {
  it("names the file, the line and the path of an unknown or mistyped key, and exits with 2", async () => {
    const at = await site();
    for (const [text, words] of [
      ["stateDri: x\n", /fleece\.yaml:\d+:\d+: stateDri: Unknown key/],
      ["domains: 7\n", /fleece\.yaml:1:\d+: domains: /],
      ["domains:\n  - nmae: vm\n", /fleece\.yaml:2:5: domains\.0\.nmae: Unknown key/],
      ["a: [\n", /fleece\.yaml:\d+:\d+: /],
      ["", /fleece\.yaml:1:1: /],
    ] as const) {
      await writeFile(at.configPath, text);
      await refused(at, ["backup", "list"], 2, "CONFIG_INVALID", words);
    }
    const missing = await runFleece(["--embedded", "backup", "list"], {
      configPath: at.directory.file("no.yaml"),
    });
    expect(missing.exitCode).toBe(2);
    expect(missing.stderr).toContain("(CONFIG_NOT_FOUND)");
  });
});

describe("A backup whose files are damaged", () => {
  it("is listed with its damage, fails verification with 6, and does not stop the next backup", async () => {
    const at = await site();
    const first = (await at.run("backup", "run", "vm", "--json")).json() as { id: string };
    const manifest = at.directory.file(`backups/vm/${first.id}/manifest.json`);
    await writeFile(manifest, (await readFile(manifest, "utf8")).slice(0, 100));
    const list = (await at.run("backup", "list", "--json")).json() as {
      backups: { id: string; damage: string }[];
    };
    expect(list.backups).toHaveLength(1);
    expect(list.backups[0]?.damage).not.toBe("");
    await refused(at, ["backup", "verify", first.id], 6, "DAMAGED", /manifest/);
    const to = at.directory.file("restored");
    await refused(at, ["backup", "restore", first.id, "--to", to], 6, "DAMAGED", /manifest/);
    const next = (await at.run("backup", "run", "vm", "--json")).json() as { id: string; level: string };
    expect(next.level).toBe("FULL");
    expect((await at.run("backup", "verify", next.id)).exitCode).toBe(0);
  });

  it("is never restored silently: a changed byte stops verify and restore with 6, and no directory appears", async () => {
    const at = await site();
    const { id } = (await at.run("backup", "run", "vm", "--json")).json() as { id: string };
    const image = at.directory.file(`backups/vm/${id}/vda.qcow2`);
    await fillImage(image, "qcow2", { offset: MIB + 5, length: 1, pattern: 0x5b });
    await refused(at, ["backup", "verify", id], 6, "DAMAGED", /vda.*byte 1048576/);
    const to = at.directory.file("restored");
    await refused(at, ["backup", "restore", id, "--to", to], 6, "DAMAGED", /vda/);
    const leftovers = (await readdir(at.directory.path)).filter((name) => name.startsWith("restored"));
    expect(leftovers).toEqual([]);
  });
});

describe("backup restore", () => {
  it("refuses a directory that exists (4) or whose parent does not (1)", async () => {
    const at = await site();
    const { id } = (await at.run("backup", "run", "vm", "--json")).json() as { id: string };
    await mkdir(at.directory.file("there"));
    const restore = (to: string): string[] => ["backup", "restore", id, "--to", at.directory.file(to)];
    await refused(at, restore("there"), 4, "ALREADY_EXISTS", /there/);
    await refused(at, restore("no/where"), 1, "PATH_NOT_FOUND", /no\/where/);
    await refused(at, [...restore("x"), "--disk", "vdz"], 3, "DISK_NOT_FOUND", /it has vda, vdb/);
  });
});

describe("A domain that another command works on", () => {
  it("is refused with 4, and the message says who holds it", async () => {
    const at = await site();
    const first = (await at.run("backup", "run", "vm", "--json")).json() as { id: string };
    const attempt = await tryKernelLock(
      at.directory.file("state/domains/vm.lock"),
      "the test's own business",
    );
    expect(attempt.held).toBe(true);
    await refused(at, ["backup", "run", "vm"], 4, "DOMAIN_BUSY", /the test's own business \(process \d+/);
    await refused(at, ["checkpoint", "delete", "vm", first.id], 4, "DOMAIN_BUSY", /busy/);
    if (attempt.held) await attempt.lock.release();
    expect((await at.run("checkpoint", "delete", "vm", first.id)).exitCode).toBe(0);
  });
});
