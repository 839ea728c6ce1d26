import { execFile } from "node:child_process";
import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { parseBlockSnapshotXml } from "../../src/api/xml/block-snapshot-xml.js";
import { parseDomainXml } from "../../src/api/xml/domain-xml.js";
import { changedBlocks, changesSince } from "../support/changed-blocks.js";
import { expectRefusal } from "../support/expect-refusal.js";
import { copyToRaw, fileDigest } from "../support/image-tool.js";
import { startSite, type SiteOptions } from "../support/site.js";

const exec = promisify(execFile);
const MIB = 1024 * 1024;
const BLOCK = 64 * 1024;

/** The documents of the RFC, with the names of the test's disks, and files that only the test's user may write. */
const snapshotXml = (name: string, a: string, b: string): string => `<domainblocksnapshot>
  <name>${name}</name>
  <disk name='vda' type='file'>
    <fleece file='${a}'/>
  </disk>
  <disk name='vdb' type='file'>
    <fleece file='${b}'/>
  </disk>
</domainblocksnapshot>
`;
const exportXml = (
  snapshot: string,
  checkpoint: string,
  address = "",
): string => `<domainblockexport type='nbd'>
  ${address}
  <disk name='vda' snapshot='${snapshot}' checkpoint='${checkpoint}'/>
  <disk name='vdb' snapshot='${snapshot}' checkpoint='${checkpoint}'/>
</domainblockexport>
`;
const NIGHT = "0044757e-1a2d-4c2c-b92f-bb403309bb17";
const CP0 = "d068765e-8b50-4d74-9b72-1e55c663cbf8";

interface ExportMessage {
  readonly target: string;
  readonly uri: string;
}

function escaped(text: string): string {
  const withoutAmpersands = text.replaceAll("&", "&amp;").replaceAll("'", "&apos;");
  return withoutAmpersands.replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

async function startWorkplace(options: SiteOptions = {}) {
  const at = await startSite(options);
  const files = at.directory.file("it's & <mine>, too");
  await mkdir(files, { mode: 0o700 });
  const inFiles = (name: string): string => `${files}/${name}`;
  const inXml = (name: string): string => escaped(inFiles(name));
  const document = async (text: string): Promise<string> => {
    const file = at.directory.file("document.xml");
    await writeFile(file, text);
    return file;
  };
  return {
    ...at,
    filesDirectory: files,
    inFiles,
    document,
    create: async (text: string, ...args: string[]) =>
      at.json("block-snapshot", "create", "vm", "--xml", await document(text), ...args),
    rfcSnapshot: (name = NIGHT): string =>
      snapshotXml(name, inXml("snapshot-a.hdd"), inXml("snapshot-b.hdd")),
    moment: async (target: string): Promise<string> => {
      if (at.vm.running) await at.vm.guestFlush(target);
      const file = at.directory.file(`${target}.moment.raw`);
      await copyToRaw(at.directory.file(`${target}.qcow2`), "qcow2", file);
      return fileDigest(file);
    },
    read: async ({ target, uri }: ExportMessage): Promise<string> => {
      const file = at.directory.file(`${target}.copy.raw`);
      await exec("nbdcopy", [uri, file]);
      return fileDigest(file);
    },
    text: async (...args: string[]): Promise<string> => {
      const { exitCode, stdout, stderr } = await at.run(...args);
      expect(stderr).toBe("");
      expect(exitCode).toBe(0);
      return stdout;
    },
  };
}

describe("the RFC's documents, on a running domain", () => {
  it("freeze, offer and show what the guest goes on changing, with the old content in the named files", async () => {
    const at = await startWorkplace();
    await at.create(`<domainblocksnapshot><name>${CP0}</name></domainblocksnapshot>`, "--checkpoint");
    await at.json("block-snapshot", "delete", "vm", CP0);
    await at.vm.guestWrite("vda", 5 * BLOCK, 512, 0x77);
    await at.vm.guestWrite("vdb", 20 * BLOCK, 512, 0x78);
    const moments = [await at.moment("vda"), await at.moment("vdb")];
    const before = await at.files();

    expect(await at.create(at.rfcSnapshot())).toMatchObject({
      name: NIGHT,
      disks: [
        { target: "vda", scratchFile: at.inFiles("snapshot-a.hdd") },
        { target: "vdb", scratchFile: at.inFiles("snapshot-b.hdd") },
      ],
    });
    for (const target of ["vda", "vdb"]) await at.vm.guestWrite(target, 0, 2 * MIB, 0xee);
    for (const name of ["snapshot-a.hdd", "snapshot-b.hdd"]) {
      const { mode, blocks } = await stat(at.inFiles(name));
      expect(mode & 0o777).toBe(0o600);
      expect(blocks * 512).toBeGreaterThan(2 * MIB);
    }
    expect(await readdir(at.directory.file("scratch"))).toEqual([]);

    const { exports } = await at.json<{ exports: readonly [ExportMessage, ExportMessage] }>(
      ...["export", "start", "vm", "--xml", await at.document(exportXml(NIGHT, CP0))],
    );
    expect(exports).toMatchObject([{ exportName: `vda-${NIGHT}` }, { exportName: `vdb-${NIGHT}` }]);
    expect([await at.read(exports[0]), await at.read(exports[1])]).toEqual(moments);
    expect(await changedBlocks(exports[0].uri, changesSince(CP0))).toContain(5);
    expect(await changedBlocks(exports[1].uri, changesSince(CP0))).toContain(20);
    expect(await changedBlocks(exports[1].uri, changesSince(CP0))).not.toContain(40);

    const dumped = await at.text("block-snapshot", "dumpxml", "vm", NIGHT);
    expect(dumped).toContain("<scratch file='");
    expect(parseBlockSnapshotXml(dumped)).toEqual(parseBlockSnapshotXml(at.rfcSnapshot()));
    expect(await at.text("block-snapshot", "dumpxml", "vm", NIGHT, "--rfc")).toBe(at.rfcSnapshot());
    expect(await at.json("block-snapshot", "dumpxml", "vm", NIGHT)).toEqual({ xml: dumped });

    const domain = parseDomainXml(await at.text("domain", "dumpxml", "vm"));
    const [blockExport] = domain.blockExports;
    expect(domain).toMatchObject({
      name: "vm",
      disks: [
        { target: "vda", format: "qcow2", file: at.directory.file("vda.qcow2"), checkpoints: [CP0] },
        { target: "vdb", checkpoints: [CP0] },
      ],
      blockExports: [
        {
          address: { type: "unix" },
          disks: [
            { name: "vda", snapshot: NIGHT, checkpoint: CP0, exportName: `vda-${NIGHT}` },
            { name: "vdb", snapshot: NIGHT, checkpoint: CP0, exportName: `vdb-${NIGHT}` },
          ],
        },
      ],
    });
    if (blockExport?.address.type !== "unix") throw new Error("Expected a Unix address");
    expect((await stat(blockExport.address.path)).isSocket()).toBe(true);

    await at.json("block-snapshot", "delete", "vm", NIGHT);
    expect(await readdir(at.filesDirectory)).toEqual([]);
    expect(await at.files()).toEqual(before);
    expect(parseDomainXml(await at.text("domain", "dumpxml", "vm")).blockExports).toEqual([]);
  });

  it("let staged exports free the named files as soon as everything is copied", async () => {
    const at = await startWorkplace({ exports: "staged" });
    const moment = await at.moment("vda");
    await at.create(at.rfcSnapshot());
    await at.vm.guestWrite("vda", 0, MIB, 0xee);
    const request = `<domainblockexport type='nbd'><disk name='vda' snapshot='${NIGHT}'/></domainblockexport>`;
    const { exports } = await at.json<{ exports: readonly [ExportMessage] }>(
      ...["export", "start", "vm", "--xml", await at.document(request)],
    );
    expect(await at.read(exports[0])).toBe(moment);
    expect(await readdir(at.filesDirectory)).not.toContain("snapshot-a.hdd");
    expect(await readdir(at.filesDirectory)).toContain("snapshot-b.hdd");
    await at.json("block-snapshot", "delete", "vm", NIGHT);
    expect(await readdir(at.filesDirectory)).toEqual([]);
  });

  it("leave a file alone that somebody has put in place of the named one", async () => {
    const at = await startWorkplace();
    await at.create(at.rfcSnapshot());
    await exec("mv", [at.inFiles("snapshot-a.hdd"), at.inFiles("moved")]);
    await writeFile(at.inFiles("snapshot-a.hdd"), "somebody else's");
    await at.json("block-snapshot", "delete", "vm", NIGHT);
    expect((await readdir(at.filesDirectory)).toSorted()).toEqual(["moved", "snapshot-a.hdd"]);
    expect(await readFile(at.inFiles("snapshot-a.hdd"), "utf8")).toBe("somebody else's");
  });

  it("are refused before anything is done", async () => {
    const at = await startWorkplace();
    const clean = await at.state();
    const [free, taken, dangling] = ["free", "taken", "dangling"].map(at.inFiles) as [string, string, string];
    await writeFile(taken, "precious");
    await symlink(at.inFiles("nowhere"), dangling);
    await mkdir(at.directory.file("open"));
    await chmod(at.directory.file("open"), 0o777);
    await symlink(at.directory.file("scratch"), at.directory.file("link"));
    const named = (file: string) => {
      return `<domainblocksnapshot><disk name='vda'><scratch file='${escaped(file)}'/></disk></domainblocksnapshot>`;
    };
    const refused = async (text: string, exitCode: number, stderr: RegExp, ...args: string[]) =>
      expectRefusal(
        at,
        ["block-snapshot", "create", "vm", "--xml", await at.document(text), ...args],
        exitCode,
        stderr,
      );
    await refused(named(taken), 4, /ALREADY_EXISTS/);
    await refused(named(dangling), 4, /ALREADY_EXISTS/);
    await refused(named(at.directory.file("vda.qcow2")), 4, /ALREADY_EXISTS/);
    await refused(named(at.directory.file("link/a")), 2, /to have no link in it, .*INVALID_ARGUMENT/s);
    await refused(named(at.directory.file("open/a")), 1, /no other user may replace .*PERMISSION_DENIED/s);
    await refused(named(at.directory.file("absent/a")), 1, /PATH_NOT_FOUND/);
    await refused(
      named("relative"),
      2,
      /^fleece: Line 1: Expected an absolute path of a scratch file.*INVALID_ARGUMENT/s,
    );
    await refused(named(free), 2, /either XML or a name and disks.*INVALID_ARGUMENT/s, "--name", "n");
    await refused(named(free), 2, /INVALID_ARGUMENT/, "--disk", "vdb");
    await refused(named(free).replaceAll("vda", "vdz"), 3, /DISK_NOT_FOUND/);
    await refused("<!DOCTYPE a>", 2, /no DOCTYPE.*XML_INVALID/s);
    expect(await readFile(taken, "utf8")).toBe("precious");
    expect((await readdir(at.filesDirectory)).toSorted()).toEqual(["dangling", "taken"]);
    const start = ["export", "start", "vm"];
    const address = "<address type='ip' host='127.0.0.1' port='8000'/>";
    const request = await at.document(exportXml(NIGHT, CP0, address));
    await expectRefusal(
      at,
      [...start, "--xml", request],
      1,
      /tcp:127\.0\.0\.1:8000: .*needs an agent.*UNSUPPORTED/s,
    );
    await expectRefusal(
      at,
      [...start, "--xml", request, "--snapshot", "s"],
      2,
      /either XML or .*INVALID_ARGUMENT/s,
    );
    await expectRefusal(at, start, 2, /'--snapshot <name>' or '--xml <file>'.*INVALID_ARGUMENT/s);
    await expectRefusal(at, [...start, "--xml", "/absent"], 1, /PATH_NOT_FOUND/);
    expect(await at.state()).toEqual(clean);
  });

  it("take a lease like any other: at its end the named files go", async () => {
    const at = await startWorkplace();
    await at.create(at.rfcSnapshot(), "--lease", "1s");
    await expect
      .poll(async () => (await at.json<{ snapshots: unknown[] }>("block-snapshot", "list", "vm")).snapshots, {
        timeout: 20_000,
      })
      .toEqual([]);
    expect(await readdir(at.filesDirectory)).toEqual([]);
  });
});

describe("the RFC's documents, on an inactive domain", () => {
  it("make no files, and show none", async () => {
    const at = await startWorkplace();
    await at.vm.quit();
    await at.create(at.rfcSnapshot());
    expect(await readdir(at.filesDirectory)).toEqual([]);
    expect(parseBlockSnapshotXml(await at.text("block-snapshot", "dumpxml", "vm", NIGHT))).toEqual({
      name: NIGHT,
      disks: [{ name: "vda" }, { name: "vdb" }],
    });
    await at.json("block-snapshot", "delete", "vm", NIGHT);
  });
});
